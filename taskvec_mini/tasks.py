"""Classification tasks, and a suite of seven on real handwritten digits that needs no download.

The images are the 1,797 digits of 8 x 8 pixels which scikit-learn ships: the test part of the *Optical
Recognition of Handwritten Digits* data (Alpaydin & Kaynak, UCI Machine Learning Repository, 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import UserError
from taskvec_mini.networks import FlatLoss, LossName, flat_loss

DIGITS = tuple(str(digit) for digit in range(10))
OUTPUTS = 14  # outputs a network needs for the whole suite: ten digits, two parities, two sizes


@dataclass(frozen=True, eq=False)
class Task:
    """A named classification task: examples to learn from, examples to be judged on, and where it answers.

    Attributes:
        name: a short name, unique in its suite.
        question: what the task asks, in words.
        train_inputs, train_labels: N examples, (N, ...) floats and (N,) integers from 0.
        test_inputs, test_labels: examples kept apart for judging.
        class_names: the meaning of each label.
        outputs: the outputs of a network which hold this task's classes (its head).

    Raises:
        ValueError: if a part has no examples, lengths differ, or a label has no class name.
    """

    name: str
    question: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    outputs: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        for part, inputs, labels in (
            ("train", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            if len(inputs) == 0 or len(inputs) != len(labels):
                raise UserError(
                    f"task {self.name!r} has {len(inputs)} {part} inputs and {len(labels)} {part} labels; "
                    "give one label for each input, and at least one"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names):
                raise UserError(
                    f"task {self.name!r} has {part} labels from {int(labels.min())} to {int(labels.max())} "
                    f"for {len(self.class_names)} classes; number the classes from 0"
                )

    def __repr__(self) -> str:
        sizes = f"{len(self.train_labels)} train, {len(self.test_labels)} test"
        return f"Task({self.name!r}, {len(self.class_names)} classes, {sizes})"

    def train_loss(self, model: torch.nn.Module, *, loss: LossName = "cross_entropy") -> FlatLoss:
        """The mean training loss of `model` on this task, as a function of the flat parameters."""
        return flat_loss(model, self.train_inputs, self.train_labels, loss=loss, outputs=self.outputs)


def digit_tasks(
    *, seed: int = 0, test_share: float = 0.25, dtype: torch.dtype = torch.float64
) -> dict[str, Task]:
    """The digits suite: seven tasks on the same 1,797 images, for a network of 64 inputs and 14 outputs.

    "digits", "rotated" (a quarter turn), "mirrored", "inverted" (dark for bright) and "shuffled" (one fixed
    permutation of the pixels) ask which digit is shown: outputs 0-9. "odd or even" answers at outputs 10-11,
    "below five" at 12-13. An image is a training image of all tasks or a test image of all.

    Args:
        seed: decides the split and the permutation.
        test_share: the share of images kept for testing, between 0 and 1.
        dtype: of the inputs, which run from 0 (paper) to 1 (ink).

    Returns:
        The tasks by name.

    Raises:
        ValueError: if the seed is below 0 or the share is not between 0 and 1.
        TypeError: if the seed is not a whole number.

    Example:
        >>> tasks = digit_tasks()
        >>> tasks["odd or even"]
        Task('odd or even', 2 classes, 1348 train, 449 test)
    """
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    if not 0 < test_share < 1:
        raise UserError(f"test_share must lie between 0 and 1, got {test_share}; 0.25 is usual")
    generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
    data = load_digits()
    images = torch.tensor(data.images, dtype=dtype) / 16
    digits = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=generator)
    shuffle = torch.randperm(64, generator=generator)
    train, test = order[round(test_share * len(order)) :], order[: round(test_share * len(order))]

    def task(
        name: str,
        question: str,
        *,
        view: Callable[[Tensor], Tensor] = lambda x: x,
        labels: Tensor = digits,
        classes: tuple[str, ...] = DIGITS,
        outputs: slice = slice(0, 10),
    ) -> Task:
        pixels = view(images).reshape(-1, 64)
        return Task(
            name, question, pixels[train], labels[train], pixels[test], labels[test], classes, outputs
        )

    suite = [
        task("digits", "Which digit is it?"),
        task("rotated", "Which digit, turned by 90 degrees?", view=lambda x: x.rot90(1, (1, 2))),
        task("mirrored", "Which digit, seen in a mirror?", view=lambda x: x.flip(2)),
        task("inverted", "Which digit, with dark for bright?", view=lambda x: 1 - x),
        task(
            "shuffled",
            "Which digit, with its pixels shuffled?",
            view=lambda x: x.flatten(1)[:, shuffle],
        ),
        task(
            "odd or even",
            "Is the digit odd or even?",
            labels=digits % 2,
            classes=("even", "odd"),
            outputs=slice(10, 12),
        ),
        task(
            "below five",
            "Is the digit below five?",
            labels=(digits < 5).long(),
            classes=("five or more", "below five"),
            outputs=slice(12, 14),
        ),
    ]
    return {each.name: each for each in suite}


def choose(tasks: dict[str, Task], *names: str) -> list[Task]:
    """The named tasks of a suite, in the order asked; a ValueError suggests near names for an unknown one.

    Example:
        >>> [task.name for task in choose(digit_tasks(), "mirrored", "digits")]
        ['mirrored', 'digits']
    """
    return [_checks.named_choice("task", name, tasks) for name in names]
