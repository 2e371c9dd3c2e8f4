"""Subspaces: directions in a network's activations, and whether what a patch along them does is read from live ones."""
