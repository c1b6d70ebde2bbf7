"""The study of CLIP within a budget of minutes (chapter 8): what fits, training by rounds, evaluation."""

from taskvec_mini.benchmarks.studies.clip.budget import MeasuredSpeed, Plan, makespan, measure_speed, plan
from taskvec_mini.benchmarks.studies.clip.evaluation import evaluated_images, extra_images
from taskvec_mini.benchmarks.studies.clip.rounds import RECIPE
from taskvec_mini.benchmarks.studies.clip.study import CONVERGED, Clip, ClipRequest, training_images

__all__ = [
    "CONVERGED",
    "RECIPE",
    "Clip",
    "ClipRequest",
    "MeasuredSpeed",
    "Plan",
    "evaluated_images",
    "extra_images",
    "makespan",
    "measure_speed",
    "plan",
    "training_images",
]
