"""Models in stages: splitting, building, joining, and training one stage between frozen neighbours."""
