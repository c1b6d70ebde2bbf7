"""Merging from a good start: what a merge keeps of its specialists, rule by rule and age by age.

Which tasks enter, and at which rate, was decided before (`task_choice`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import mean
from typing import Any

import torch

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import load_backbone, state_of
from taskvec_mini.benchmarks.heads import linear_probe
from taskvec_mini.benchmarks.studies.base import (
    Study,
    StudyRequest,
    Suite,
    SuiteSettings,
    first_examples,
    individual_runs,
    joint_run,
    make_suite,
    say,
)
from taskvec_mini.benchmarks.studies.task_choice import TEXT_EPOCH, TEXT_SUITE
from taskvec_mini.benchmarks.training import Run, Settings
from taskvec_mini.vectors import TaskVector

PARTS = 4  # of a pass: checkpoints at a quarter and at half of the first epoch
TEXT_SETTINGS = replace(TEXT_EPOCH, epochs=4 * PARTS, parts=PARTS)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A merging rule with its options.

    Attributes:
        rule: its name in `merging.RULES`.
        first: the coefficient where the search begins at the first age, one of `SCALING_COEFS`; at a later
            age it begins at the best of the age before.
        options: of the rule.
        by_depth: LiNeS (`merging.scale_by_depth`): the first block keeps the factor that makes the merge as
            large as the mean, and the coefficient is what the factor of the last block has more.
    """

    rule: str
    first: float
    options: dict[str, Any] = field(default_factory=dict)
    by_depth: bool = False


SCALING_COEFS = (0.0, *(round(10 ** (step / 8), 4) for step in range(-12, 13)))  # eight to each factor of ten
CANDIDATES = {  # by the name in the record
    "mean": Candidate(rule="mean", first=3.1623),
    "mean_by_depth": Candidate(rule="mean", first=1.7783, by_depth=True),
    "ties": Candidate(rule="ties", first=1.0),
    "dare": Candidate(rule="dare", first=0.4217, options={"drop_rate": 0.9}),
    "breadcrumbs": Candidate(rule="breadcrumbs", first=0.7499),
    "consensus": Candidate(rule="consensus", first=0.5623),
    "tsv": Candidate(rule="tsv", first=1.0),
    "iso_c": Candidate(rule="iso_c", first=0.7499),
    "iso_cts": Candidate(rule="iso_cts", first=0.7499),
    "regmean_from_vectors": Candidate(rule="regmean_from_vectors", first=1.0),
    "wudi": Candidate(rule="wudi", first=0.7499),
    "wudi_300_steps": Candidate(rule="wudi", first=0.7499, options={"steps": 300}),
}


