"""Circuits: which heads do a task at which positions, and what an update changed in them."""
