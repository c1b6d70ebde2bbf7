"""Merge early or late? Merging rules against epochs, beside individual and joint training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.studies.base import (
    EPOCHS,
    IMAGES,
    RECIPE,
    SCALING_COEFS,
    Study,
    StudyRequest,
    SuiteSettings,
    cross,
    grid,
    individual_runs,
    joint_run,
    make_suite,
    say,
    suite_record,
)
from taskvec_mini.benchmarks.training import Settings


@dataclass(eq=False)
class EarlyOrLate(Study):
    """The study behind chapter 6.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        tasks: which tasks, and how models are judged.
        recipe: of finetuning, but for epochs and seed.
        epochs: after which merges are made.
        rules: that merge.
    """

    description: str
    backbone: str = "pocket"
    tasks: SuiteSettings = IMAGES
    recipe: Settings = RECIPE
    epochs: Sequence[int] = EPOCHS
    rules: Sequence[str] = tuple(SCALING_COEFS)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone, folder=request.data)
        zero_shot: dict[str, Any] = {}
        individual: dict[str, Any] = {}
        joint: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        grids: list[dict[str, Any]] = []
        interference: dict[str, Any] = {}
        train_accuracy: dict[str, Any] = {}
        seconds: dict[str, Any] = {}
        for seed in self.seeds:
            suite = make_suite(backbone, self.tasks, folder=request.data, seed=seed)
            self.settings, self.data = suite_record(
                suite, recipe=self.recipe, epochs=self.epochs[-1], rules=self.rules
            )
            runs = individual_runs(suite, recipe=self.recipe, epochs=self.epochs)
            together = joint_run(suite, recipe=self.recipe, epochs=self.epochs)
            key = str(seed)
            zero_shot[key] = suite.scores(None, suite.tasks)
            individual[key], joint[key], train_accuracy[key] = {}, {}, {}
            for epoch in self.epochs:
                individual[key][str(epoch)] = {
                    name: suite.scores(run.state(epoch), [name])[name] for name, run in runs.items()
                }
                joint[key][str(epoch)] = suite.scores(together.state(epoch), suite.tasks)
                train_accuracy[key][str(epoch)] = {
                    name: round(run.accuracies[epoch - 1], 5) for name, run in runs.items()
                }
                vectors = {name: run.task_vector(epoch) for name, run in runs.items()}
                for rule in self.rules:
                    found = suite.merge(rule, vectors)
                    merged.append({"seed": seed, "epoch": epoch, "rule": rule, **found})
                    say(f"seed {seed}, epoch {epoch}, {rule}: {mean(found['test'].values()):.3f}")
                if seed == 0:
                    grids += grid(
                        suite, epoch, merged=merging.mean(list(vectors.values())), base=zero_shot[key]
                    )
            last = ((name, run.task_vector()) for name, run in runs.items())
            interference[key] = cross(suite, last, base=zero_shot[key])
            # what all epochs took when they were trained, be it now or earlier
            seconds[key] = {
                "individual": round(sum(each["seconds"] for run in runs.values() for each in run.records), 1),
                "joint": round(sum(each["seconds"] for each in together.records), 1),
            }
        return {
            "epochs": list(self.epochs),
            "seeds": list(self.seeds),
            "rules": list(self.rules),
            "zero_shot": zero_shot,
            "individual": individual,
            "joint": joint,
            "merged": merged,
            "grid": grids,
            "cross": interference,
            "train_accuracy": train_accuracy,
            "training_seconds": seconds,
            "tasks": list(suite.tasks),
            **suite.sizes(),
        }
