"""Frozen heads: from embeddings to answers."""
