"""Accuracy of parameters without touching the model, normalised accuracy, and tables a reader can print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.networks import outputs_at
from taskvec_mini.tasks import Task


def accuracy(model: nn.Module, theta: Tensor, task: Task) -> float:
    """The share of the task's test examples that `model` gets right at the flat parameters `theta` (D,).

    Only the task's own outputs compete. The model itself is not changed.

    Raises:
        TypeError: if theta is not one flat vector.
        ValueError: if theta does not fit the model, or holds NaN or infinity.

    Example:
        >>> from taskvec_mini.networks import MLP
        >>> from taskvec_mini.tasks import digit_tasks
        >>> always_even = torch.zeros(64 * 14 + 14)  # all outputs tie, so the first of a task wins
        >>> round(accuracy(MLP((64, 14)), always_even, digit_tasks()["odd or even"]), 3)
        0.519
    """
    _checks.flat_parameters("theta", theta)
    with torch.no_grad():
        answers = outputs_at(model, theta, task.test_inputs)[:, task.outputs].argmax(1)
    return float((answers == task.test_labels).double().mean())


def normalised_accuracy(merged: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """The mean over tasks of merged / individual accuracy: 1 means no loss against the finetuned models.

    Raises:
        ValueError: if the tasks differ, there are none, or an individual accuracy is 0.

    Example:
        >>> normalised_accuracy({"digits": 0.9, "rotated": 0.4}, {"digits": 0.9, "rotated": 0.8})
        0.75
    """
    if not merged or merged.keys() != individual.keys():
        raise UserError(
            f"tasks differ: merged has {sorted(merged)}, individual has {sorted(individual)}; "
            "give an accuracy of every task on both sides"
        )
    for name, value in individual.items():
        _checks.positive_number(f"the individual accuracy of {name!r}", value)
    return sum(merged[name] / individual[name] for name in merged) / len(merged)


def share_kept(
    merged: Mapping[str, float], *, start: Mapping[str, float], individual: Mapping[str, float]
) -> float:
    """How much of what the specialists gained over the start a merge keeps: mean gain over mean gain.

    1 means no loss, 0 that the merge is no better than the start. Unlike `normalised_accuracy` it gives no
    credit for what the start could do already.

    Args:
        merged: accuracies of the merge, by task.
        start: of the pretrained model.
        individual: of the finetuned models, each on its own task.

    Raises:
        ValueError: if the tasks differ, there are none, or the specialists gained nothing on the mean.

    Example:
        >>> start, individual = {"digits": 0.5, "rotated": 0.3}, {"digits": 0.9, "rotated": 0.9}
        >>> share_kept({"digits": 0.8, "rotated": 0.5}, start=start, individual=individual)
        0.5
    """
    if not merged or not merged.keys() == start.keys() == individual.keys():
        raise UserError(
            f"tasks differ: merged has {sorted(merged)}, start has {sorted(start)}, individual has "
            f"{sorted(individual)}; give an accuracy of every task in all three"
        )
    gain = sum(individual[name] - start[name] for name in merged)
    if gain <= 0:
        raise UserError(
            f"the specialists gained {gain / len(merged):.3f} on the mean, so there is nothing to keep; "
            "give the accuracies of models that learnt something"
        )
    return sum(merged[name] - start[name] for name in merged) / gain


def table(
    rows: Sequence[Mapping[str, object]] | Mapping[Any, Mapping[str, object]],
    *,
    digits: int = 3,
    index: str = "",
    columns: Sequence[str] | None = None,
) -> str:
    """Rows as aligned plain text: words to the left, numbers to the right, floats rounded to `digits` places.

    Args:
        rows: one mapping from column names to values for each row, or a mapping from labels to such rows.
        digits: decimal places of floats; one too small for them (and below 0.001) is shown as 1.2e-05.
        index: where the rows have labels, what stands above them in the first column.
        columns: which columns and in which order; those of the first row by default.

    Raises:
        ValueError: if there are no rows.
        KeyError: if a row lacks a column.

    Example:
        >>> print(table({"digits": {"accuracy": 0.97123}, "rotated": {"accuracy": 0.5}}, index="task"))
        task     accuracy
        digits      0.971
        rotated     0.500
    """
    labelled = [{index: label, **row} for label, row in rows.items()] if isinstance(rows, Mapping) else rows
    listed = _checks.not_empty("the list of rows", labelled)
    names = list(columns or listed[0])
    cells = [names]
    for row in listed:
        line = []
        for value in (row[name] for name in names):
            if not isinstance(value, float):
                line.append(str(value))
            elif value != 0 and abs(value) < min(1e-3, 0.5 * 10**-digits):
                line.append(f"{value:.1e}")
            else:
                line.append(f"{round(value, digits) + 0.0:.{digits}f}")  # + 0.0 turns -0.0 into 0.0
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    right = [isinstance(listed[0][name], int | float) for name in names]
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
