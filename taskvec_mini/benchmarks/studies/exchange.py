"""Rounds whose tasks exchange gradients, beside plain rounds and joint training, for three optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.studies.base import (
    IMAGES,
    RECIPE,
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    each_suite,
    say,
)
from taskvec_mini.benchmarks.studies.rounds import alternate_tasks, round_record
from taskvec_mini.benchmarks.studies.task_choice import TEXT_EPOCH, TEXT_SUITE, TEXT_TASKS, TaskChoice
from taskvec_mini.benchmarks.training import Settings, Speed, finetune_jointly

FROZEN = replace(RECIPE, centre="frozen")  # a batch of its own centre has no full gradient to exchange
IMAGES_OF_FOUR = replace(IMAGES, tasks=IMAGES.tasks[:4], share=1.0, limit=1000)
FEW_CLASSES = tuple(name for name in TEXT_TASKS if name != "banking77")  # 500 texts do not hold its 77
TEXTS_OF_FOUR = replace(TEXT_SUITE, tasks=FEW_CLASSES[:4], limit=500, test=200)
SGD_RATES = (
    3e-4,
    1e-3,
    3e-3,
    0.01,
    0.03,
    0.1,
)  # in `10_exchange_rates`; for momentum on images a tenth
RECIPES: Mapping[str, Settings] = {  # the rates of SGD are the best of that record
    "sgd": replace(FROZEN, optimizer="sgd", learning_rate=1e-3),
    "momentum": replace(FROZEN, optimizer="sgd", momentum=0.9, learning_rate=3e-4),
    "adamw": FROZEN,
}
TEXT_RECIPES: Mapping[str, Settings] = {
    "sgd": replace(TEXT_EPOCH, optimizer="sgd", learning_rate=0.03),
    "momentum": replace(TEXT_EPOCH, optimizer="sgd", momentum=0.9, learning_rate=0.01),
    "adamw": TEXT_EPOCH,
}
RATES: Mapping[str, TaskChoice] = {  # the rates of descent, by what specialists reach after one epoch
    "images, sgd": TaskChoice(
        "one of the optimisers",
        backbone="pocket",
        tasks=IMAGES_OF_FOUR,
        recipe=replace(RECIPES["sgd"], epochs=1),
        rates=SGD_RATES,
    ),
    "images, momentum": TaskChoice(
        "one of the optimisers",
        backbone="pocket",
        tasks=IMAGES_OF_FOUR,
        recipe=replace(RECIPES["momentum"], epochs=1),
        rates=tuple(rate / 10 for rate in SGD_RATES),
    ),
    "texts, sgd": TaskChoice(
        "one of the optimisers", tasks=TEXTS_OF_FOUR, recipe=TEXT_RECIPES["sgd"], rates=SGD_RATES
    ),
}


@dataclass(eq=False)
class Exchange(Study):
    """What one exchanged gradient a round buys on encoders, merged by the mean with coefficient 1.

    For every optimiser a budget of epochs is spent in one round, in two and in more, without and with an
    exchange, and on joint training; each with its gradients and with the numbers that it sends. (A round with
    an exchange sends as much as two without.) A row that is finished is kept beside the runs and read again.
    Corrected merges belong to full-batch descent, see `corrected`.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        tasks: which tasks, and how models are judged.
        recipes: of finetuning, by the name of the optimiser, but for epochs and seed.
        budget: epochs on every task.
        splits: into how many rounds it is split.
    """

    description: str
    backbone: str = "pocket"
    tasks: SuiteSettings = IMAGES_OF_FOUR
    recipes: Mapping[str, Settings] = field(default_factory=lambda: RECIPES)
    budget: int = 4
    splits: tuple[int, ...] = (1, 2, 4)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone, folder=request.data)
        start: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for seed, suite in each_suite(self, backbone, self.tasks, folder=request.data):
            self.settings = {
                "backbone": self.backbone,
                **suite.about,
                "recipes": {name: asdict(recipe) for name, recipe in self.recipes.items()},
                "budget": self.budget,
                "rule": "mean",
                "scaling_coef": 1.0,
            }
            start[str(seed)] = suite.scores(None, suite.tasks)
            for name, recipe in self.recipes.items():
                own = replace(recipe, epochs=self.budget, seed=seed)
                about = {"backbone": self.backbone, **suite.about, "recipe": asdict(own)}
                joint = suite.kept(f"exchange_{name}_joint", partial(_joint, suite, own), about=about)
                rows.append({"seed": seed, "optimizer": name, "training": "joint", **joint})
                for rounds in self.splits:
                    for exchange in (False, True):
                        found = suite.kept(
                            f"exchange_{name}_{rounds}_{exchange}",
                            partial(_alternated, suite, own, rounds=rounds, exchange=exchange),
                            about=about,
                        )
                        training = {"training": "rounds", "rounds": rounds, "exchange": exchange}
                        rows.append({"seed": seed, "optimizer": name, **training, **found})
                        say(f"{self.backbone}, seed {seed}, {name}: {rounds} rounds, exchange {exchange}")
        return {
            "budget": self.budget,
            "splits": list(self.splits),
            "seeds": list(self.seeds),
            "start": start,
            "rows": rows,
            "tasks": list(suite.tasks),
            **suite.sizes(),
            "parameters": sum(part.numel() for part in state_of(backbone.model).values()),
        }


def _joint(suite: Suite, recipe: Settings) -> dict[str, Any]:
    """Joint training; it exchanges a gradient in each of its steps, which the row counts."""
    run = finetune_jointly(
        suite.backbone,
        suite.heads,
        suite.tasks,
        settings=recipe,
        keep=[recipe.epochs],
        speed=Speed(precision=suite.precision),
        progress=False,
    )
    return {
        "test": suite.scores(run.state(), suite.tasks),
        "steps": sum(record["steps"] for record in run.records),
    }


def _alternated(suite: Suite, recipe: Settings, *, rounds: int, exchange: bool) -> dict[str, Any]:
    """Every round of one split of the budget; the last stands also by itself, as "test"."""
    history, _ = alternate_tasks(
        suite.backbone,
        suite.heads,
        suite.tasks,
        settings=replace(recipe, epochs=recipe.epochs // rounds),
        rounds=rounds,
        merge=merging.mean,
        measure=lambda theta: suite.scores(theta, suite.tasks),
        control_variates=exchange,
        precision=suite.precision,
    )
    return {"test": dict(history[-1].measured), "history": [round_record(each) for each in history]}
