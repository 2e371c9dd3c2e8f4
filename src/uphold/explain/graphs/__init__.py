"""Causal graphs of the classes of a feed-forward classifier (arXiv:2305.08950)."""
