"""Heads that are fitted to training data, on embeddings of the encoder as it is.

`prototype_head` compares directions with class means, as nearest-class-mean and prototypical classifiers do
(Mensink et al. 2013; Snell et al. 2017, arXiv:1703.05175). `linear_probe` learns a linear map on frozen
embeddings instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import PARTS, Task, unit_of
from taskvec_mini.benchmarks.encoders import Encoder, embed
from taskvec_mini.benchmarks.heads.base import LinearHead, PrototypeHead
from taskvec_mini.errors import UserError

LOGIT_SCALE = 16.0  # factor of the cosines, unless another is asked for
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # what a linear probe tries


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe: its head, the share of test images it gets right, and how it was chosen.

    Attributes:
        head: the learnt head; it may be used like any other.
        accuracy: on test images, 0 to 1.
        val_accuracy: on validation images, the best over the inverse penalties tried.
        inverse_penalty: the one that was best, scikit-learn's C.
    """

    head: LinearHead
    accuracy: float
    val_accuracy: float
    inverse_penalty: float


def prototype_head(
    backbone: Encoder,
    task: Task,
    *,
    logit_scale: float = LOGIT_SCALE,
    centred: bool = True,
    shots: int | None = None,
    batch_size: int | None = None,
) -> PrototypeHead:
    """The head whose class vectors are mean directions of the training images, under the backbone as it is.

    Args:
        backbone: the pretrained encoder, before finetuning.
        task: only its training images are used.
        logit_scale: factor of the cosines.
        centred: whether directions are seen from the mean embedding of the task, or from zero.
        shots: class means of the first so many training images of each class, or of fewer where a class has
            no more; of all by default. Few leave finetuning more to do. The centre is the mean of all, whose
            labels it does not need.
        batch_size: inputs embedded at a time, as in `encoders.embed`.

    Raises:
        UserError: if a class has no training image, or `shots` is below 1.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> task = load_tasks(["digits"], suite="digits", limit=100)["digits"]
        >>> prototype_head(load_backbone("random-pocket"), task).prototypes.shape
        torch.Size([10, 256])
    """
    check_classes(task)
    count = None if shots is None else _checks.whole_number("shots", shots)
    inputs, labels = task.part("train")
    embeddings = embed(backbone, inputs, batch_size=batch_size)
    labels = labels.to(embeddings.device)
    centre = _mean(embeddings) if centred else torch.zeros_like(embeddings[0])
    directions = F.normalize(embeddings - centre, dim=1)
    means = [_mean(directions[labels == label][:count]) for label in range(len(task.class_names))]
    return PrototypeHead(F.normalize(torch.stack(means), dim=1), centre, logit_scale)


def linear_probe(
    backbone: Encoder,
    task: Task,
    *,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
    batch_size: int | None = None,
) -> Probe:
    """Logistic regression on frozen, standardised embeddings: how well the encoder separates the classes.

    The one of `inverse_penalties` with the best validation accuracy counts, the smallest of equals; test
    images play no part in the choice.

    Raises:
        UserError: if there is no inverse penalty, one is not above 0, or a class has no training image.

    Example:
        >>> from taskvec_mini.benchmarks.encoders import load_backbone
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> task = load_tasks(["digits"], suite="digits", limit=100)["digits"]
        >>> linear_probe(load_backbone("random-pocket"), task, inverse_penalties=[0.1]).accuracy > 0.3
        True
    """
    from sklearn.linear_model import LogisticRegression  # here, because it takes a second to import

    check_classes(task)
    numbers = [_checks.positive_number("an inverse penalty", each) for each in inverse_penalties]
    choices = sorted(_checks.not_empty("inverse_penalties", numbers))
    embeddings = {}
    labels = {}
    for part in PARTS:
        inputs, part_labels = task.part(part)
        embeddings[part] = embed(backbone, inputs, batch_size=batch_size).cpu()
        labels[part] = part_labels.cpu()
    values = embeddings["train"].double()
    centre = values.mean(0)
    spread = values.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)  # a feature that never changes stays 0
    standardised = ((values - centre) / spread).numpy()
    probes = []
    for choice in choices:
        model = LogisticRegression(C=choice, max_iter=2000)
        model.fit(standardised, labels["train"].numpy())
        weight = torch.tensor(model.coef_)
        bias = torch.tensor(model.intercept_)
        if len(weight) == 1:  # of two classes only the difference was learnt
            weight = torch.cat([-weight, weight]) / 2
            bias = torch.cat([-bias, bias]) / 2
        weight = weight / spread  # the standardisation becomes part of the head
        head = LinearHead(weight.float(), (bias - weight @ centre).float())
        right = {part: head(embeddings[part]).argmax(1) == labels[part] for part in ("val", "test")}
        share = {part: float(hits.double().mean()) for part, hits in right.items()}
        probes.append(Probe(head, accuracy=share["test"], val_accuracy=share["val"], inverse_penalty=choice))
    return max(probes, key=lambda probe: probe.val_accuracy)  # of equals the first, with the smallest number


def _mean(rows: Tensor) -> Tensor:
    """The mean row, summed in float64 so that the order of the rows hardly matters."""
    return rows.double().mean(0).to(rows.dtype)


def check_classes(task: Task) -> None:
    """Whether every class has a training example, without which nothing would point to it.

    Raises:
        UserError: if one has none.
    """
    counts = torch.bincount(task.part("train")[1], minlength=len(task.class_names))
    missing = [name for name, count in zip(task.class_names, counts.tolist(), strict=True) if count == 0]
    if missing:
        examples = unit_of([task])
        raise UserError(
            f"task {task.name!r} has no training {examples.removesuffix('s')} of {len(missing)} of its "
            f"{len(counts)} classes, the first {missing[0]!r}; take more training {examples} (a higher "
            "limit, on the command line --limit)"
        )
