"""Does the first epoch lead? Norms and directions of every epoch, on eight tasks, under three optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from taskvec_mini import trajectories
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.evaluation import accuracies
from taskvec_mini.benchmarks.heads import prototype_head
from taskvec_mini.benchmarks.studies.base import (
    Study,
    StudyRequest,
    SuiteSettings,
    data_files,
    rounded,
    say,
    study_tasks,
)
from taskvec_mini.benchmarks.training import Settings, finetune, full_batch_gradient

EPOCHS = 6
TASKS = SuiteSettings(share=0.2)
RECIPES = {  # one rate for all tasks; "gd" makes one step an epoch, so its rate is far higher
    "gd": Settings(optimizer="gd", learning_rate=0.005, epochs=EPOCHS, batch_size=500),
    "sgd": Settings(optimizer="sgd", learning_rate=0.002, epochs=EPOCHS, batch_size=32),
    "adamw": Settings(optimizer="adamw", learning_rate=3e-4, epochs=EPOCHS, batch_size=32),
}
SLOWER = {"gd": replace(RECIPES["gd"], learning_rate=5e-4)}  # at 5e-3 full batches overshoot on most tasks


@dataclass(eq=False)
class FirstEpoch(Study):
    """The study behind chapter 5: norms and directions of every epoch on eight tasks, for some optimisers.

    Attributes:
        description: what it measures.
        recipes: of finetuning, but for the seed, by optimiser.
    """

    description: str
    recipes: Mapping[str, Settings]

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """One run for each optimiser, seed and task; heads are made from all training images."""
        backbone = load_backbone("pocket", folder=request.data)
        runs = []
        paths = []
        for seed in self.seeds:
            tasks = study_tasks(TASKS, folder=request.data, seed=seed)
            self.data = data_files(tasks, suite=TASKS.suite)
            for task in tasks.values():
                head = prototype_head(backbone, task)
                for name, recipe in self.recipes.items():
                    run = finetune(backbone, head, task, settings=replace(recipe, seed=seed), progress=False)
                    states = [run.state(epoch) for epoch in range(recipe.epochs + 1)]
                    thetas = [torch.cat([part.reshape(-1) for part in state.values()]) for state in states]
                    gradients = [
                        full_batch_gradient(backbone, head, task, state=theta).to(theta.dtype)
                        for theta in thetas
                    ]
                    downhill = [-gradient for gradient in gradients]
                    steps = [after - before for before, after in pairwise(thetas)]
                    vectors = [theta - thetas[0] for theta in thetas[1:]]
                    first, final = steps[0], vectors[-1]
                    geometry = {
                        "gradient_norms": trajectories.norms(gradients),
                        "displacement_norms": trajectories.norms(steps),
                        "task_vector_norms": trajectories.norms(vectors),
                        "cosine_displacement_first": trajectories.cosines_with(steps, first),
                        "cosine_displacement_final": trajectories.cosines_with(steps, final),
                        "cosine_gradient_first": trajectories.cosines_with(downhill, first),
                        "cosine_gradient_final": trajectories.cosines_with(downhill, final),
                        "cosine_vector_final": trajectories.cosines_with(vectors, final),
                    }
                    about = {"optimizer": name, "task": task.name, "seed": seed}
                    runs.append(
                        {
                            **about,
                            **{key: rounded(values) for key, values in geometry.items()},
                            "minibatch_gradient_norms": [
                                round(record["gradient_norm"], 6) for record in run.records
                            ],
                            "train_loss": [round(loss, 6) for loss in run.losses],
                            "val_accuracy": [
                                accuracies(
                                    backbone,
                                    {task.name: head},
                                    {task.name: task},
                                    parameters=theta,
                                    split="val",
                                )[task.name]
                                for theta in thetas
                            ],
                        }
                    )
                    if seed == self.seeds[0]:
                        plane = trajectories.projection([thetas])
                        paths.append(
                            {**about, "xy": rounded(plane.points[0]), "explained": rounded(plane.explained)}
                        )
                    say(f"seed {seed}, {task.name}, {name}")
        self.settings = {
            "backbone": backbone.name,
            "share_of_training_images": TASKS.share,
            "validation_images": TASKS.validation,
            "recipes": {name: asdict(recipe) for name, recipe in self.recipes.items()},
        }
        return {
            "tasks": list(tasks),
            "epochs": EPOCHS,
            "steps_per_epoch": {name: -(-len(task.train_labels) // 32) for name, task in tasks.items()},
            "images": {name: len(task.train_labels) for name, task in tasks.items()},
            "learning_rate": {name: recipe.learning_rate for name, recipe in self.recipes.items()},
            "runs": runs,
            "paths": paths,
        }
