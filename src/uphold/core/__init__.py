"""Records, runs, registry, errors and statistics."""
