"""Accuracy of many merged models: one model written in place, and images prepared once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import Encoder, Parameters, holding, write_parameters
from taskvec_mini.benchmarks.heads import Head, centre_of
from taskvec_mini.errors import UserError
from taskvec_mini.vectors import TaskVector

Split = Literal["train", "val", "test"]
_BATCH = {"cpu": 128, "cuda": 500}  # images in a forward pass: few, to stay in a cache; many, to fill a GPU
_LARGEST = 2 << 30  # bytes of prepared images of one split that are worth keeping
_prepared: WeakKeyDictionary[Task, dict[object, list[Tensor]]] = WeakKeyDictionary()


def accuracies(
    backbone: Encoder,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    *,
    parameters: Parameters | None = None,
    split: Split = "test",
    limit: int | None = None,
    recentre: int = 0,
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
    with holding(backbone.model, parameters), torch.inference_mode():
        for name, task in tasks.items():
            head = copy.deepcopy(heads[name]).to(backbone.device)
            shift: Tensor | float = 0.0
            if recentre:
                first = _prepare_once(backbone, task, split="train", limit=recentre)
                shift = centre_of(head) - torch.cat([backbone.model(batch) for batch in first]).mean(0)
            batches = _prepare_once(backbone, task, split=split, limit=limit)
            logits = torch.cat([head(backbone.model(batch) + shift) for batch in batches])
            if logits.isnan().any():
                raise UserError(
                    f"the model answers NaN to images of the task {task.name!r}: its parameters are NaN or "
                    "far too large; try a smaller scaling coefficient, and look for runs that diverged"
                )
            labels = task.part(split)[1][:limit]
            found[name] = float((logits.argmax(1).cpu() == labels.cpu()).double().mean())
    return found


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
        limit: as in `accuracies`, and so is `recentre`.
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
            found = accuracies(backbone, heads, tasks, split=split, limit=limit, recentre=recentre)
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
    )
    return float(coefs[int(table.mean(1).argmax())])


def _prepare_once(backbone: Encoder, task: Task, *, split: Split, limit: int | None) -> Iterable[Tensor]:
    """The prepared inputs in batches; they are kept as long as the task is, on the device of the model."""
    kept = _prepared.setdefault(task, {})
    key = (split, limit, backbone.name, repr(backbone.preparation), backbone.device)
    if key in kept:
        return kept[key]
    size = _BATCH.get(backbone.device.type, _BATCH["cuda"])
    first, *others = torch.split(task.part(split)[0][:limit], size)
    prepared = backbone.prepare(first)
    later = map(backbone.prepare, others)
    if prepared.nbytes * (1 + len(others)) > _LARGEST:
        return itertools.chain([prepared], later)
    kept[key] = [prepared, *later]
    return kept[key]


def forget_prepared_images() -> None:
    """Free the memory of all prepared images; they are prepared again when they are needed."""
    _prepared.clear()
