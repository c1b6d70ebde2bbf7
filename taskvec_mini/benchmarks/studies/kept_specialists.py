"""What else the specialists of `GoodStart` tell: pairs, paths, single readings, and what merges forget.

Their checkpoints and merges are read again where they are finished; only what is new is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec_mini import trajectories
from taskvec_mini.benchmarks.data import SUITES, Task, TextTask, texts
from taskvec_mini.benchmarks.data.suites import data_folder
from taskvec_mini.benchmarks.encoders import Parameters, holding, state_of
from taskvec_mini.benchmarks.evaluation import Split, task_logits
from taskvec_mini.benchmarks.studies.base import Study, StudyRequest, Suite, rounded, say
from taskvec_mini.benchmarks.studies.good_start import GoodStart
from taskvec_mini.benchmarks.training import Run, full_batch_gradient

TOGETHER = 50  # inputs in a pass with gradients: few, for a transformer keeps much for each


@dataclass(eq=False)
class Pairs(Study):
    """Every pair of tasks merged by itself, at one age.

    Attributes:
        description: what it measures.
        specialists: the study whose specialists they are.
        rule: one of `CANDIDATES`.
    """

    description: str
    specialists: GoodStart
    rule: str = "mean"

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        whole = self.specialists
        rows = []
        for seed, suite, runs in whole.every_seed(request, self.seeds):
            self.data = suite.data
            self.settings = {**whole.about(suite), "rule": self.rule, "epoch": 1.0}
            for names in itertools.combinations(runs, 2):
                found = whole.merged(
                    suite, {name: runs[name] for name in names}, age=whole.recipe.parts, rule=self.rule
                )
                rows.append({"seed": seed, "pair": list(names), **found})
                say(f"seed {seed}, {'+'.join(names)}: {mean(found['test'].values()):.3f}")
        return {"seeds": list(self.seeds), "tasks": list(suite.tasks), "epoch": 1.0, "rows": rows}


@dataclass(eq=False)
class Paths(Study):
    """How far specialists move from age to age, and whereto: beside their end, and downhill at the start.

    Attributes:
        description: what it measures.
        specialists: the study whose specialists they are.
    """

    description: str
    specialists: GoodStart

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        whole = self.specialists
        rows = []
        for seed, suite, runs in whole.every_seed(request, self.seeds):
            about = whole.about(suite)
            self.data, self.settings = suite.data, about
            for name, run in runs.items():
                found = suite.kept(f"path_{name}", partial(self._path, suite, run, name), about=about)
                rows.append({"seed": seed, "task": name, **found})
                say(f"seed {seed}, {name}: {found}")
        return {
            "seeds": list(self.seeds),
            "tasks": list(suite.tasks),
            "epochs": [age / whole.recipe.parts for age in whole.ages],
            "rows": rows,
            "parameters": sum(part.numel() for part in state_of(suite.backbone.model).values()),
        }

    def _path(self, suite: Suite, run: Run, name: str) -> dict[str, Any]:
        """Norms and cosines of one specialist; the first pass is the vector after `parts` parts."""
        whole = self.specialists
        vectors = [run.task_vector(age).flat.float() for age in whole.ages]
        steps = [after - before for before, after in pairwise([torch.zeros_like(vectors[0]), *vectors])]
        first, final = vectors[list(whole.ages).index(whole.recipe.parts)], vectors[-1]
        downhill = -full_batch_gradient(
            suite.backbone, suite.heads[name], suite.tasks[name], batch_size=TOGETHER
        ).to(final.dtype)
        compared = {"first": first, "final": final}
        return {
            "task_vector_norms": rounded(trajectories.norms(vectors)),
            "displacement_norms": rounded(trajectories.norms(steps)),
            "cosine_vector_final": rounded(trajectories.cosines_with(vectors, final)),
            "cosine_displacement_first": rounded(trajectories.cosines_with(steps, first)),
            "cosine_downhill": {
                to: rounded(trajectories.cosines_with([downhill], vector))[0]
                for to, vector in compared.items()
            },
            "cosine_sign_downhill": {
                to: rounded(trajectories.cosines_with([downhill.sign()], vector))[0]
                for to, vector in compared.items()
            },
            "gradient_norm": rounded(trajectories.norms([downhill]))[0],
        }


@dataclass(eq=False)
class Forgotten(Study):
    """Which training examples a merge forgets: those that its specialists had early, or those they had late.

    An example is learnt at the first age from which on its specialist has it right at every later age; the
    start is age 0. Examples that the last age has wrong are "never" learnt. Horoi et al. (2025,
    arXiv:2506.14126) explain by such groups why merges of experts that trained long are worse.

    Attributes:
        description: what it measures.
        specialists: the study whose specialists they are.
        rules: whose merges are looked at, at one pass and at the end, with their tuned coefficients.
        examples: of training, a task, at most.
    """

    description: str
    specialists: GoodStart
    rules: Sequence[str] = ("mean", "iso_c")
    examples: int = 600

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        whole = self.specialists
        rows = []
        for seed, suite, runs in whole.every_seed(request, self.seeds):
            self.data = suite.data
            self.settings = {**whole.about(suite), "rules": list(self.rules), "examples": self.examples}
            merges = {
                f"{rule}, {whole.epoch(age)}": {
                    "age": age,
                    "rule": rule,
                    "scaling_coef": found["scaling_coef"],
                }
                for age, rule, found in whole.merges(suite, runs)
                if age in (whole.recipe.parts, whole.ages[-1]) and rule in self.rules
            }
            model = cache(partial(whole.merged_model, suite, runs))  # made once at most
            for name in runs:
                models = {which: partial(model, **merge) for which, merge in merges.items()}
                groups = suite.kept(
                    f"forgotten_{name}",
                    partial(self._groups, suite, runs[name], name, models=models),
                    about={**self.settings, "merges": merges},
                )
                rows += [{"seed": seed, "task": name, **group} for group in groups]
                say(f"seed {seed}, {name}: {[(group['learnt'], group['examples']) for group in groups]}")
        return {
            "seeds": list(self.seeds),
            "tasks": list(suite.tasks),
            "epochs": [age / whole.recipe.parts for age in whole.ages],
            "rows": rows,
        }

    def _groups(
        self, suite: Suite, run: Run, name: str, *, models: Mapping[str, Callable[[], Parameters]]
    ) -> list[dict[str, Any]]:
        """How many examples of one task each group has, how many of them each model has right, and its loss.

        Args:
            suite: the tasks of one seed.
            run: of the specialist.
            name: of the task.
            models: give the parameters of merges, by name.
        """
        whole = self.specialists
        ages = (0, *whole.ages)
        answers: dict[str, Answers] = {}
        history = []
        for age in ages:
            found = answers_of(suite, name, run.state(age) if age else None, limit=self.examples)
            history.append(found.right)
            if age in (0, whole.recipe.parts, whole.ages[-1]):
                answers[f"individual, {whole.epoch(age)}" if age else "start"] = found
        for which, parameters in models.items():
            answers[which] = answers_of(suite, name, parameters(), limit=self.examples)
        learnt = learnt_at(torch.stack(history))
        groups = []
        for place in sorted(set(learnt.tolist())):
            chosen = learnt == place
            groups.append(
                {
                    "learnt": whole.epoch(ages[place]) if place < len(ages) else "never",
                    "examples": int(chosen.sum()),
                    "right": {which: int(found.right[chosen].sum()) for which, found in answers.items()},
                    "loss": {
                        which: round(float(found.loss[chosen].mean()), 4) for which, found in answers.items()
                    },
                }
            )
        return groups


@dataclass(eq=False)
class Readings(Study):
    """What the start, a specialist and the merge read in the same test examples, after one pass.

    Of each task the first examples are kept that the start has wrong and its specialist right, and of these
    `each` that the merge has right too and `each` that it has wrong. Only tasks whose licence allows it.

    Attributes:
        description: what it measures.
        specialists: the study whose specialists they are.
        tasks: whose examples may be shown.
        rule: one of `CANDIDATES`, with its tuned coefficient.
        each: so many of each kind and task, at most.
    """

    description: str
    specialists: GoodStart
    tasks: Sequence[str]
    rule: str = "iso_c"
    each: int = 2
    seeds: tuple[int, ...] = (0,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """One seed: examples, and no statistics."""
        whole = replace(self.specialists, rules=(self.rule,))  # no other merge is looked at
        rows = []
        for seed, suite, runs in whole.every_seed(request, self.seeds):
            self.data = suite.data
            self.settings = {**whole.about(suite), "rule": self.rule, "epoch": 1.0, "each": self.each}
            age = whole.recipe.parts
            found = next(each for at, _, each in whole.merges(suite, runs) if at == age)
            merge = whole.merged_model(
                suite, runs, age=age, rule=self.rule, scaling_coef=found["scaling_coef"]
            )
            for name in self.tasks:
                models = {"start": None, "specialist": runs[name].state(age), "merge": merge}
                rows += [
                    {"seed": seed, **row} for row in self._rows(suite, name, models, folder=request.data)
                ]
                say(f"seed {seed}, {name}: {rows[-1]}")
        return {"seeds": list(self.seeds), "tasks": list(self.tasks), "epoch": 1.0, "rows": rows}

    def _rows(
        self, suite: Suite, name: str, models: Mapping[str, Parameters | None], *, folder: Path | None
    ) -> list[dict[str, Any]]:
        """The chosen examples of one task, each with its class and with what every model takes it for."""
        task = suite.tasks[name]
        read = {
            which: answers_of(suite, name, parameters, part="test", limit=suite.test)
            for which, parameters in models.items()
        }
        learnt = ~read["start"].right & read["specialist"].right
        both, lost = learnt & read["merge"].right, learnt & ~read["merge"].right
        rows = []
        for place in [place for kind in (both, lost) for place in kind.nonzero()[: self.each, 0].tolist()]:
            answers = {which: task.class_names[int(answer.labels[place])] for which, answer in read.items()}
            rows.append(
                {
                    "task": name,
                    "place": place,
                    "class": task.class_names[int(task.part("test")[1][place])],
                    **answers,
                    "example": test_example(task, place, folder=folder),
                }
            )
        return rows


def test_example(task: Task, place: int, *, folder: Path | None) -> Any:
    """A test example as JSON: the text as it was written, or an image as numbers from 0 to 255."""
    if not isinstance(task, TextTask):
        return task.part("test")[0][place].tolist()
    return texts.read_files(task.name, data_folder(SUITES["text"], folder))[1][1].texts[place]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model answers to N examples.

    Attributes:
        labels: its answers (N,).
        right: whether rightly (N,).
        loss: cross-entropy (N,).
    """

    labels: Tensor
    right: Tensor
    loss: Tensor


def answers_of(
    suite: Suite, name: str, parameters: Parameters | None, *, part: Split = "train", limit: int
) -> Answers:
    """What a model answers to the first examples of a task, by its frozen head, centred as in judging.

    Args:
        suite: the tasks of one seed.
        name: of the task.
        parameters: of the model; None for the start.
        part: of the task.
        limit: examples, at most.
    """
    with holding(suite.backbone.model, parameters):
        logits, labels = task_logits(
            suite.backbone,
            suite.heads[name],
            suite.tasks[name],
            split=part,
            limit=limit,
            recentre=suite.recentre,
        )
    found = logits.argmax(1)
    return Answers(
        labels=found, right=found == labels, loss=F.cross_entropy(logits, labels, reduction="none")
    )


def learnt_at(right: Tensor) -> Tensor:
    """The first of A ages (N,) from which on an example is right at every later one; A if the last is wrong.

    Args:
        right: by age and example (A, N).

    Example:
        >>> right = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]]).bool()
        >>> learnt_at(right)
        tensor([0, 1, 2, 3])
    """
    return (right.flip(0).int().cummin(0).values == 0).sum(0)
