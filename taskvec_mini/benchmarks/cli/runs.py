"""`finetune`, `merge` and `evaluate`: from tasks to runs, to a merged task vector, to a table."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taskvec_mini import _checks, scores
from taskvec_mini.benchmarks.cli.jobs import finetune_all
from taskvec_mini.benchmarks.cli.list import rules
from taskvec_mini.benchmarks.cli.parser import SCALING_COEFS, SETTINGS
from taskvec_mini.benchmarks.cli.throughput import speed_of
from taskvec_mini.benchmarks.data import suites as datasets
from taskvec_mini.benchmarks.encoders.parameters import state_of
from taskvec_mini.benchmarks.encoders.protocols import Encoder, Task
from taskvec_mini.benchmarks.evaluation import accuracy as evaluation
from taskvec_mini.benchmarks.heads import check_classes, kind_of, stored_head
from taskvec_mini.benchmarks.heads.templates import templates_in
from taskvec_mini.benchmarks.training.experiment import Shelf, encoder
from taskvec_mini.benchmarks.training.finetune import Run, Settings
from taskvec_mini.benchmarks.training.progress import unit_of
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError
from taskvec_mini.vectors import TaskVector

# --- finetune --------------------------------------------------------------------------------------------


def finetune(options: argparse.Namespace) -> None:
    """Finetune the encoder on each task, each into a folder of its own, and print what was trained."""
    settings = settings_of(options)
    options.backbone = options.backbone or ("pocket-text" if options.suite in datasets.TEXTS else "pocket")
    options.heads = kind_of(options.backbone, options.heads)
    what = {name: getattr(options, name) for name in ("suite", "backbone", "heads", "limit", "seed")}
    shelf = Shelf.for_runs(options.out, what)
    backbone = encoder(options.backbone, options)
    tasks = datasets.load_tasks(
        options.tasks, suite=options.suite, folder=options.data, limit=options.limit, seed=options.seed
    )
    speed_of(options).check(settings, backbone.device)
    _check_fit(backbone, tasks)
    for name, task in tasks.items():  # an error for the last task before the first is trained
        if options.heads == "zero-shot":
            templates_in(options.suite, name)
        else:
            check_classes(task)
    shelf.make()  # not before, so that a word mistyped leaves no folder behind
    before = {name: sum(epoch <= settings.epochs for epoch in shelf.epochs(name)) for name in tasks}
    runs = finetune_all(options, shelf, settings, backbone, tasks)
    rows = [_summary(tasks[name], run, settings.epochs - before[name]) for name, run in runs.items()]
    print(scores.table(rows))
    print(f"checkpoints are in {shelf.folder}")


def _check_fit(backbone: Encoder, tasks: Mapping[str, Task]) -> None:
    """A TypeError where the encoder is for images and a task has texts, or the other way round."""
    for name, task in tasks.items():
        try:
            backbone.prepare(task.part("train")[0][:1])
        except TypeError as error:
            raise InputTypeError(
                f"{backbone.name} does not take the {unit_of([task])} of {name} ({error}); "
                "choose another --backbone"
            ) from error


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the words of `finetune` give; those not given keep their defaults."""
    names = ("optimizer", "schedule", "centre", *(name.replace("-", "_") for name, *_ in SETTINGS))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Settings(epochs=options.epochs, seed=options.seed, **given)


def _summary(task: Task, run: Run, trained: int) -> dict[str, object]:
    return {
        "task": task.name,
        "epochs": len(run.records),
        "trained now": trained,
        "training loss": run.losses[-1],
        "training accuracy": run.accuracies[-1],
        f"{unit_of([task])}/s": round(run.images_per_second),
    }


# --- merge -----------------------------------------------------------------------------------------------


def merge(options: argparse.Namespace) -> None:
    """Merge task vectors under a rule and write the result as a task vector."""
    rule = _checks.named_choice("merging rule", options.rule, rules())
    chosen = rule_options(options.rule, rule, options.option)
    if "generator" in inspect.signature(rule).parameters:
        chosen["generator"] = torch.Generator().manual_seed(options.seed)
    shelf = Shelf.open(options.runs)
    names, backbone = shelf.chosen(options.tasks), encoder(shelf.what["backbone"], options)
    epoch, pretrained = shelf.epoch(names, options.epoch), state_of(backbone.model)
    vectors = [TaskVector.between(pretrained, shelf.state(name, epoch, pretrained)) for name in names]
    merged = rule(vectors, **chosen)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    merged.save(options.out)
    print(f"{options.rule} of {', '.join(names)} after epoch {epoch}: {options.out} holds {merged!r}")


