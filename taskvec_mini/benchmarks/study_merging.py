"""Merge early or late? Eight tasks, six rules, four lengths of training; and what a merge needs."""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from taskvec_mini import merging
from taskvec_mini.benchmarks import study_data
from taskvec_mini.benchmarks.backbones import Backbone, load_backbone
from taskvec_mini.benchmarks.evaluation import accuracies, forget_prepared_images, sweep
from taskvec_mini.benchmarks.finetuning import Run, Settings, finetune, finetune_jointly
from taskvec_mini.benchmarks.heads import Head, prototype_head
from taskvec_mini.benchmarks.image_tasks import ImageTask
from taskvec_mini.benchmarks.parameters import state_of
from taskvec_mini.vectors import TaskVector

EPOCHS = (1, 2, 4, 8)
SHARE, SHOTS, RECENTRE, TEST = 0.3, 5, 100, 800
RECIPE = Settings(learning_rate=3e-4, epochs=EPOCHS[-1], batch_size=64, centre="batch")
MOST_TO_GAIN = ("gtsrb", "streetchars", "mnist", "rsscn7", "cifar10", "cars", "dtd10")  # in 06_early_or_late
SUBSET_SIZES, SUBSETS = (2, 3, 5), 3
RUNS = Path("local/studies")  # the finetuned encoders, shared by both studies: a finished run is read again


def _dare(vectors: Sequence[TaskVector]) -> TaskVector:
    return merging.dare(vectors, drop_rate=0.9, generator=torch.Generator().manual_seed(0))


