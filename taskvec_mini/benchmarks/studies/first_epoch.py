"""Does the first epoch lead? Norms and directions of every epoch, task by task, under some optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from taskvec_mini import trajectories
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.studies.base import (
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    each_suite,
    rounded,
    say,
)
from taskvec_mini.benchmarks.studies.task_choice import IMAGE_EPOCH, IMAGE_SUITE, TaskChoice, validated
from taskvec_mini.benchmarks.training import Settings, Speed, finetune, full_batch_gradient

EPOCHS = 6
TASKS = SuiteSettings(share=0.2, shots=None, recentre=0)
RECIPES = {  # one rate for all tasks; "gd" makes one step an epoch, so its rate is far higher
    "gd": Settings(optimizer="gd", learning_rate=0.005, epochs=EPOCHS, batch_size=500),
    "sgd": Settings(optimizer="sgd", learning_rate=0.002, epochs=EPOCHS, batch_size=32),
    "adamw": Settings(optimizer="adamw", learning_rate=3e-4, epochs=EPOCHS, batch_size=32),
}
SLOWER = {"gd": replace(RECIPES["gd"], learning_rate=5e-4)}  # at 5e-3 full batches overshoot on most tasks
FEW_CLASSES = ("mnist", "rsscn7", "dtd10", "cars", "scenes15", "cifar10")  # 500 images hold all of them
DESCENT_IMAGES = replace(IMAGE_SUITE, tasks=FEW_CLASSES, limit=500, recentre=0, runs="descent")
IMAGE_RECIPES = {  # for a well-pretrained encoder; of both the rate that is best in `05_efficientnet_rates`
    "gd": replace(IMAGE_EPOCH, optimizer="gd", learning_rate=3e-3, epochs=4, batch_size=100, centre="frozen"),
    "sgd": replace(IMAGE_EPOCH, optimizer="sgd", learning_rate=3e-3, epochs=4, centre="frozen"),
}
IMAGE_RATES = {  # by what specialists reach in the end
    name: TaskChoice(
        "one of the optimisers",
        backbone="efficientnet-lite0",
        tasks=DESCENT_IMAGES,
        recipe=recipe,
        rates=(1e-3, 3e-3, 0.01, 0.03, 0.1),
    )
    for name, recipe in IMAGE_RECIPES.items()
}


@dataclass(eq=False)
class FirstEpoch(Study):
    """The study behind chapter 5: norms and directions of every epoch of each task, for some optimisers.

    Heads are made from all training examples and stay. A run that is finished is kept beside the runs and
    read again.

    Attributes:
        description: what it measures.
        recipes: of finetuning, but for the seed, by optimiser; all with one number of epochs.
        backbone: the name of the encoder.
        tasks: which tasks, and how much of them.
        mini_batch: the examples in a step by which the steps of an epoch are counted.
    """

    description: str
    recipes: Mapping[str, Settings]
    backbone: str = "pocket"
    tasks: SuiteSettings = TASKS
    mini_batch: int = 32

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """One run for each optimiser, seed and task."""
        backbone = load_backbone(self.backbone, folder=request.data)
        largest = max(recipe.batch_size for recipe in self.recipes.values())  # of which a gradient is made
        runs = []
        paths = []
        for seed, suite in each_suite(self, backbone, self.tasks, folder=request.data):
            about = {"backbone": backbone.name, **suite.about}
            self.settings = {
                **about,
                "recipes": {name: asdict(recipe) for name, recipe in self.recipes.items()},
            }
            for task in suite.tasks:
                for name, recipe in self.recipes.items():
                    own = replace(recipe, seed=seed)
                    found = suite.kept(
                        f"first_epoch_{task}_{name}",
                        partial(_path, suite, task, own, batch_size=largest),
                        about={**about, "recipe": asdict(own)},
                    )
                    which = {"optimizer": name, "task": task, "seed": seed}
                    runs.append({**which, **found["run"]})
                    if seed == self.seeds[0]:
                        paths.append({**which, **found["path"]})
                    say(f"{self.backbone}, seed {seed}, {task}, {name}")
        sizes = suite.sizes()
        (counts,) = sizes.values()
        return {
            "tasks": list(suite.tasks),
            "epochs": max(recipe.epochs for recipe in self.recipes.values()),
            "steps_per_epoch": {name: math.ceil(count / self.mini_batch) for name, count in counts.items()},
            **sizes,
            "learning_rate": {name: recipe.learning_rate for name, recipe in self.recipes.items()},
            "runs": runs,
            "paths": paths,
        }


def _path(suite: Suite, name: str, recipe: Settings, *, batch_size: int) -> dict[str, Any]:
    """One run: the geometry of its epochs, and its path in the plane of most variance."""
    backbone, head, task = suite.backbone, suite.heads[name], suite.tasks[name]
    run = finetune(
        backbone, head, task, settings=recipe, speed=Speed(precision=suite.precision), progress=False
    )
    states = [run.state(epoch) for epoch in range(recipe.epochs + 1)]
    thetas = [torch.cat([part.reshape(-1) for part in state.values()]) for state in states]
    gradients = [
        full_batch_gradient(backbone, head, task, state=theta, batch_size=batch_size).to(theta.dtype)
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
    plane = trajectories.projection([thetas])
    return {
        "run": {
            **{key: rounded(values) for key, values in geometry.items()},
            "minibatch_gradient_norms": [round(record["gradient_norm"], 6) for record in run.records],
            "train_loss": [round(loss, 6) for loss in run.losses],
            "val_accuracy": [validated(suite, [name], theta)[name] for theta in thetas],
        },
        "path": {"xy": rounded(plane.points[0]), "explained": rounded(plane.explained)},
    }
