"""Training: finetuning with frozen heads, alone and jointly, in folders from which it goes on."""

from taskvec_mini.benchmarks.training.experiment import JOINT, Experiment, RunFolder
from taskvec_mini.benchmarks.training.finetune import Run, finetune, finetune_jointly
from taskvec_mini.benchmarks.training.gradients import full_batch_gradient
from taskvec_mini.benchmarks.training.memory import Memory, TooLittleMemoryError, amount, estimate
from taskvec_mini.benchmarks.training.progress import epoch_line
from taskvec_mini.benchmarks.training.settings import Settings, Speed
from taskvec_mini.benchmarks.training.trainer import DivergedError, ExtraLoss, Trainer, plan

__all__ = [
    "JOINT",
    "DivergedError",
    "Experiment",
    "ExtraLoss",
    "Memory",
    "Run",
    "RunFolder",
    "Settings",
    "Speed",
    "TooLittleMemoryError",
    "Trainer",
    "amount",
    "epoch_line",
    "estimate",
    "finetune",
    "finetune_jointly",
    "full_batch_gradient",
    "plan",
]
