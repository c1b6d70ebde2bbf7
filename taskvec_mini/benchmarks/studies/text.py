"""Does the picture change with the modality? Six tasks on short texts, for the studies of merging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from taskvec_mini.benchmarks.data.text_tables import BUNDLE
from taskvec_mini.benchmarks.data.texts import TextTask, load_text_tasks
from taskvec_mini.benchmarks.encoders.protocols import Encoder
from taskvec_mini.benchmarks.evaluation.accuracy import forget_prepared_images
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.base import VALIDATION
from taskvec_mini.benchmarks.studies.early_or_late import RECENTRE, SHOTS, TEST, Suite
from taskvec_mini.benchmarks.training.settings import Settings

TASKS = ("trec6", "agnews", "dbpedia14", "banking77", "clinc10", "sst2")  # "subj" has sentences of "sst2"
TRAIN = 1200  # texts a task to learn from
EPOCHS = (1, 2, 4, 8)
RECIPE = Settings(learning_rate=1e-3, epochs=EPOCHS[-1], batch_size=32, centre="batch")


def make_text_suite(backbone: Encoder, folder: Path | None, seed: int) -> Suite:
    """The six tasks with their frozen heads, cut to what two cores can train."""
    forget_prepared_images()
    loaded = load_text_tasks(TASKS, folder=folder, seed=seed, limit=TRAIN)
    tasks = {name: _cut(task) for name, task in loaded.items()}
    heads = {name: prototype_head(backbone, task, shots=SHOTS) for name, task in tasks.items()}
    about = {
        "training_texts": TRAIN, "validation_texts": VALIDATION, "shots": SHOTS, "recentre": RECENTRE,
        "test_texts": TEST,
    }  # fmt: skip
    parts = ("train", "test")
    data = {
        f"{name}.{part}.tsv": sha for name in TASKS for part, sha in zip(parts, BUNDLE[name], strict=True)
    }
    return Suite(backbone, tasks, heads, seed, about, data)


def _cut(task: TextTask) -> TextTask:
    return replace(task, val_tokens=task.val_tokens[:VALIDATION], val_labels=task.val_labels[:VALIDATION])
