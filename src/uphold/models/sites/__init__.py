"""Sites: named places in a network that can be read and overwritten, on unmodified models."""
