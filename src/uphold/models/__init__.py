"""Loading, scoring, generating and training language models."""
