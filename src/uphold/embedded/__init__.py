"""Two small checkpoints, and how to make them again."""
