"""`finetune`, `merge` and `evaluate`: from tasks to runs, to a merged task vector, to a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import taskvec_mini
from taskvec_mini import _checks, scores
from taskvec_mini._options import named_values
from taskvec_mini.benchmarks import engines
from taskvec_mini.benchmarks.cli.record import check_place
from taskvec_mini.benchmarks.cli.requests import (
    SCALING_COEFS,
    EvaluateRequest,
    FinetuneRequest,
    MergeRequest,
)
from taskvec_mini.benchmarks.data import SUITES, Task, load_tasks, unit_of
from taskvec_mini.benchmarks.encoders import (
    Encoder,
    backbone_info,
    device_of,
    load_backbone,
    state_of,
    tokenizer_of,
)
from taskvec_mini.benchmarks.evaluation import accuracies, tune
from taskvec_mini.benchmarks.heads import Head, check_classes, kind_of, templates_in
from taskvec_mini.benchmarks.training import Experiment, Run
from taskvec_mini.errors import MissingFileError, UserError
from taskvec_mini.merging import RULES
from taskvec_mini.vectors import TaskVector


def finetune(request: FinetuneRequest) -> dict[str, Run]:
    """Finetune the encoder on each task, each into a folder of its own, and print what was trained.

    Returns:
        The runs, by the name of the task.

    Raises:
        UserError: if a name is unknown, data or weights are missing, the encoder does not take what the tasks
            are made of, the folder holds other runs or cannot be written, or a run diverges.
    """
    suite = _checks.named_choice("suite", request.suite, SUITES)
    backbone = request.backbone or {"images": "pocket", "texts": "pocket-text"}[suite.unit]
    takes = backbone_info(backbone).kind
    if takes != suite.unit:
        raise UserError(
            f"{backbone} takes {takes}, but the tasks of the suite {suite.name!r} are {suite.unit}; choose "
            "another --backbone or --suite"
        )
    experiment = Experiment.prepare(
        request.out,
        {
            "suite": suite.name,
            "backbone": backbone,
            "heads": kind_of(backbone, request.heads),
            "limit": request.limit,
            "seed": request.settings.seed,
        },
    )
    encoder = _encoder(backbone, data=request.data, device=request.device)
    tasks = load_tasks(
        request.tasks,
        suite=suite.name,
        folder=request.data,
        limit=request.limit,
        seed=request.settings.seed,
        tokenizer=tokenizer_of(encoder),
    )
    request.speed.check(request.settings, encoder.device)
    for name, task in tasks.items():  # an error for the last task before the first is trained
        if experiment.shared["heads"] == "zero-shot":
            templates_in(suite.name, name)
        else:
            check_classes(task)
    experiment.create()  # not before, so that a name mistyped leaves no folder behind

    options = request.engine
    if options.engine == "ray":  # names travel, and a worker loads what they stand for
        if request.device == "cpu":
            options = replace(options, gpus_per_worker=0)
        data = engines.shared_folder(request.data)
        shared = replace(experiment, folder=experiment.folder.absolute())
        load_encoder = partial(_encoder, backbone, data=data, device=request.device)
        loads = {name: partial(_load, experiment=shared, name=name, data=data) for name in tasks}
    else:
        load_encoder = partial(_same, encoder)
        loads = {name: partial(_with_head, experiment=experiment, task=task) for name, task in tasks.items()}
    jobs = {
        name: engines.Job(
            load=load,
            settings=request.settings,
            folder=experiment.run(name).path,
            speed=request.speed,
        )
        for name, load in loads.items()
    }
    before = {name: experiment.run(name).finished for name in tasks}
    runs = engines.finetune_all(load_encoder, jobs, options=options)

    rows = [
        {
            "task": name,
            "epochs": len(run.records),
            "trained now": max(0, len(run.records) - before[name]),
            "training loss": run.losses[-1],
            "training accuracy": run.accuracies[-1],
            f"{suite.unit}/s": round(run.images_per_second),
        }
        for name, run in runs.items()
    ]
    print(scores.table(rows))
    print(f"checkpoints are in {experiment.folder}")
    return runs


def merge(request: MergeRequest) -> TaskVector:
    """Merge task vectors under a rule, and write the result as a task vector that knows what it is made of.

    Returns:
        The merged vector.

    Raises:
        UserError: if there are no such runs, they began with other weights than the encoder has now, the rule
            or one of its options is unknown, or the file cannot be written.
    """
    rule = _checks.named_choice("merging rule", request.rule, RULES)
    chosen = named_values(request.option, rule.options, what=rule.name)
    seed = _checks.seed("seed", request.seed)
    if rule.draws:
        chosen["generator"] = torch.Generator().manual_seed(seed)
    check_place(request.out)
    experiment = Experiment.open(request.runs)
    names = experiment.chosen(request.tasks)
    epoch = experiment.epoch(names, request.epoch)
    pretrained = state_of(_encoder(experiment.shared["backbone"], data=request.data, device="cpu").model)
    states = experiment.states(names, epoch, pretrained=pretrained)
    vectors = [TaskVector.between(pretrained, state) for state in states.values()]
    merged = rule.function(vectors, **chosen)
    chosen.pop("generator", None)
    about = {
        "rule": rule.name,
        "options": {**rule.options, **chosen},
        "seed": seed if rule.draws else None,
        "scaling_coef": 1.0,
        "version": taskvec_mini.__version__,
        **experiment.origin(names, epoch, pretrained=pretrained),
    }
    merged.save(request.out, about=about)
    print(f"{rule.name} of {', '.join(names)} after epoch {epoch}: {request.out} holds {merged!r}")
    return merged


def evaluate(request: EvaluateRequest) -> dict[str, dict[str, float]]:
    """Print a table: each task under the pretrained, the individually finetuned and the merged encoder.

    Returns:
        The accuracies: of "zero-shot", "individual" and "merged", by the name of the task.

    Raises:
        UserError: if there are no such runs or data, the vector is not there, of another encoder, of other
            runs or not of a task that is asked for, or a file is damaged.
    """
    experiment = Experiment.open(request.runs)
    if not request.vector.is_file():
        raise MissingFileError(
            f"{request.vector} is {'a folder' if request.vector.is_dir() else 'not there'}; make the file "
            "with `merge`, or name another one with --vector"
        )
    merged = TaskVector.load(request.vector)
    past = merged.about
    if not past.get("tasks") and (request.tasks is None or request.epoch is None):
        raise UserError(
            f"{request.vector} does not say what it is made of; make it with `merge`, or say with --tasks "
            "and --epoch what to hold it against"
        )
    names = experiment.chosen(request.tasks or list(past["tasks"]))
    epoch = experiment.epoch(names, past["epoch"] if request.epoch is None else request.epoch)
    encoder = _encoder(experiment.shared["backbone"], data=request.data, device=request.device)
    pretrained = state_of(encoder.model)
    states = experiment.states(names, epoch, pretrained=pretrained)
    if past.get("tasks"):
        experiment.check_origin(past, names, file=request.vector, pretrained=pretrained)
    tasks = experiment.tasks(names, request.data, encoder=encoder)
    heads = experiment.heads(names)
    if request.scaling_coef is not None:
        coef, how = request.scaling_coef, "as given"
    else:
        tried = request.tune or SCALING_COEFS
        coef = tune(
            encoder,
            heads,
            tasks,
            pretrained=pretrained,
            merged=merged,
            scaling_coefs=tried,
            recentre=request.recentre,
        )
        how = f"the best mean validation accuracy of {len(tried)} tried, {min(tried):g} to {max(tried):g}"

    measure = partial(accuracies, encoder, heads, split=request.split, recentre=request.recentre)
    found: dict[str, dict[str, float]] = {"zero-shot": measure(tasks), "individual": {}}
    for name, task in tasks.items():
        found["individual"] |= measure({name: task}, parameters=states[name])
    found["merged"] = measure(tasks, parameters=merged.apply_to(pretrained, coef))
    print(table(found))
    part, unit = {"test": "test", "val": "validation"}[request.split], unit_of(tasks.values())
    print(
        f"accuracies on {part} {unit}; individual: after epoch {epoch}; scaling coefficient {coef:g} ({how})"
    )
    if past.get("tasks"):
        print(f"merged: {past['rule']} of {', '.join(past['tasks'])} after epoch {past['epoch']}")
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each task and one for their means, with merged / individual in the last column.

    Example:
        >>> print(table({"individual": {"mnist": 0.8, "cars": 0.4}, "merged": {"mnist": 0.6, "cars": 0.4}}))
        task   individual  merged  normalised
        mnist       0.800   0.600       0.750
        cars        0.400   0.400       1.000
        mean        0.600   0.500       0.875
    """
    rows: dict[str, dict[str, float]] = {}
    for name in found["merged"]:
        row = {kind: each[name] for kind, each in found.items()}
        row["normalised"] = row["merged"] / row["individual"] if row["individual"] else float("nan")
        rows[name] = row
    columns = [*found, "normalised"]
    means = {kind: sum(row[kind] for row in rows.values()) / len(rows) for kind in columns}
    return scores.table({**rows, "mean": means}, index="task")


# --- what travels to workers: functions of this module, and what they are given --------------------------


def _encoder(name: str, *, data: Path | None, device: str | None) -> Encoder:
    """The encoder on the device that the user wants; its weights may lie in the folder --data."""
    found = device_of(device)  # first: what follows may be a download
    backbone = load_backbone(name, folder=data)
    backbone.model.to(found)
    return backbone


def _load(encoder: Encoder, *, experiment: Experiment, name: str, data: Path | None) -> tuple[Head, Task]:
    tasks = experiment.tasks([name], data, encoder=encoder)
    return _with_head(encoder, experiment=experiment, task=tasks[name])


def _with_head(encoder: Encoder, *, experiment: Experiment, task: Task) -> tuple[Head, Task]:
    return experiment.head(encoder, task), task


def _same(encoder: Encoder) -> Encoder:
    return encoder
