"""Examples of a task to look at, and the file of those whose licence allows a book to show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.benchmarks.data.tasks import Task
from taskvec_mini.errors import MissingFileError, UserError


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples of one task.

    Attributes:
        words: the name of each one's class.
        source: where they are from.
        licence: under which they are shown.
        images: uint8 (N, H, W) or (N, H, W, 3); None where they are texts.
        texts: N texts; empty where they are images.
    """

    words: tuple[str, ...]
    source: str
    licence: str
    images: Tensor | None = None
    texts: tuple[str, ...] = ()


def example_images(task: Task, *, count: int = 8) -> tuple[Tensor, list[str]]:
    """Training images of as many classes as possible, the first of each, and the names of their classes.

    Args:
        task: of images.
        count: how many; fewer where there are not so many.

    Returns:
        Images (count, ...) in the order of the classes, spread over all of them; and their classes.
        `figures.draw_strips` takes both.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> images, words = example_images(load_tasks(["digits"], suite="digits")["digits"], count=5)
        >>> images.shape, words
        (torch.Size([5, 8, 8]), ['0', '2', '4', '6', '8'])
    """
    positions = example_positions(task, count=count)
    inputs, labels = task.part("train")
    return inputs[positions], [task.class_names[label] for label in labels[positions].tolist()]


def example_positions(task: Task, *, count: int) -> Tensor:
    """Positions in the training part: the first of each class; then, where that is not enough, the second.

    Raises:
        UserError: if `count` is below 1.
    """
    count = _checks.whole_number("count", count)
    labels = task.part("train")[1].tolist()
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    classes = sorted(members)
    if count < len(classes):  # spread over all of them
        classes = [classes[i * len(classes) // count] for i in range(count)]
    rounds = max(map(len, members.values()))
    order = [(members[each][i], each) for i in range(rounds) for each in classes if i < len(members[each])]
    chosen = sorted(order[:count], key=lambda pair: pair[1])
    return torch.tensor([position for position, _ in chosen])


def write_examples(path: Path, examples: Mapping[str, Examples], *, withheld: Mapping[str, str]) -> None:
    """Write examples of several tasks, and why others are not shown, to one npz file without pickles."""
    arrays: dict[str, Any] = {"tasks": np.array(list(examples), dtype=np.str_)}
    for name, each in examples.items():
        for key in ("words", "texts", "source", "licence"):
            arrays[f"{name}/{key}"] = np.array(getattr(each, key), dtype=np.str_)
        if each.images is not None:
            arrays[f"{name}/images"] = each.images.numpy()
    arrays["withheld"] = np.array(list(withheld), dtype=np.str_)
    arrays["reasons"] = np.array(list(withheld.values()), dtype=np.str_)
    savez: Any = np.savez_compressed  # its type hints know no arrays by name
    with _files.replacing(path) as place, open(place, "wb") as file:
        savez(file, **arrays)


def read_examples(path: Path | str) -> tuple[dict[str, Examples], dict[str, str]]:
    """What `write_examples` wrote: examples by task, and by task why it has none.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is damaged.
    """
    remedy = "get it again from the book's repository"
    if not Path(path).is_file():
        raise MissingFileError(f"there is no file {path}; {remedy}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        found = {}
        for name in arrays["tasks"].tolist():
            images = arrays.get(f"{name}/images")
            found[name] = Examples(
                words=tuple(arrays[f"{name}/words"].tolist()),
                source=str(arrays[f"{name}/source"]),
                licence=str(arrays[f"{name}/licence"]),
                images=None if images is None else torch.from_numpy(images),
                texts=tuple(arrays[f"{name}/texts"].tolist()),
            )
        reasons = dict(zip(arrays["withheld"].tolist(), arrays["reasons"].tolist(), strict=True))
    except Exception as error:  # of zip, of numpy, or an array that is not there
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); {remedy}") from error
    return found, reasons
