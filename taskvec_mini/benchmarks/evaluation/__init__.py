"""Evaluation: accuracies of models and of merges at many scaling coefficients, and throughput."""

from taskvec_mini.benchmarks.evaluation.accuracy import (
    Split,
    accuracies,
    climb,
    forget_prepared_images,
    sweep,
    task_logits,
    tune,
)

__all__ = ["Split", "accuracies", "climb", "forget_prepared_images", "sweep", "task_logits", "tune"]
