"""Tasks: images and texts in three parts, and where they come from."""
