"""Accuracy and throughput."""
