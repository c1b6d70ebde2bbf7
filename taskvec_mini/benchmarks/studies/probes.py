"""How good are the encoders? Linear probes on their frozen embeddings, task by task."""

from __future__ import annotations

import argparse
from typing import Any

from taskvec_mini.benchmarks.encoders.load import load_backbone
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies import base as study_data

ENCODERS = ("random-pocket", "pocket")
SHARE = 0.3


class Probes(study_data.Study):
    """Test accuracy of logistic regression on what each encoder gives, before any finetuning."""

    description = "linear probes on the frozen embeddings of each encoder, on the eight tasks"
    seeds = (0,)

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"share_of_training_images": SHARE, "encoders": list(ENCODERS)}

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """Every encoder on every task."""
        tasks = study_data.suite(options.data, 0, SHARE)
        self.data = study_data.checksums(tasks)
        results: dict[str, Any] = {}
        for name in ENCODERS:
            backbone = load_backbone(name)
            for task in tasks.values():
                probe = linear_probe(backbone, task)
                results.setdefault(name, {})[task.name] = round(probe.accuracy, 5)
                study_data.say(f"{name}, {task.name}: {probe.accuracy:.3f}")
        return results
