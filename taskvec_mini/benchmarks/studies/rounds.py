"""Where to spend a budget of epochs: one merge, or a merge after every few; beside joint training."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from taskvec_mini import alternating
from taskvec_mini.benchmarks.encoders.load import load_backbone
from taskvec_mini.benchmarks.encoders.parameters import state_of, write_parameters
from taskvec_mini.benchmarks.encoders.protocols import Task
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies.early_or_late import (
    RECIPE,
    RULES,
    MergingStudy,
    Suite,
    experts,
    folder_of,
    make_suite,
    together,
)
from taskvec_mini.benchmarks.studies.task_rounds import TaskRounds
from taskvec_mini.benchmarks.training.finetune import Run, Settings, finetune_jointly
from taskvec_mini.rounds import Round
from taskvec_mini.vectors import TaskVector

BUDGET = 8  # epochs on every task, however they are split into rounds
SPLITS = (1, 2, 4, 8)  # rounds


@dataclass(eq=False)
class Rounds(MergingStudy):
    """The study behind chapter 7: every split of the budget under one rule, and joint training.

    Between rounds the rule's vector is taken as it is (λ = 1), for which no images are needed. The last
    merge is measured so, and with λ tuned on validation images as every one-shot merge is.
    """

    description: str
    backbone: str = "pocket"
    recipe: Settings = RECIPE
    budget: int = BUDGET
    splits: Sequence[int] = SPLITS
    rule: str = "mean"
    post_hoc: bool = False
    make: Callable[..., Suite] = make_suite

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone)
        results: dict[str, Any] = {"budget": self.budget, "splits": list(self.splits), "rule": self.rule}
        results |= {"seeds": list(self.seeds), "zero_shot": {}, "individual": {}, "joint": {}, "rounds": []}
        for seed in self.seeds:
            suite = self.make(backbone, options.data, seed)
            self.note(suite, self.budget, recipe=self.recipe, rules=(self.rule,))
            results["zero_shot"][str(seed)] = suite.scores(None, suite.tasks)
            results["individual"][str(seed)], results["joint"][str(seed)] = self._references(suite)
            for rounds in self.splits:
                results["rounds"].append({"seed": seed, "rounds": rounds, **self._split(suite, rounds)})
                study_data.say(f"{self.rule}, seed {seed}: {rounds} rounds")
            if self.post_hoc:
                results.setdefault("post_hoc", []).append({"seed": seed, **self._post_hoc(suite)})
        results["tasks"] = list(suite.tasks)
        results |= suite.sizes()
        results["parameters"] = sum(part.numel() for part in state_of(backbone.model).values())
        return results

    def _references(self, suite: Suite) -> tuple[dict[str, float], dict[str, float]]:
        runs = self._experts(suite)
        single = {name: suite.scores(run.state(), [name])[name] for name, run in runs.items()}
        joint = together(suite, recipe=self.recipe, epochs=(self.budget,))
        return single, suite.scores(joint.state(), suite.tasks)

    def _experts(self, suite: Suite) -> dict[str, Run]:
        """What the first rounds will read: the encoders at the end of the budget and of every share of it."""
        epochs = sorted({self.budget, *(self.budget // rounds for rounds in self.splits)})
        return experts(suite, recipe=self.recipe, epochs=epochs)

    def _split(self, suite: Suite, rounds: int) -> dict[str, Any]:
        """One split of the budget: every merge as it is, and the last one tuned."""
        settings = replace(self.recipe, epochs=self.budget // rounds, seed=suite.seed)
        place = folder_of(suite)
        each = TaskRounds(
            suite.backbone, suite.heads, suite.tasks, settings,
            folder=place / "rounds" / f"{self.rule}_{rounds}", first_round=place,
        )  # fmt: skip
        history, last = self._rounds(suite, each, rounds)
        before = dict(TaskVector(history[-2].theta, each.layout).items())
        tuned = suite.tuned(before, last, RULES[self.rule][1], names=suite.tasks)
        return {"epochs": settings.epochs, "history": [_told(here) for here in history], "tuned": tuned}

    def _post_hoc(self, suite: Suite) -> dict[str, Any]:
        """One merge of finished encoders, tuned; then rounds of one epoch on its validation images alone.

        Beside them stands joint training on the same images from the same parameters.
        """
        vectors = [run.task_vector() for run in self._experts(suite).values()]
        merged, start = RULES[self.rule][0](vectors), state_of(suite.backbone.model)
        tuned = suite.tuned(start, merged, RULES[self.rule][1], names=suite.tasks)
        model = copy.deepcopy(suite.backbone.model)
        write_parameters(model, merged.apply_to(start, tuned["scaling_coef"]))
        backbone = replace(suite.backbone, name=f"{suite.backbone.name}-merged", model=model)
        few = {name: OnValidation(task) for name, task in suite.tasks.items()}
        recipe = replace(self.recipe, epochs=1, seed=suite.seed)
        history, _ = self._rounds(suite, TaskRounds(backbone, suite.heads, few, recipe), self.budget)
        settings = replace(recipe, epochs=self.budget)
        joint = finetune_jointly(
            backbone, suite.heads, few, settings=settings, keep=[self.budget], progress=False
        )
        scores = suite.scores(joint.state(), suite.tasks)
        return {"tuned": tuned, "history": [_told(here) for here in history], "joint": scores}

    def _rounds(self, suite: Suite, each: TaskRounds, rounds: int) -> tuple[list[Round], TaskVector]:
        """All rounds, with test accuracies at every merge, and the vector that the last round merged to."""
        rule, merges = alternating.matrix_rule(RULES[self.rule][0], layout=each.layout), list[Tensor]()

        def merge(vectors: Tensor) -> Tensor:
            merges[:] = [rule(vectors)]
            return merges[0]

        history = alternating.alternate(
            each.losses, each.start, rounds=rounds, epochs=each.settings.epochs,
            finetune=each.finetune, merge=merge,
            measure=lambda theta: suite.scores(theta, suite.tasks),
        )  # fmt: skip
        return list(history), TaskVector(merges[0], each.layout)


def _told(here: Round) -> dict[str, Any]:
    """A round as its record holds it."""
    angles = {
        "mean_cosine": here.mean_cosine, "mean_cosine_from_pretrained": here.mean_cosine_from_pretrained
    }  # fmt: skip
    return {
        "round": here.number,
        "test": dict(here.measured),
        "mean_loss": round(here.mean_loss, 6),
        "norms": [round(norm, 5) for norm in here.norms],
        **{name: round(value, 5) for name, value in angles.items() if math.isfinite(value)},
        "gradient_evaluations": here.gradient_evaluations,
        "floats_communicated": here.floats_communicated,
    }


@dataclass(frozen=True, eq=False)
class OnValidation:
    """A task that trains on its validation part: all that is left where the data of the experts are gone."""

    task: Task

    @property
    def name(self) -> str:
        """That of the task."""
        return self.task.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the task."""
        return self.task.class_names

    @property
    def sha256(self) -> str:
        """That of the task."""
        return self.task.sha256

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Inputs and labels; "train" gives those of "val"."""
        return self.task.part("val" if part == "train" else part)
