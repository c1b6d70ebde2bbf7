"""Finetuning with checkpoints."""
