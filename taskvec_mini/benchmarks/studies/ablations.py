"""How the setting of chapter 6 was found, and how good its encoder is: one thing changed at a time, one seed.

Beside another encoder or optimiser stands a learning rate of its own.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies.base import (
    IMAGES,
    TWO_RULES,
    Study,
    StudyRequest,
    SuiteSettings,
    data_files,
    make_suite,
    say,
    study_tasks,
)
from taskvec_mini.benchmarks.training import Settings, finetune

TASKS = SuiteSettings(share=0.15)
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
ENCODERS = ("random-pocket", "pocket")  # that are probed


class Search(Study):
    """The table behind the choice of chapter 6's setting."""

    description = "merged accuracy where one thing differs from a small chapter 6: half its images, 4 epochs"
    seeds = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All variants, one after the other."""
        rows = []
        for variant, changes in VARIANTS.items():
            backbone = load_backbone(changes.get("backbone", "pocket"), folder=request.data)
            of_suite = {name: changes[name] for name in ("shots", "recentre") if name in changes}
            of_training = {
                name: value for name, value in changes.items() if name not in ("backbone", *of_suite)
            }
            suite = make_suite(backbone, replace(TASKS, **of_suite), folder=request.data, seed=0)
            recipe = replace(CHOSEN, **of_training)
            individual: dict[str, float] = {}
            vectors = {}
            for name, task in suite.tasks.items():
                run = finetune(
                    backbone, suite.heads[name], task, settings=recipe, keep=[recipe.epochs], progress=False
                )
                individual |= suite.scores(run.state(), [name])
                vectors[name] = run.task_vector()
            rows.append(
                {
                    "variant": variant,
                    "zero_shot": suite.scores(None, suite.tasks),
                    "individual": individual,
                    "merged": {rule: suite.merge(rule, vectors) for rule in TWO_RULES},
                }
            )
            say(f"{variant}: done")
        self.data = suite.data
        self.settings = {
            "share_of_training_images": TASKS.share,
            "shots": TASKS.shots,
            "recentre": TASKS.recentre,
            "test_images": TASKS.test,
            "chosen": asdict(CHOSEN),
            "variants": VARIANTS,
        }
        return {"rows": rows}


class Probes(Study):
    """Test accuracy of logistic regression on what each encoder gives, before any finetuning."""

    description = "linear probes on the frozen embeddings of each encoder, on the eight tasks"
    seeds = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """Every encoder on every task."""
        tasks = study_tasks(IMAGES, folder=request.data, seed=0)
        self.settings = {"share_of_training_images": IMAGES.share, "encoders": list(ENCODERS)}
        self.data = data_files(tasks, suite=IMAGES.suite)
        results: dict[str, Any] = {}
        for name in ENCODERS:
            backbone = load_backbone(name, folder=request.data)
            results[name] = {}
            for task in tasks.values():
                accuracy = linear_probe(backbone, task).accuracy
                results[name][task.name] = round(accuracy, 5)
                say(f"{name}, {task.name}: {accuracy:.3f}")
        return results
