"""What a merge needs: fewer tasks, kin and strangers, tasks with much to gain, heads whose centre follows."""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskvec_mini.benchmarks.encoders.load import load_backbone
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.studies.early_or_late import TWO_RULES, MergingStudy, Suite, experts, make_suite
from taskvec_mini.benchmarks.training.finetune import Run

AGES = (1, 8)
MOST_TO_GAIN = ("gtsrb", "streetchars", "mnist", "rsscn7", "cifar10", "cars", "dtd10")  # in 06_early_or_late
SUBSET_SIZES, SUBSETS = (2, 3, 5), 3


class WhatAMergeNeeds(MergingStudy):
    """The other study behind chapter 6: fewer tasks, kin and strangers, frozen centres, stronger heads."""

    description = (
        "merged accuracy against the number of tasks, their kinship and the head's centre (chapter 6)"
    )

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, one after the other; encoders that the other study finished are read again."""
        backbone, rows = load_backbone("pocket"), []
        for seed in self.seeds:
            suite = make_suite(backbone, options.data, seed)
            self.note(suite, AGES[-1])
            runs = experts(suite, epochs=AGES)
            rows += [row for epoch in AGES for row in _merges(suite, runs, epoch, subsets(list(suite.tasks)))]
            rows += [_frozen(suite, runs, epoch) for epoch in AGES]
        return {"seeds": list(self.seeds), "tasks": list(suite.tasks), "rows": rows}


class MostToGain(MergingStudy):
    """A companion: the tasks whose specialists gained most in the study of all eight, four and more."""

    description = "merged accuracy of the four to seven tasks with most to gain (chapter 6)"

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, with the encoders of the study of all eight."""
        backbone, rows = load_backbone("pocket"), []
        sets = [MOST_TO_GAIN[:size] for size in range(4, 8)]
        for seed in self.seeds:
            suite = make_suite(backbone, options.data, seed)
            self.note(suite, AGES[-1])
            runs = experts(suite, epochs=AGES)
            rows += [row for epoch in AGES for row in _merges(suite, runs, epoch, sets)]
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
        for rule in TWO_RULES:
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
