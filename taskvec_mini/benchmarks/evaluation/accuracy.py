"""Accuracy of many merged models: one model written in place, and images prepared once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import (
    Encoder,
    Parameters,
    TextBackbone,
    holding,
    row_batches,
    write_parameters,
)
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.benchmarks.training import Speed
from taskvec_mini.errors import UserError
from taskvec_mini.vectors import TaskVector

Split = Literal["train", "val", "test"]
_IMAGES = {"cpu": 128, "cuda": 500}  # in a forward pass: few, to stay in a cache; many, to fill a GPU
_LARGEST = 2 << 30  # bytes of prepared images of one split that are worth keeping
_Batch = tuple[Tensor, Tensor]  # the rows of a part that are in it, and their inputs, prepared
_prepared: WeakKeyDictionary[Task, dict[object, list[_Batch]]] = WeakKeyDictionary()


def accuracies(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    parameters: Parameters | None = None,
    split: Split = "test",
    limit: int | None = None,
    recentre: int = 0,
    precision: str = "float32",
) -> dict[str, float]:
    """The share of images that are classified rightly, by task.

    Args:
        backbone: the encoder; it has its own parameters again afterwards.
        heads: the frozen head of each task, by name; others may be there.
        tasks: the tasks to evaluate, by name.
        parameters: named parameters or one flat vector; None for the backbone's own.
        split: "test", "val" (validation) or "train".
        limit: only the first so many images of each task; all by default.
        recentre: with 0 the heads are frozen. Else their centre is the mean embedding, under the parameters
            that are evaluated, of the first so many training images; no label is used. Merging moves all
            embeddings of a task together, and this takes such a shift away.
        precision: of the encoder's products, as in `training.Speed`; heads are always float32.

    Raises:
        UserError: if a task has no head, there is no such split, names or sizes of parameters differ, a head
            that is to be recentred has no centre, or the model answers NaN.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> from taskvec_mini.benchmarks.heads import prototype_head
        >>> backbone, tasks = load_backbone("random-pocket"), load_tasks(["digits"], suite="digits", limit=60)
        >>> heads = {"digits": prototype_head(backbone, tasks["digits"])}
        >>> accuracies(backbone, heads, tasks, limit=100)["digits"] > 0.3
        True
    """
    for name in tasks:
        if name not in heads:
            raise UserError(f"there is no head for the task {name!r}; heads are there for {', '.join(heads)}")
    if limit is not None:
        _checks.whole_number("limit", limit)
    if recentre:
        recentre = _checks.whole_number("recentre", recentre)
    found = {}
    with holding(backbone.model, parameters):
        for name, task in tasks.items():
            logits, labels = task_logits(
                backbone,
                heads[name],
                task,
                split=split,
                limit=limit,
                recentre=recentre,
                precision=precision,
            )
            found[name] = float((logits.argmax(1) == labels).double().mean())
    return found


def task_logits(
    backbone: Encoder,
    head: Head,
    task: Task,
    *,
    split: Split = "test",
    limit: int | None = None,
    recentre: int = 0,
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """What the model answers to the examples of one task: logits (N, C) and labels (N,), in their order.

    Args:
        backbone: the encoder, under the parameters that it has.
        head: of the task.
        task: whose examples.
        split: as in `accuracies`, and so are the others.
        limit: only the first so many.
        recentre: training images by which the head's centre is moved; 0 for none.
        precision: of the encoder's products.

    Raises:
        UserError: if the model answers NaN, or a head that is to be recentred has no centre.
    """
    speed = Speed(precision=precision)
    encode = partial(speed.encode, backbone.model)
    with torch.inference_mode(), speed.products():
        head = copy.deepcopy(head).to(backbone.device)
        shift: Tensor | float = 0.0
        if recentre:
            first = _prepare_once(backbone, task, split="train", limit=recentre)
            shift = centre_of(head) - torch.cat([encode(batch) for _, batch in first]).mean(0)
        rows, answers = [], []
        for batch_rows, batch in _prepare_once(backbone, task, split=split, limit=limit):
            rows.append(batch_rows)
            answers.append(head(encode(batch) + shift))
        logits = torch.cat(answers).cpu()[torch.cat(rows).argsort()]
    if logits.isnan().any():
        raise UserError(
            f"the model answers NaN to images of the task {task.name!r}: its parameters are NaN or "
            "far too large; try a smaller scaling coefficient, and look for runs that diverged"
        )
    return logits, task.part(split)[1][: len(logits)].cpu()


def sweep(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    pretrained: Mapping[str, Tensor],
    merged: TaskVector,
    scaling_coefs: Sequence[float],
    split: Split = "val",
    limit: int | None = None,
    recentre: int = 0,
    precision: str = "float32",
) -> Tensor:
    """Accuracies (len(scaling_coefs), T) of `pretrained + scaling_coef * merged`, tasks in their order.

    Args:
        backbone: the encoder; it has its own parameters again afterwards.
        heads: the frozen head of each task, by name; others may be there.
        tasks: the tasks to evaluate, by name.
        pretrained: the named parameters of the start.
        merged: the merged task vector.
        scaling_coefs: the scaling coefficients to try.
        split: "val" by default: what is chosen by these numbers must not have seen the test images.
        limit: as in `accuracies`, and so are `recentre` and `precision`.
        recentre: how many training images each head is moved to, for every coefficient anew.

    Raises:
        UserError: if there is nothing to evaluate, or names, shapes or sizes differ; also as in `accuracies`.
    """
    coefs = [_checks.finite_number("a scaling coefficient", each) for each in scaling_coefs]
    _checks.not_empty("scaling_coefs", coefs)
    _checks.not_empty("tasks", tasks)
    start = merged.apply_to(pretrained, 0.0)  # checks names and shapes, once
    vectors = dict(merged.items())
    buffers = {name: torch.empty_like(part) for name, part in start.items()}
    rows = []
    with holding(backbone.model, None):
        for coef in coefs:
            for name, vector in vectors.items():
                torch.mul(vector, coef, out=buffers[name]).add_(start[name])
            write_parameters(backbone.model, buffers)
            found = accuracies(
                backbone,
                heads,
                tasks,
                split=split,
                limit=limit,
                recentre=recentre,
                precision=precision,
            )
            rows.append(list(found.values()))
    return torch.tensor(rows, dtype=torch.float64)


def tune(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    pretrained: Mapping[str, Tensor],
    merged: TaskVector,
    scaling_coefs: Sequence[float],
    limit: int | None = None,
    recentre: int = 0,
    precision: str = "float32",
) -> float:
    """The scaling coefficient with the best mean accuracy over tasks on the validation images.

    Among equally good ones it is the first. Arguments and errors are those of `sweep`.
    """
    coefs = list(scaling_coefs)
    table = sweep(
        backbone,
        heads,
        tasks,
        pretrained=pretrained,
        merged=merged,
        scaling_coefs=coefs,
        limit=limit,
        recentre=recentre,
        precision=precision,
    )
    return float(coefs[int(table.mean(1).argmax())])


def climb(
    score: Callable[[float], float],
    values: Sequence[float],
    *,
    first: float,
    known: Mapping[float, float] = MappingProxyType({}),
) -> tuple[float, dict[float, float]]:
    """Uphill along an ordered row of values, from one of them until both neighbours score no better.

    A few scores where `tune` takes all, and the same answer where they rise to one top and fall again.

    Args:
        score: of a value; the higher the better, and never asked twice for one.
        values: in rising order.
        first: the value where the climb begins.
        known: scores of some values, which are not asked for; the best of them can win.

    Returns:
        The best of the values tried and known, and all their scores. Of equals, the top of the climb.

    Raises:
        UserError: if `first` is none of the values.

    Example:
        >>> best, tried = climb(lambda value: -((value - 3) ** 2), [1.0, 2.0, 3.0, 4.0, 5.0], first=2.0)
        >>> best, sorted(tried)
        (3.0, [1.0, 2.0, 3.0, 4.0])
    """
    if first not in values:
        raise UserError(f"first must be one of the values {list(values)}, got {first}")
    place = values.index(first)
    tried = dict(known)
    while True:
        near = values[max(place - 1, 0) : place + 2]
        tried |= {value: score(value) for value in near if value not in tried}
        best = max(near, key=lambda value: (tried[value], value == values[place]))
        if best == values[place]:
            return max(tried, key=lambda value: (tried[value], value == best)), tried
        place = values.index(best)


def _prepare_once(backbone: Encoder, task: Task, *, split: Split, limit: int | None) -> Iterable[_Batch]:
    """The prepared inputs in batches; they are kept as long as the task is, on the device of the model."""
    kept = _prepared.setdefault(task, {})
    key = (split, limit, backbone.name, repr(backbone.preparation), backbone.device)
    if key in kept:
        return kept[key]
    inputs = task.part(split)[0][:limit]
    images = None if isinstance(backbone, TextBackbone) else _IMAGES.get(backbone.device.type, 500)
    *earlier, last = row_batches(backbone, inputs, batch_size=images)
    longest = backbone.prepare(inputs[last])
    prepared = ((rows, backbone.prepare(inputs[rows])) for rows in earlier)
    if longest.nbytes * len(inputs) > _LARGEST * len(last):
        return itertools.chain(prepared, [(last, longest)])
    kept[key] = [*prepared, (last, longest)]
    return kept[key]


def forget_prepared_images() -> None:
    """Free the memory of all prepared images; they are prepared again when they are needed."""
    _prepared.clear()
