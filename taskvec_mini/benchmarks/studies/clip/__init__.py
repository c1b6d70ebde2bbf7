"""The study of CLIP within a budget of minutes (chapter 8): what fits, training, evaluation."""

from taskvec_mini.benchmarks.studies.clip.study import Clip, ClipRequest

__all__ = ["Clip", "ClipRequest"]