@dataclass(eq=False)
class GoodStart(Study):
    """Merges of encoders that began at a good start, against the age and the progress of the specialists.

    Every merged accuracy stands beside the start, a linear probe on it, the specialists and joint training
    on equally many examples. Coefficients are chosen on validation examples at every age, uphill on a grid
    with equal factors between its points. What is finished is kept beside the runs and read again.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        tasks: which tasks, and how models are judged.
        recipe: of finetuning, but for the seed; its epochs are parts of a pass.
        ages: the numbers of such parts after which models are judged.
        rules: names in `CANDIDATES`.
    """

    description: str
    backbone: str = "minilm"
    tasks: SuiteSettings = TEXT_SUITE
    recipe: Settings = TEXT_SETTINGS
    ages: Sequence[int] = (1, 2, 4, 8, 16)
    rules: Sequence[str] = tuple(CANDIDATES)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone, folder=request.data)
        results: dict[str, Any] = {
            "backbone": backbone.name,
            "seeds": list(self.seeds),
            "tasks": list(self.tasks.tasks),
            "epochs": [age / self.recipe.parts for age in self.ages],
            "rules": list(self.rules),
            "start": {},
            "probe": {},
            "steps_a_pass": {},
            "individual": {},
            "joint": {},
            "merged": [],
            "seconds": {},
        }
        for seed in self.seeds:
            suite = make_suite(backbone, self.tasks, folder=request.data, seed=seed)
            self.data = suite.data
            about = {"backbone": backbone.name, **suite.about, "recipe": asdict(self.recipe)}
            self.settings = {
                **about,
                "tasks": list(self.tasks.tasks),
                "candidates": {name: asdict(CANDIDATES[name]) for name in self.rules},
                "scaling_coefs": list(SCALING_COEFS),
            }
            runs = individual_runs(suite, recipe=self.recipe, epochs=self.ages)
            together = joint_run(suite, recipe=self.recipe, epochs=self.ages)
            key = str(seed)
            results["start"][key] = suite.scores(None, suite.tasks)
            results["probe"][key] = suite.kept("probe", partial(probe_scores, suite), about=about)
            individual, joint, judging = {}, {}, 0.0
            best: dict[str, float] = {}
            for age in self.ages:
                epoch = f"{age / self.recipe.parts:g}"
                individual[epoch] = suite.kept(
                    f"individual_{age}", partial(individual_scores, suite, runs, age=age), about=about
                )
                joint[epoch] = suite.kept(
                    f"joint_{age}", partial(suite.scores, together.state(age), suite.tasks), about=about
                )
                vectors = {name: run.task_vector(age) for name, run in runs.items()}
                for rule in self.rules:
                    candidate = CANDIDATES[rule]
                    first = best.get(rule, candidate.first)
                    found = suite.kept(
                        f"merged_{age}_{rule}",
                        partial(tuned_merge, suite, vectors, candidate=candidate, first=first),
                        about={**about, "candidate": asdict(candidate), "first": first},
                    )
                    best[rule] = found["scaling_coef"] or candidate.first
                    judging += found.pop("seconds")
                    results["merged"].append({"seed": seed, "epoch": float(epoch), "rule": rule, **found})
                    say(f"seed {seed}, epoch {epoch}, {rule}: {mean(found['test'].values()):.3f}")
            results["individual"][key] = individual
            results["joint"][key] = joint
            results["steps_a_pass"][key] = {
                name: sum(record["steps"] for record in run.records[: self.recipe.parts])
                for name, run in runs.items()
            }
            results["seconds"][key] = {
                "individual": round(sum(each["seconds"] for run in runs.values() for each in run.records), 1),
                "joint": round(sum(each["seconds"] for each in together.records), 1),
                "merges": round(judging, 1),
            }
        return results | suite.sizes()


def probe_scores(suite: Suite) -> dict[str, float]:
    """Test accuracy of a linear probe on the frozen start, by task; its penalty is chosen in validation."""
    found = {}
    for name, task in suite.tasks.items():
        judged = first_examples(task, test=suite.test)
        found[name] = round(linear_probe(suite.backbone, judged).accuracy, 5)
    return found


def individual_scores(suite: Suite, runs: Mapping[str, Run], *, age: int) -> dict[str, float]:
    """Test accuracy of each specialist on its own task."""
    return {name: suite.scores(run.state(age), [name])[name] for name, run in runs.items()}


def tuned_merge(
    suite: Suite, vectors: Mapping[str, TaskVector], *, candidate: Candidate, first: float
) -> dict[str, Any]:
    """Merged under a rule, with the coefficient that is best in validation, and judged on test examples.

    Args:
        suite: the tasks, heads and the encoder.
        vectors: of these tasks, by name.
        candidate: the rule.
        first: the coefficient where the search begins.
    """
    begin = time.perf_counter()
    rule = merging.RULES[candidate.rule]
    options = dict(candidate.options)
    if rule.draws:
        options["generator"] = torch.Generator().manual_seed(suite.seed)
    merged = rule.function(list(vectors.values()), **options)
    start = state_of(suite.backbone.model)
    if candidate.by_depth:
        factor = merging.depth_start(vectors.values(), merged)
        start = merged.apply_to(start, factor)
        merged = merging.scale_by_depth(merged, first=0.0, last=1.0)
    found = suite.tuned(start, merged, scaling_coefs=SCALING_COEFS, names=vectors, first=first)
    return {**found, "seconds": round(time.perf_counter() - begin, 1)}
