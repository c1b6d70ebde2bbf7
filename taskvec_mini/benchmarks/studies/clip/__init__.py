"""The study of CLIP within a budget of minutes."""
