"""What a merge needs: fewer tasks, kin and strangers, heads whose centre follows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.studies.base import (
    IMAGES,
    RECIPE,
    TWO_RULES,
    Study,
    StudyRequest,
    individual_runs,
    make_suite,
    say,
    suite_record,
)

AGES = (1, 8)  # epochs after which merges are made
SUBSET_SIZES, SUBSETS = (2, 3, 5), 3


@dataclass(eq=False)
class Subsets(Study):
    """Merges of some of the tasks, with the encoders of all eight.

    All eight are also merged and judged by heads whose centre stays where the pretrained one was.

    Attributes:
        description: what it measures.
        subsets: the names in each merge.
    """

    description: str
    subsets: Sequence[Sequence[str]]

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other; encoders that `EarlyOrLate` finished are read again."""
        backbone = load_backbone("pocket", folder=request.data)
        rows = []
        for seed in self.seeds:
            suite = make_suite(backbone, IMAGES, folder=request.data, seed=seed)
            self.settings, self.data = suite_record(suite, recipe=RECIPE, epochs=AGES[-1], rules=TWO_RULES)
            runs = individual_runs(suite, recipe=RECIPE, epochs=AGES)
            merges = [
                ("moved", epoch, tuple(names), rule)
                for epoch in AGES
                for names in self.subsets
                for rule in TWO_RULES
            ]
            merges += [("frozen", epoch, tuple(suite.tasks), "mean") for epoch in AGES]
            judges = {"moved": suite, "frozen": replace(suite, recentre=0)}
            zero_shot = {centre: judge.scores(None, judge.tasks) for centre, judge in judges.items()}
            individual: dict[tuple[str, int, str], float] = {}
            for centre, epoch, names, rule in merges:
                judge = judges[centre]
                for name in names:
                    if (centre, epoch, name) not in individual:
                        scores = judge.scores(runs[name].state(epoch), [name])
                        individual[centre, epoch, name] = scores[name]
                found = judge.merge(rule, {name: runs[name].task_vector(epoch) for name in names})
                rows.append(
                    {
                        "seed": seed,
                        "epoch": epoch,
                        "rule": rule,
                        "subset": list(names),
                        "centre": centre,
                        **found,
                        "zero_shot": {name: zero_shot[centre][name] for name in names},
                        "individual": {name: individual[centre, epoch, name] for name in names},
                    }
                )
                say(f"seed {seed}, epoch {epoch}, {'+'.join(names)}, {rule}, centre {centre}")
        return {"seeds": list(self.seeds), "tasks": list(suite.tasks), "rows": rows}


def some_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Three sets of two, of three and of five tasks each: kin first, then drawn at random, once for all."""
    kin = [("mnist", "streetchars"), ("mnist", "streetchars", "gtsrb")]
    source = random.Random(0)
    chosen = []
    for size in SUBSET_SIZES:
        every = list(itertools.combinations(names, size))
        drawn = [names for names in kin if len(names) == size]
        drawn += [names for names in source.sample(every, len(every)) if names not in drawn]
        chosen += drawn[:SUBSETS]
    return chosen
