"""Encoders: a model with the preparation of its inputs."""
