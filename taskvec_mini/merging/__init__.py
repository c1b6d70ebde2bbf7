"""Merging rules, each a function of task vectors alone, and the same straight from files."""

from taskvec_mini.merging.adapters import Adapter, adapter_vector, adapter_vectors, read_adapter
from taskvec_mini.merging.depth import depth_start, scale_by_depth
from taskvec_mini.merging.from_files import merge_files, merged_vector
from taskvec_mini.merging.models import (
    Differences,
    compare_models,
    complete_analogy,
    merge_models,
    negate_model,
)
from taskvec_mini.merging.registry import RULES, Rule
from taskvec_mini.merging.rules import (
    breadcrumbs,
    consensus,
    dare,
    iso_c,
    iso_cts,
    mean,
    regmean_from_vectors,
    task_arithmetic,
    ties,
    tsv,
    wudi,
)

__all__ = [
    "RULES",
    "Adapter",
    "Differences",
    "Rule",
    "adapter_vector",
    "adapter_vectors",
    "breadcrumbs",
    "compare_models",
    "complete_analogy",
    "consensus",
    "dare",
    "depth_start",
    "iso_c",
    "iso_cts",
    "mean",
    "merge_files",
    "merge_models",
    "merged_vector",
    "negate_model",
    "read_adapter",
    "regmean_from_vectors",
    "scale_by_depth",
    "task_arithmetic",
    "ties",
    "tsv",
    "wudi",
]
