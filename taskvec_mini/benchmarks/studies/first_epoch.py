"""Does the first epoch lead? Norms and directions of every epoch, on eight tasks, under three optimisers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import trajectories
from taskvec_mini.benchmarks.data.tasks import ImageTask
from taskvec_mini.benchmarks.encoders.load import Backbone, load_backbone
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies
from taskvec_mini.benchmarks.heads import Head, prototype_head
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.training.finetune import Run, Settings, finetune
from taskvec_mini.benchmarks.training.gradients import full_batch_gradient

EPOCHS, SHARE = 6, 0.2  # a fifth of the training images of every task
RECIPES = {  # one rate for all tasks; "gd" makes one step an epoch, so its rate is far higher
    "gd": Settings(optimizer="gd", learning_rate=0.005, epochs=EPOCHS, batch_size=500),
    "sgd": Settings(optimizer="sgd", learning_rate=0.002, epochs=EPOCHS, batch_size=32),
    "adamw": Settings(optimizer="adamw", learning_rate=3e-4, epochs=EPOCHS, batch_size=32),
}
SLOWER = {"gd": replace(RECIPES["gd"], learning_rate=5e-4)}  # at 5e-3 full batches overshoot on most tasks


class FirstEpoch(study_data.Study):
    """The study behind chapter 5: norms and directions of every epoch on eight tasks, for some optimisers."""

    def __init__(self, recipes: Mapping[str, Settings], description: str):
        self.recipes, self.description = recipes, description

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """One run for each optimiser, seed and task; the results as plain numbers."""
        backbone, runs, paths = load_backbone("pocket"), [], []
        for seed in self.seeds:
            tasks = study_data.suite(options.data, seed, SHARE)
            self.settings, self.data = study_data.describe(self.recipes, backbone, tasks, share=SHARE)
            for task in tasks.values():
                head = prototype_head(backbone, task)
                for name, recipe in self.recipes.items():
                    measured, path = _measure(backbone, head, task, replace(recipe, seed=seed))
                    runs.append({"optimizer": name, "task": task.name, "seed": seed, **measured})
                    if seed == self.seeds[0]:
                        paths.append({"optimizer": name, "task": task.name, "seed": seed, **path})
                    study_data.say(f"seed {seed}, {task.name}, {name}")
        return {
            "tasks": list(tasks),
            "epochs": EPOCHS,
            "steps_per_epoch": {name: -(-len(t.train_labels) // 32) for name, t in tasks.items()},
            "images": {name: len(t.train_labels) for name, t in tasks.items()},
            "learning_rate": {name: recipe.learning_rate for name, recipe in self.recipes.items()},
            "runs": runs,
            "paths": paths,
        }


def _measure(
    backbone: Backbone, head: Head, task: ImageTask, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All numbers of one run, and its path in a plane."""
    run = finetune(backbone, head, task, settings=settings, progress=False)
    states = [run.state(epoch) for epoch in range(settings.epochs + 1)]
    thetas = [torch.cat([part.reshape(-1) for part in state.values()]) for state in states]
    gradients = [full_batch_gradient(backbone, head, task, state=theta).to(theta.dtype) for theta in thetas]
    plane = trajectories.projection([thetas])
    heads, tasks = {task.name: head}, {task.name: task}
    scores = [
        accuracies(backbone, heads, tasks, parameters=theta, split="val")[task.name] for theta in thetas
    ]
    losses = {"train_loss": [round(loss, 6) for loss in run.losses], "val_accuracy": scores}
    path = {"xy": study_data.rounded(plane.points[0]), "explained": study_data.rounded(plane.explained)}
    return {**_directions(thetas, gradients), **_minibatch_norms(run), **losses}, path


def _directions(thetas: list[Tensor], gradients: list[Tensor]) -> dict[str, list[float]]:
    """Norms of gradients, displacements and task vectors, and their cosines with the first and the last."""
    steps = [after - before for before, after in pairwise(thetas)]
    vectors = [theta - thetas[0] for theta in thetas[1:]]
    downhill = [-gradient for gradient in gradients]
    cosines, norms = trajectories.cosines_with, trajectories.norms
    return {
        name: study_data.rounded(values)
        for name, values in {
            "gradient_norms": norms(gradients),
            "displacement_norms": norms(steps),
            "task_vector_norms": norms(vectors),
            "cosine_displacement_first": cosines(steps, steps[0]),
            "cosine_displacement_final": cosines(steps, vectors[-1]),
            "cosine_gradient_first": cosines(downhill, steps[0]),
            "cosine_gradient_final": cosines(downhill, vectors[-1]),
            "cosine_vector_final": cosines(vectors, vectors[-1]),
        }.items()
    }


def _minibatch_norms(run: Run) -> dict[str, list[float]]:
    return {"minibatch_gradient_norms": [round(record["gradient_norm"], 6) for record in run.records]}
