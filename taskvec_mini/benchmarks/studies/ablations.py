"""The search that found a setting in which a merge works: one thing changed at a time, one seed.

Beside another encoder or optimiser stands a learning rate of its own.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

from taskvec_mini.benchmarks.encoders.load import load_backbone
from taskvec_mini.benchmarks.evaluation.accuracy import forget_prepared_images
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies.early_or_late import RECENTRE, SHOTS, TEST, TWO_RULES, Suite
from taskvec_mini.benchmarks.training.finetune import finetune
from taskvec_mini.benchmarks.training.settings import Settings

SHARE = 0.15
CHOSEN = Settings(learning_rate=3e-4, epochs=4, batch_size=64, centre="batch")
VARIANTS: dict[str, dict[str, Any]] = {  # what differs from the chosen setting
    "chosen": {},
    "centre frozen in training and judging": {"centre": "frozen", "recentre": 0},
    "centre frozen in training, moved in judging": {"centre": "frozen"},
    "heads from all training images": {"shots": None},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "SGD, learning rate 2e-3": {"optimizer": "sgd", "learning_rate": 2e-3},
    "encoder not pretrained": {"backbone": "random-pocket"},
    "encoder mobilenet at 64 pixels": {"backbone": "mobilenet", "learning_rate": 1e-4},
}


class Search(study_data.Study):
    """The table behind the choice of chapter 6's setting."""

    description = "merged accuracy where one thing differs from a small chapter 6: half its images, 4 epochs"
    seeds = (0,)

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {
            "share_of_training_images": SHARE, "shots": SHOTS, "recentre": RECENTRE, "test_images": TEST,
            "chosen": asdict(CHOSEN), "variants": VARIANTS,
        }  # fmt: skip

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All variants, one after the other."""
        rows = []
        for name, changes in VARIANTS.items():
            rows.append({"variant": name, **self._variant(options, dict(changes))})
            study_data.say(f"{name}: done")
        return {"rows": rows}

    def _variant(self, options: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
        backbone = load_backbone(changes.pop("backbone", "pocket"))
        recentre, shots = changes.pop("recentre", RECENTRE), changes.pop("shots", SHOTS)
        settings = replace(CHOSEN, **changes)
        forget_prepared_images()
        tasks = study_data.suite(options.data, 0, SHARE)
        self.data = study_data.checksums(tasks)
        heads = {name: prototype_head(backbone, task, shots=shots) for name, task in tasks.items()}
        suite = Suite(backbone, tasks, heads, 0, {}, self.data)
        runs = {
            name: finetune(backbone, heads[name], task, settings=settings, keep=[4], progress=False)
            for name, task in tasks.items()
        }
        single = {n: suite.scores(run.state(), [n], recentre=recentre)[n] for n, run in runs.items()}
        vectors = {name: run.task_vector() for name, run in runs.items()}
        merged = {rule: suite.merge(rule, vectors, recentre=recentre) for rule in TWO_RULES}
        zero = suite.scores(None, tasks, recentre=recentre)
        return {"zero_shot": zero, "individual": single, "merged": merged}
