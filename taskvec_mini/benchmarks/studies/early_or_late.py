"""Merge early or late? Eight tasks, six rules, one epoch to sixteen; and what such studies share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import merging
from taskvec_mini.benchmarks.encoders.load import load_backbone
from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.evaluation.accuracy import accuracies, forget_prepared_images, sweep
from taskvec_mini.benchmarks.heads import Head, prototype_head
from taskvec_mini.benchmarks.studies import base as study_data
from taskvec_mini.benchmarks.training.finetune import Run, Settings, finetune, finetune_jointly
from taskvec_mini.benchmarks.training.progress import unit_of
from taskvec_mini.vectors import TaskVector

EPOCHS = (1, 2, 4, 8, 16)  # after 16 the specialists have nearly all of their training images right
SHARE, SHOTS, RECENTRE, TEST = 0.3, 5, 100, 800
COEFS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the mean, for the slider
RECIPE = Settings(learning_rate=3e-4, epochs=EPOCHS[-1], batch_size=64, centre="batch")
RUNS = Path("local/studies")  # the finetuned encoders, which the studies share: a finished run is read again


def _dare(vectors: Sequence[TaskVector]) -> TaskVector:
    return merging.dare(vectors, drop_rate=0.9, generator=torch.Generator().manual_seed(0))


RULES: dict[str, tuple[Callable[[Sequence[TaskVector]], TaskVector], tuple[float, ...]]] = {
    "mean": (merging.mean, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)),  # 1: weight averaging; T: the plain sum
    "ties": (merging.ties, (0.12, 0.25, 0.5, 1.0, 1.5, 2.0)),
    "dare": (_dare, (0.06, 0.12, 0.2, 0.3, 0.45)),
    "breadcrumbs": (merging.breadcrumbs, (0.12, 0.25, 0.5, 0.75, 1.0)),
    "tsv": (partial(merging.tsv, kernels="matrix"), (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    "regmean_from_vectors": (merging.regmean_from_vectors, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
}
TWO_RULES = ("mean", "regmean_from_vectors")  # the plainest, and the best of chapter 6


@dataclass
class Suite:
    """The tasks of one seed, their heads and the encoder all start from; and what a record says of them."""

    backbone: Encoder
    tasks: Mapping[str, Task]
    heads: dict[str, Head]
    seed: int
    about: dict[str, Any]
    data: dict[str, str]

    def sizes(self) -> dict[str, dict[str, int]]:
        """How many examples each task trains on, under the word for them."""
        counts = {name: len(task.part("train")[1]) for name, task in self.tasks.items()}
        return {unit_of(self.tasks.values()): counts}

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
        return self.tuned(start, merged, coefs, names=vectors, recentre=recentre)

    def tuned(
        self,
        start: Mapping[str, Tensor],
        merged: TaskVector,
        coefs: Sequence[float],
        *,
        names: Iterable[str],
        recentre: int = RECENTRE,
    ) -> dict[str, Any]:
        """start + λ merged, for the λ with the best mean accuracy on validation images."""
        chosen = {name: self.tasks[name] for name in names}
        table = sweep(
            self.backbone, self.heads, chosen,
            pretrained=start, merged=merged, scaling_coefs=coefs, recentre=recentre,
        ).mean(1)  # fmt: skip
        best = int(table.argmax())
        test = self.scores(merged.apply_to(start, coefs[best]), chosen, recentre=recentre)
        return {"scaling_coef": coefs[best], "val_mean": round(float(table[best]), 5), "test": test}


def make_suite(backbone: Encoder, folder: Path | None, seed: int, *, shots: int | None = SHOTS) -> Suite:
    """The eight tasks with their frozen heads."""
    forget_prepared_images()
    tasks = study_data.suite(folder, seed, SHARE)
    heads = {name: prototype_head(backbone, task, shots=shots) for name, task in tasks.items()}
    about = {
        "share_of_training_images": SHARE, "validation_images": study_data.VALIDATION,
        "shots": SHOTS, "recentre": RECENTRE, "test_images": TEST,
    }  # fmt: skip
    return Suite(backbone, tasks, heads, seed, about, study_data.checksums(tasks))


def experts(suite: Suite, *, recipe: Settings = RECIPE, epochs: Sequence[int] = EPOCHS) -> dict[str, Run]:
    """The finetuned encoder of each task at some epochs, from its folder where it is finished."""
    runs = {}
    for name, task in suite.tasks.items():
        runs[name] = finetune(
            suite.backbone, suite.heads[name], task,
            settings=replace(recipe, epochs=epochs[-1], seed=suite.seed), keep=_kept(epochs),
            folder=folder_of(suite) / name, progress=False,
        )  # fmt: skip
        study_data.say(f"{suite.backbone.name}, seed {suite.seed}: {name} finetuned")
    return runs


def together(suite: Suite, *, recipe: Settings = RECIPE, epochs: Sequence[int] = EPOCHS) -> Run:
    """The encoder that learnt all tasks jointly, from its folder where it is finished."""
    return finetune_jointly(
        suite.backbone, suite.heads, suite.tasks,
        settings=replace(recipe, epochs=epochs[-1], seed=suite.seed), keep=_kept(epochs),
        folder=folder_of(suite) / "joint", progress=False,
    )  # fmt: skip


def _kept(epochs: Sequence[int]) -> list[int]:
    """These epochs, and the earlier ones that another study of the same encoders asks for."""
    return sorted({*epochs, *(epoch for epoch in EPOCHS if epoch <= epochs[-1])})


def folder_of(suite: Suite) -> Path:
    """Where the finetuned encoders of a suite are."""
    return RUNS / suite.backbone.name / f"seed{suite.seed}"


class MergingStudy(study_data.Study):
    """What its record says: the setting, the heads and the grids of λ."""

    def note(
        self, suite: Suite, epochs: int, *, recipe: Settings = RECIPE, rules: Iterable[str] = tuple(RULES)
    ) -> None:
        """Remember the settings and the data of a suite."""
        grids = {rule: list(RULES[rule][1]) for rule in rules}
        recipes = {"adamw": asdict(replace(recipe, epochs=epochs))}
        self.settings = {
            "backbone": suite.backbone.name, **suite.about, "recipes": recipes, "scaling_coefs": grids
        }  # fmt: skip
        self.data = suite.data


@dataclass(eq=False)
class EarlyOrLate(MergingStudy):
    """The study behind chapter 6: rules against epochs, beside their references."""

    description: str
    backbone: str = "pocket"
    recipe: Settings = RECIPE
    epochs: Sequence[int] = EPOCHS
    rules: Sequence[str] = tuple(RULES)
    make: Callable[..., Suite] = make_suite

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone)
        results: dict[str, Any] = {"epochs": list(self.epochs), "seeds": list(self.seeds)}
        results |= {"rules": list(self.rules), "zero_shot": {}, "individual": {}, "joint": {}}
        results |= {"merged": [], "grid": [], "cross": {}, "train_accuracy": {}, "training_seconds": {}}
        for seed in self.seeds:
            suite = self.make(backbone, options.data, seed)
            self.note(suite, self.epochs[-1], recipe=self.recipe, rules=self.rules)
            self._seed(suite, results)
        results["tasks"] = list(suite.tasks)
        results |= suite.sizes()
        return results

    def _seed(self, suite: Suite, results: dict[str, Any]) -> None:
        seed = str(suite.seed)
        runs = experts(suite, recipe=self.recipe, epochs=self.epochs)
        joint = together(suite, recipe=self.recipe, epochs=self.epochs)
        base = results["zero_shot"][seed] = suite.scores(None, suite.tasks)
        for kind in ("individual", "joint", "train_accuracy"):
            results[kind][seed] = {}
        for epoch in self.epochs:
            results["individual"][seed][str(epoch)] = {
                name: suite.scores(run.state(epoch), [name])[name] for name, run in runs.items()
            }
            results["joint"][seed][str(epoch)] = suite.scores(joint.state(epoch), suite.tasks)
            results["train_accuracy"][seed][str(epoch)] = {
                name: round(run.accuracies[epoch - 1], 5) for name, run in runs.items()
            }
            vectors = {name: run.task_vector(epoch) for name, run in runs.items()}
            for rule in self.rules:
                found = {"seed": suite.seed, "epoch": epoch, "rule": rule, **suite.merge(rule, vectors)}
                results["merged"].append(found)
                study_data.say(f"seed {seed}, epoch {epoch}, {rule}: {mean(found['test'].values()):.3f}")
            if suite.seed == study_data.SEEDS[0]:
                results["grid"] += grid(suite, epoch, merging.mean(vectors.values()), base=base)
        last = ((name, run.task_vector()) for name, run in runs.items())
        results["cross"][seed] = cross(suite, last, base)
        results["training_seconds"][seed] = {
            "individual": round(sum(map(_seconds, runs.values())), 1), "joint": round(_seconds(joint), 1)
        }  # fmt: skip


def _seconds(run: Run) -> float:
    """What all epochs took when they were trained, be it now or earlier."""
    return float(sum(record["seconds"] for record in run.records))


def grid(suite: Suite, epoch: int, merged: TaskVector, *, base: Mapping[str, float]) -> list[dict[str, Any]]:
    """Test accuracies over scaling coefficients of a merge, for a slider; `base` are those of the start."""
    start = state_of(suite.backbone.model)
    tests = {coef: suite.scores(merged.apply_to(start, coef), base) for coef in COEFS if coef}
    return [
        {"seed": suite.seed, "epoch": epoch, "scaling_coef": coef, "test": test}
        for coef, test in {0.0: dict(base), **tests}.items()
    ]


def cross(
    suite: Suite, vectors: Iterable[tuple[str, TaskVector]], base: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Interference: what half of each task's vector, by itself, does to every task's test accuracy."""
    start, rows = state_of(suite.backbone.model), {}
    for name, vector in vectors:
        found = suite.scores(vector.apply_to(start, 0.5), base)
        rows[name] = {other: round(found[other] - base[other], 5) for other in found}
    return rows
