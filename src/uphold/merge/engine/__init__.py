"""The machinery of merging: recipes, plans, and a run that streams tensors from disk to disk."""