RULES: dict[str, tuple[Callable[[Sequence[TaskVector]], TaskVector], tuple[float, ...]]] = {
    "mean": (merging.mean, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),  # 1 is weight averaging, 8 the plain sum
    "ties": (merging.ties, (0.25, 0.5, 1.0, 1.5, 2.0)),
    "dare": (_dare, (0.06, 0.12, 0.2, 0.3, 0.45)),
    "breadcrumbs": (merging.breadcrumbs, (0.12, 0.25, 0.5, 0.75, 1.0)),
    "tsv": (partial(merging.tsv, kernels="matrix"), (0.25, 0.5, 0.75, 1.0, 1.5)),
    "regmean_from_vectors": (merging.regmean_from_vectors, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
}


@dataclass
class Suite:
    """The tasks of one seed, their heads and the encoder all start from."""

    backbone: Backbone
    tasks: dict[str, ImageTask]
    heads: dict[str, Head]
    seed: int

    def scores(self, parameters: Any, names: Iterable[str], *, recentre: int = RECENTRE) -> dict[str, float]:
        """Test accuracy of each named task."""
        chosen = {name: self.tasks[name] for name in names}
        found = accuracies(
            self.backbone, self.heads, chosen, parameters=parameters, limit=TEST, recentre=recentre
        )
        return {name: round(score, 5) for name, score in found.items()}

    def merge(
        self, rule: str, vectors: Mapping[str, TaskVector], *, recentre: int = RECENTRE
    ) -> dict[str, Any]:
        """Merge under a rule, tune λ on validation images, and measure on test images."""
        combine, coefs = RULES[rule]
        merged, start = combine(list(vectors.values())), state_of(self.backbone.model)
        chosen = {name: self.tasks[name] for name in vectors}
        table = sweep(
            self.backbone, self.heads, chosen,
            pretrained=start, merged=merged, scaling_coefs=coefs, recentre=recentre,
        ).mean(1)  # fmt: skip
        best = int(table.argmax())
        test = self.scores(merged.apply_to(start, coefs[best]), vectors, recentre=recentre)
        return {"scaling_coef": coefs[best], "val_mean": round(float(table[best]), 5), "test": test}


def make_suite(backbone: Backbone, folder: Path | None, seed: int, *, shots: int | None = SHOTS) -> Suite:
    """The eight tasks with their frozen heads."""
    forget_prepared_images()
    tasks = study_data.suite(folder, seed, SHARE)
    heads = {name: prototype_head(backbone, task, shots=shots) for name, task in tasks.items()}
    return Suite(backbone, tasks, heads, seed)


def experts(suite: Suite, *, tag: str = "pocket", recipe: Settings = RECIPE) -> dict[str, Run]:
    """The finetuned encoder of each task, from its folder where it is finished."""
    runs = {}
    for name, task in suite.tasks.items():
        runs[name] = finetune(
            suite.backbone, suite.heads[name], task,
            settings=study_data.seeded(recipe, suite.seed), keep=[e for e in EPOCHS if e <= recipe.epochs],
            folder=RUNS / tag / f"seed{suite.seed}" / name, progress=False,
        )  # fmt: skip
        study_data.say(f"{tag}, seed {suite.seed}: {name} finetuned")
    return runs


class _Study:
    seeds = study_data.SEEDS
    device = "cpu"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.data: dict[str, str] = {}

    def _note(self, suite: Suite) -> None:
        self.settings, self.data = study_data.describe(
            {"adamw": RECIPE}, suite.backbone, suite.tasks, share=SHARE
        )
        grids = {rule: list(coefs) for rule, (_, coefs) in RULES.items()}
        self.settings |= {"shots": SHOTS, "recentre": RECENTRE, "test_images": TEST, "scaling_coefs": grids}


class EarlyOrLate(_Study):
    """The study behind chapter 6: every rule after 1, 2, 4 and 8 epochs, beside its references."""

    description = "merged accuracy of eight tasks against epochs, rule by rule, with references (chapter 6)"

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone("pocket")
        results: dict[str, Any] = {"epochs": list(EPOCHS), "seeds": list(self.seeds), "rules": list(RULES)}
        results |= {"zero_shot": {}, "individual": {}, "joint": {}, "merged": [], "grid": [], "cross": {}}
        for seed in self.seeds:  # all encoders first, so that the other study can begin
            experts(make_suite(backbone, options.data, seed))
        for seed in self.seeds:
            suite = make_suite(backbone, options.data, seed)
            self._note(suite)
            self._references(suite, experts(suite), results)
        results["tasks"] = list(suite.tasks)
        results["images"] = {name: len(task.train_labels) for name, task in suite.tasks.items()}
        return results

    def _references(self, suite: Suite, runs: dict[str, Run], results: dict[str, Any]) -> None:
        seed = str(suite.seed)
        results["zero_shot"][seed] = suite.scores(None, suite.tasks)
        together = finetune_jointly(
            suite.backbone, suite.heads, suite.tasks, settings=study_data.seeded(RECIPE, suite.seed),
            keep=EPOCHS, folder=RUNS / "pocket" / f"seed{seed}" / "joint", progress=False,
        )  # fmt: skip
        individual, joint = {}, {}
        for epoch in EPOCHS:
            individual[str(epoch)] = {
                name: suite.scores(run.state(epoch), [name])[name] for name, run in runs.items()
            }
            joint[str(epoch)] = suite.scores(together.state(epoch), suite.tasks)
            vectors = {name: run.task_vector(epoch) for name, run in runs.items()}
            for rule in RULES:
                found = {"seed": suite.seed, "epoch": epoch, "rule": rule, **suite.merge(rule, vectors)}
                results["merged"].append(found)
                study_data.say(f"seed {seed}, epoch {epoch}, {rule}: {sum(found['test'].values()) / 8:.3f}")
            results["grid"] += _grid(suite, epoch, vectors)
        results["individual"][seed], results["joint"][seed] = individual, joint
        results["cross"][seed] = _cross(suite, runs)


def _grid(suite: Suite, epoch: int, vectors: Mapping[str, TaskVector]) -> list[dict[str, Any]]:
    """Test accuracies over scaling coefficients of the mean, for the chapter's slider; first seed only."""
    if suite.seed != study_data.SEEDS[0]:
        return []
    merged, start = merging.mean(vectors.values()), state_of(suite.backbone.model)
    coefs = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    table = sweep(
        suite.backbone, suite.heads, suite.tasks,
        pretrained=start, merged=merged, scaling_coefs=coefs, split="test", limit=TEST, recentre=RECENTRE,
    )  # fmt: skip
    return [
        {"seed": suite.seed, "epoch": epoch, "scaling_coef": coef,
         "test": {name: round(score, 5) for name, score in zip(suite.tasks, row, strict=True)}}
        for coef, row in zip(coefs, table.tolist(), strict=True)
    ]  # fmt: skip


def _cross(suite: Suite, runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Interference: what half of each task's last vector, by itself, does to every task's test accuracy."""
    start = state_of(suite.backbone.model)
    base = suite.scores(None, suite.tasks)
    rows = {}
    for name, run in runs.items():
        found = suite.scores(run.task_vector().apply_to(start, 0.5), suite.tasks)
        rows[name] = {other: round(found[other] - base[other], 5) for other in found}
    return rows


class WhatAMergeNeeds(_Study):
    """The other study behind chapter 6: fewer tasks, kin and strangers, frozen centres, stronger heads."""

    description = (
        "merged accuracy against the number of tasks, their kinship and the head's centre (chapter 6)"
    )

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, one after the other; encoders that the other study finished are read again."""
        backbone, rows = load_backbone("pocket"), []
        for seed in self.seeds:
            suite = make_suite(backbone, options.data, seed)
            self._note(suite)
            runs = experts(suite)
            rows += [
                row for epoch in (1, 8) for row in _merges(suite, runs, epoch, subsets(list(suite.tasks)))
            ]
            rows += [_frozen(suite, runs, epoch) for epoch in (1, 8)]
        return {"seeds": list(self.seeds), "tasks": list(suite.tasks), "rows": rows}


class MostToGain(_Study):
    """A companion: the tasks whose specialists gained most in the study of all eight, four and more."""

    description = "merged accuracy of the four to seven tasks with most to gain (chapter 6)"

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, with the encoders of the study of all eight."""
        backbone, rows = load_backbone("pocket"), []
        sets = [MOST_TO_GAIN[:size] for size in range(4, 8)]
        for seed in self.seeds:
            suite = make_suite(backbone, options.data, seed)
            self._note(suite)
            runs = experts(suite)
            rows += [row for epoch in (1, 8) for row in _merges(suite, runs, epoch, sets)]
        return {"seeds": list(self.seeds), "tasks": list(suite.tasks), "rows": rows}


def _merges(
    suite: Suite, runs: Mapping[str, Run], epoch: int, sets: Iterable[Sequence[str]]
) -> Iterable[dict[str, Any]]:
    """Merges of a few tasks; the sets are the same for every seed."""
    zero, last = suite.scores(None, suite.tasks), dict[str, float]()
    for names in sets:
        vectors = {name: runs[name].task_vector(epoch) for name in names}
        for name in names:
            last[name] = last.get(name) or suite.scores(runs[name].state(epoch), [name])[name]
        for rule in ("mean", "regmean_from_vectors"):
            found = suite.merge(rule, vectors)
            study_data.say(f"seed {suite.seed}, epoch {epoch}, {'+'.join(names)}, {rule}")
            yield {
                "seed": suite.seed, "epoch": epoch, "rule": rule, "subset": list(names), "centre": "moved",
                **found, "zero_shot": {n: zero[n] for n in names}, "individual": {n: last[n] for n in names},
            }  # fmt: skip


def _frozen(suite: Suite, runs: Mapping[str, Run], epoch: int) -> dict[str, Any]:
    """All eight merged by the mean, judged by heads whose centre stays where the pretrained one was."""
    vectors = {name: run.task_vector(epoch) for name, run in runs.items()}
    found = suite.merge("mean", vectors, recentre=0)
    zero = suite.scores(None, suite.tasks, recentre=0)
    single = {n: suite.scores(run.state(epoch), [n], recentre=0)[n] for n, run in runs.items()}
    return {
        "seed": suite.seed, "epoch": epoch, "rule": "mean", "subset": list(suite.tasks), "centre": "frozen",
        **found, "zero_shot": zero, "individual": single,
    }  # fmt: skip


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Three sets of two, of three and of five tasks each: kin first, then drawn at random."""
    kin = [("mnist", "streetchars"), ("mnist", "streetchars", "gtsrb")]
    source, chosen = random.Random(0), []
    for size in SUBSET_SIZES:
        every = list(itertools.combinations(names, size))
        drawn = [names for names in kin if len(names) == size]
        drawn += [names for names in source.sample(every, len(every)) if names not in drawn]
        chosen += drawn[:SUBSETS]
    return chosen
