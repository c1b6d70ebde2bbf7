"""Where finetuning runs: on this machine, or spread over the workers of a Ray cluster."""

from taskvec_mini.benchmarks.engines.jobs import EngineOptions, Job, JobError, JointJob, shared_folder
from taskvec_mini.benchmarks.engines.run import finetune_all, opened

__all__ = ["EngineOptions", "Job", "JobError", "JointJob", "finetune_all", "opened", "shared_folder"]
