"""Merging rules, each a function of task vectors alone, and the same straight from files."""

from taskvec_mini.merging.from_files import merge_files, merged_vector
from taskvec_mini.merging.registry import RULES, Rule
from taskvec_mini.merging.rules import (
    breadcrumbs,
    dare,
    mean,
    regmean_from_vectors,
    task_arithmetic,
    ties,
    tsv,
)

__all__ = [
    "RULES",
    "Rule",
    "breadcrumbs",
    "dare",
    "mean",
    "merge_files",
    "merged_vector",
    "regmean_from_vectors",
    "task_arithmetic",
    "ties",
    "tsv",
]