def rule_options(name: str, rule: Any, words: list[str]) -> dict[str, Any]:
    """Options such as `density=0.3` as keyword arguments of a rule.

    Raises:
        ValueError: if a word is not NAME=VALUE, or the rule has no such option; near names are suggested.
    """
    known = {
        n: p.default for n, p in list(inspect.signature(rule).parameters.items())[1:] if n != "generator"
    }
    chosen = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--option {word!r} must be NAME=VALUE, for instance density=0.3")
        if not known:
            raise UserError(f"{name} has no options, got {word!r}; leave --option out")
        _checks.named_choice(f"option of {name}", option, known)
        chosen[option] = _value(text, known[option], word)
    return chosen


def _value(text: str, default: object, word: str) -> Any:
    """A word as a value of the default's kind."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, int | float):
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise UserError(f"--option {word}: the value must be {wanted}, such as {str(default).lower()}")
    return value


# --- evaluate --------------------------------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> None:
    """Print a table: each task under the pretrained, the individually finetuned and the merged encoder."""
    shelf = Shelf.open(options.runs)
    if not options.vector.is_file():
        raise MissingFileError(
            f"there is no file {options.vector}; make it with `merge`, or name another one with --vector"
        )
    merged = TaskVector.load(options.vector)
    names, backbone = shelf.chosen(options.tasks), encoder(shelf.what["backbone"], options)
    epoch, pretrained = shelf.epoch(names, options.epoch), state_of(backbone.model)
    states = {name: shelf.state(name, epoch, pretrained) for name in names}
    tasks = shelf.tasks(names, options.data)
    heads = {name: stored_head(shelf.head_file(name)) for name in names}
    coef, how = options.scaling_coef, "as given"
    if coef is None:
        tried = options.tune or list(SCALING_COEFS)
        coef = evaluation.tune(
            backbone, heads, tasks, pretrained=pretrained, merged=merged, scaling_coefs=tried,
            recentre=options.recentre,
        )  # fmt: skip
        how = f"the best mean validation accuracy of {len(tried)} tried, {min(tried):g} to {max(tried):g}"
    where = {"heads": heads, "split": options.split, "recentre": options.recentre}
    found = {
        "zero-shot": evaluation.accuracies(backbone, tasks=tasks, **where),
        "individual": _individual(backbone, states, tasks, where),
        "merged": evaluation.accuracies(
            backbone, tasks=tasks, parameters=merged.apply_to(pretrained, coef), **where
        ),
    }
    print(table(found))
    part, unit = {"test": "test", "val": "validation"}[options.split], unit_of(tasks.values())
    print(
        f"accuracies on {part} {unit}; individual: after epoch {epoch}; scaling coefficient {coef:g} ({how})"
    )


def _individual(
    backbone: Any, states: Mapping[str, Mapping[str, Tensor]], tasks: Mapping[str, Any], where: dict[str, Any]
) -> dict[str, float]:
    """The accuracy of each finetuned encoder on its own task."""
    own: dict[str, float] = {}
    for name, task in tasks.items():
        own |= evaluation.accuracies(backbone, tasks={name: task}, parameters=states[name], **where)
    return own


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each task and one for their means, with merged / individual in the last column.

    Example:
        >>> print(table({"individual": {"mnist": 0.8, "cars": 0.4}, "merged": {"mnist": 0.6, "cars": 0.4}}))
        task   individual  merged  normalised
        mnist       0.800   0.600       0.750
        cars        0.400   0.400       1.000
        mean        0.600   0.500       0.875
    """
    names = list(found["merged"])
    rows: dict[str, dict[str, float]] = {
        name: {kind: each[name] for kind, each in found.items()} for name in names
    }
    for row in rows.values():
        row["normalised"] = row["merged"] / row["individual"] if row["individual"] else float("nan")
    columns = list(rows[names[0]])
    means = {kind: sum(row[kind] for row in rows.values()) / len(rows) for kind in columns}
    return scores.table({**rows, "mean": means}, index="task")
