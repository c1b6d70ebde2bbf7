"""The error messages quoted on the page `troubleshooting` are those that the library gives, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taskvec_mini.bounds import network_bounds
from taskvec_mini.descent import finetune, gradient_descent
from taskvec_mini.networks import MLP, flat_loss, flatten
from taskvec_mini.tasks import choose, digit_tasks
from taskvec_mini.vectors import TaskVector

PAGE = Path(__file__).resolve().parents[1] / "book" / "troubleshooting.md"
START = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
BOWL = lambda theta: theta.square().sum() / 2  # noqa: E731
STEPS = {"learning_rate": 0.1, "epochs": 1}


def quoted() -> list[str]:
    """The messages on the page: the fenced blocks marked `text`, each joined to one line."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [" ".join(block.split()) for block in blocks]


def between(finetuned: dict[str, torch.Tensor]) -> TaskVector:
    return TaskVector.between(START, {**START, **finetuned})


def mini_batches(**changes: object) -> torch.Tensor:
    model = MLP((2, 3), generator=torch.Generator().manual_seed(0))
    loss = flat_loss(model, torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    settings = {**STEPS, "batch_size": 2, "generator": torch.Generator().manual_seed(0), **changes}
    return finetune(loss, flatten(model), **settings)


def load(folder: Path, content: bytes | dict[str, torch.Tensor] | TaskVector) -> TaskVector:
    """What `load` makes of a file `saved.safetensors` with this content; a vector is saved and cut short."""
    path = folder / "saved.safetensors"
    if isinstance(content, TaskVector):
        content.save(path)
        content = path.read_bytes()[:-4]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return TaskVector.load(path)


def small_labels() -> object:
    return flat_loss(MLP((2, 3)), torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]))


BAD_CALLS: dict[str, Callable[[Path], object]] = {
    "keys": lambda _: TaskVector.between(START, {"weight": torch.zeros(2, 3), "scale": torch.zeros(2)}),
    "shapes": lambda _: between({"bias": torch.zeros(3)}),
    "dtypes": lambda _: between({"bias": torch.zeros(2, dtype=torch.float64)}),
    "integers": lambda _: TaskVector.between(
        {**START, "steps": torch.tensor(1)}, {**START, "steps": torch.tensor(2)}
    ),
    "not finite": lambda _: between({"bias": torch.tensor([0.0, float("nan")])}),
    "pickle": lambda folder: load(folder, START),
    "cut short": lambda folder: load(folder, TaskVector.between(START, START)),
    "diverged": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=1e30, epochs=100),
    "learning rate": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0, epochs=1),
    "epochs": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0.1, epochs=0),
    "whole epochs": lambda _: gradient_descent(BOWL, torch.ones(1), learning_rate=0.1, epochs=2.5),
    "batch size": lambda _: mini_batches(batch_size=8),
    "no examples": lambda _: finetune(
        BOWL, torch.ones(1), **STEPS, batch_size=1, generator=torch.Generator()
    ),
    "optimiser": lambda _: mini_batches(optimizer="adamW"),
    "option": lambda _: mini_batches(optimizer="sgd", weight_decy=0.1),
    "activation": lambda _: MLP((2, 3), activation="than"),
    "task": lambda _: choose(digit_tasks(), "digit"),
    "labels": lambda _: small_labels(),
    "not flat": lambda _: gradient_descent(BOWL, torch.ones(2, 2), **STEPS),
    "kink": lambda _: network_bounds(MLP((2, 3, 2), activation="relu"), torch.zeros(1, 2)).hessian,
    "no direction": lambda _: TaskVector.between(START, START).cosine(TaskVector.between(START, START)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_message_is_quoted(name: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, ArithmeticError)) as caught:
        BAD_CALLS[name](tmp_path)
    message = str(caught.value).replace(f"{tmp_path}/", "").replace(f"{tmp_path}\\", "")
    assert f"{caught.type.__name__}: {message}" in quoted()


def test_nothing_else_is_quoted() -> None:
    assert len(quoted()) == len(set(quoted())) == len(BAD_CALLS)
