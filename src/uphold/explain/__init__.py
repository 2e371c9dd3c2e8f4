"""Explain: where in the network an update changed things."""
