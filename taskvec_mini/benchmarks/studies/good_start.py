"""Merging from a good start: what a merge keeps of its specialists, rule by rule and age by age.

Which tasks enter, and at which rate, was decided before (`task_choice`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders import Encoder, load_backbone, state_of
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
from taskvec_mini.benchmarks.studies.task_choice import TEXT_EPOCH, TEXT_SUITE, validated
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
        every_age: whether it is judged at every age, or at one pass and at the end alone.
    """

    rule: str
    first: float
    options: dict[str, Any] = field(default_factory=dict)
    by_depth: bool = False
    every_age: bool = True


SCALING_COEFS = (0.0, *(round(10 ** (step / 8), 4) for step in range(-12, 13)))  # eight to each factor of ten
CANDIDATES = {  # by the name in the record
    "mean": Candidate(rule="mean", first=3.1623),
    "mean_by_depth": Candidate(rule="mean", first=1.7783, by_depth=True),
    "ties": Candidate(rule="ties", first=1.0),
    "dare": Candidate(rule="dare", first=0.4217, options={"drop_rate": 0.9}, every_age=False),
    "breadcrumbs": Candidate(rule="breadcrumbs", first=0.7499, every_age=False),
    "consensus": Candidate(rule="consensus", first=0.5623, every_age=False),
    "tsv": Candidate(rule="tsv", first=1.0),
    "iso_c": Candidate(rule="iso_c", first=0.7499),
    "iso_cts": Candidate(rule="iso_cts", first=0.7499, every_age=False),
    "regmean_from_vectors": Candidate(rule="regmean_from_vectors", first=1.0),
    "wudi": Candidate(rule="wudi", first=0.7499),
    "wudi_300_steps": Candidate(rule="wudi", first=0.7499, options={"steps": 300}, every_age=False),
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
        change: makes another start of it, such as one with fewer layers; None leaves it as it is.
        tasks: which tasks, and how models are judged.
        recipe: of finetuning, but for the seed; its epochs are parts of a pass.
        ages: the numbers of such parts after which models are judged.
        rules: names in `CANDIDATES`.
        options: for those of the rules that take them, beside the candidates' own.
        jointly: whether joint training stands beside.
    """

    description: str
    backbone: str = "minilm"
    change: Callable[[Any], Encoder] | None = None
    tasks: SuiteSettings = TEXT_SUITE
    recipe: Settings = TEXT_SETTINGS
    ages: Sequence[int] = (1, 2, 4, 8, 16)
    rules: Sequence[str] = tuple(CANDIDATES)
    options: Mapping[str, Any] = field(default_factory=dict)
    jointly: bool = True

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = self.start(request)
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
            key = str(seed)
            suite, runs = self.specialists(backbone, request, seed=seed)
            about = self.about(suite)
            self.data = suite.data
            self.settings = {
                **about,
                "tasks": list(self.tasks.tasks),
                "candidates": {name: asdict(self.candidate(name)) for name in self.rules},
                "scaling_coefs": list(SCALING_COEFS),
            }
            results["start"][key] = suite.scores(None, suite.tasks)
            results["probe"][key] = suite.kept("probe", partial(probe_scores, suite), about=about)
            results["individual"][key] = {
                self.epoch(age): suite.kept(
                    f"individual_{age}", partial(individual_scores, suite, runs, age=age), about=about
                )
                for age in self.ages
            }
            results["steps_a_pass"][key] = {
                name: sum(record["steps"] for record in run.records[: self.recipe.parts])
                for name, run in runs.items()
            }
            seconds = {
                "individual": round(sum(each["seconds"] for run in runs.values() for each in run.records), 1)
            }
            if self.jointly:
                together = joint_run(suite, recipe=self.recipe, epochs=self.ages)
                results["joint"][key] = {
                    self.epoch(age): suite.kept(
                        f"joint_{age}", partial(suite.scores, together.state(age), suite.tasks), about=about
                    )
                    for age in self.ages
                }
                seconds["joint"] = round(sum(each["seconds"] for each in together.records), 1)
            judging = 0.0
            for age, rule, found in self.merges(suite, runs):
                judging += found.pop("seconds")
                row = {"seed": seed, "epoch": float(self.epoch(age)), "rule": rule}
                results["merged"].append({**row, **found})
                say(f"{backbone.name}, {row}: {mean(found['test'].values()):.3f}")
            results["seconds"][key] = {**seconds, "merges": round(judging, 1)}
        return results | suite.sizes()

    def start(self, request: StudyRequest) -> Encoder:
        """The encoder that everything begins from."""
        backbone = load_backbone(self.backbone, folder=request.data)
        return self.change(backbone) if self.change else backbone

    def specialists(
        self, backbone: Encoder, request: StudyRequest, *, seed: int
    ) -> tuple[Suite, dict[str, Run]]:
        """The tasks of one seed, and the runs of their specialists, which are read again where finished."""
        suite = make_suite(backbone, self.tasks, folder=request.data, seed=seed)
        return suite, individual_runs(suite, recipe=self.recipe, epochs=self.ages)

    def every_seed(
        self, request: StudyRequest, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Suite, dict[str, Run]]]:
        """Each seed with its `specialists`, one after the other, from one `start`."""
        backbone = self.start(request)
        for seed in seeds:
            yield seed, *self.specialists(backbone, request, seed=seed)

    def about(self, suite: Suite) -> dict[str, Any]:
        """All that decides the scores of one seed, beside the seed."""
        return {"backbone": suite.backbone.name, **suite.about, "recipe": asdict(self.recipe)}

    def epoch(self, age: int) -> str:
        """Passes over the training examples, as a key of the results."""
        return f"{age / self.recipe.parts:g}"

    def candidate(self, rule: str) -> Candidate:
        """One of `CANDIDATES`, with those of `options` that its rule takes."""
        found = CANDIDATES[rule]
        taken = merging.RULES[found.rule].options
        more = {name: value for name, value in self.options.items() if name in taken}
        return replace(found, options={**found.options, **more})

    def merges(self, suite: Suite, runs: Mapping[str, Run]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Age, rule and `merged` of every merge of one seed, youngest first."""
        best: dict[str, float] = {}
        for age, rule in itertools.product(self.ages, self.rules):
            candidate = self.candidate(rule)
            if candidate.every_age or age in (self.recipe.parts, self.ages[-1]):
                found = self.merged(suite, runs, age=age, rule=rule, first=best.get(rule))
                best[rule] = found["scaling_coef"] or candidate.first
                yield age, rule, found

    def merged(
        self, suite: Suite, runs: Mapping[str, Run], *, age: int, rule: str, first: float | None = None
    ) -> dict[str, Any]:
        """`tuned_merge` of these runs at one age, read again where it is finished.

        Args:
            suite: the tasks of one seed.
            runs: of the tasks to be merged.
            age: parts of a pass.
            rule: one of `CANDIDATES`.
            first: the coefficient where the search begins; by default the candidate's own.
        """
        candidate = self.candidate(rule)
        begin = candidate.first if first is None else first
        names = "" if len(runs) == len(suite.tasks) else f"_{'_'.join(runs)}"

        def compute() -> dict[str, Any]:
            at_start = suite.kept(
                "validated_start", partial(validated, suite, suite.tasks), about=self.about(suite)
            )
            vectors = {name: run.task_vector(age) for name, run in runs.items()}
            return tuned_merge(
                suite,
                vectors,
                candidate=candidate,
                first=begin,
                at_start=mean(at_start[name] for name in vectors),
            )

        about = {**self.about(suite), "candidate": asdict(candidate), "first": begin}
        found: dict[str, Any] = suite.kept(f"merged_{age}_{rule}{names}", compute, about=about)
        return found

    def merged_model(
        self, suite: Suite, runs: Mapping[str, Run], *, age: int, rule: str, scaling_coef: float
    ) -> dict[str, Tensor]:
        """The parameters of a merge whose coefficient is known."""
        vectors = {name: run.task_vector(age) for name, run in runs.items()}
        start, merged = untuned_merge(suite, vectors, candidate=self.candidate(rule))
        return merged.apply_to(start, scaling_coef)


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
    suite: Suite,
    vectors: Mapping[str, TaskVector],
    *,
    candidate: Candidate,
    first: float,
    at_start: float | None = None,
) -> dict[str, Any]:
    """Merged under a rule, with the coefficient that is best in validation, and judged on test examples.

    The search climbs from one coefficient. Where it ends no higher than the start itself stands, the start
    wins: a coefficient of 0.

    Args:
        suite: the tasks, heads and the encoder.
        vectors: of these tasks, by name.
        candidate: the rule.
        first: the coefficient where the search begins.
        at_start: mean accuracy of the start in validation.
    """
    begin = time.perf_counter()
    start, merged = untuned_merge(suite, vectors, candidate=candidate)
    known = {} if at_start is None or candidate.by_depth else {0.0: at_start}
    found = suite.tuned(start, merged, scaling_coefs=SCALING_COEFS, names=vectors, first=first, known=known)
    return {**found, "seconds": round(time.perf_counter() - begin, 1)}


def untuned_merge(
    suite: Suite, vectors: Mapping[str, TaskVector], *, candidate: Candidate
) -> tuple[Mapping[str, Tensor], TaskVector]:
    """Parameters, and a vector that is added to them with a coefficient.

    Args:
        suite: the tasks, heads and the encoder.
        vectors: of these tasks, by name.
        candidate: the rule.
    """
    rule = merging.RULES[candidate.rule]
    options = dict(candidate.options)
    if rule.draws:
        options["generator"] = torch.Generator().manual_seed(suite.seed)
    merged = rule.function(list(vectors.values()), **options)
    start = state_of(suite.backbone.model)
    if not candidate.by_depth:
        return start, merged
    factor = merging.depth_start(vectors.values(), merged)
    return merged.apply_to(start, factor), merging.scale_by_depth(merged, first=0.0, last=1.0)
