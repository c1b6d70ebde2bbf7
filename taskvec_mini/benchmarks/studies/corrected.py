"""Full-batch descent on encoders: one merge, the same corrected, and rounds, beside joint descent.

Here the theory speaks of the very steps that are taken, which mini-batches, momentum and AdamW do not grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import theory
from taskvec_mini.alternating import alternate
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import Encoder, load_backbone, trained_parameters
from taskvec_mini.benchmarks.heads import Head
from taskvec_mini.benchmarks.studies.base import Study, StudyRequest, Suite, SuiteSettings, each_suite, say
from taskvec_mini.benchmarks.studies.exchange import IMAGES_OF_FOUR, TEXTS_OF_FOUR
from taskvec_mini.benchmarks.studies.task_choice import TEXT_EPOCH, TaskChoice
from taskvec_mini.benchmarks.training import Settings
from taskvec_mini.descent import Loss
from taskvec_mini.errors import UserError
from taskvec_mini.networks import flat_loss, flatten

DESCENT = Settings(optimizer="gd", learning_rate=3e-4, epochs=4, batch_size=500)
TEXT_DESCENT = replace(
    TEXT_EPOCH, optimizer="gd", learning_rate=0.01, epochs=4, batch_size=50, clip_norm=None
)
FEW_CLASSES = ("mnist", "rsscn7", "dtd10", "cars")  # 500 images hold all of them
DESCENT_IMAGES = replace(IMAGES_OF_FOUR, tasks=FEW_CLASSES, limit=500)
DESCENT_TEXTS = replace(TEXTS_OF_FOUR, limit=100)  # one graph holds them all
DESCENT_RATES: Mapping[str, TaskChoice] = {  # by what specialists reach at the end of the budget
    "images, gd": TaskChoice(
        "one of the encoders",
        backbone="pocket",
        tasks=DESCENT_IMAGES,
        recipe=DESCENT,
        rates=(1e-4, 3e-4, 1e-3, 3e-3, 0.01),
    ),
    "texts, gd": TaskChoice(
        "one of the encoders", tasks=DESCENT_TEXTS, recipe=TEXT_DESCENT, rates=(1e-3, 3e-3, 0.01, 0.03, 0.1)
    ),
    "texts, momentum": TaskChoice(
        "momentum in mini-batches",
        tasks=TEXTS_OF_FOUR,
        recipe=replace(TEXT_EPOCH, optimizer="sgd", momentum=0.9),
        rates=(3e-4, 1e-3, 3e-3, 0.01, 0.03),
    ),
}
STEPS_A_ROUND = 2  # of the rounds: with an exchange they are joint descent


@dataclass(eq=False)
class Corrected(Study):
    """What believing the gradient view buys on encoders, where all steps take full batches.

    With k steps from one start: the mean of the task vectors; the same less the leading term of its gap, at
    the start and along the path; the mean after one exchange; and rounds of two steps, without an exchange
    and with one. Each stands beside k steps of joint descent, with its accuracy, its mean training loss, and
    how far it is from where joint descent ends, as a share of the way that joint descent goes. What is
    finished is kept beside the runs and read again.

    Attributes:
        description: what it measures.
        backbone: the name of the encoder.
        tasks: which tasks, and how models are judged.
        recipe: of descent, but for the rate and the seed, which nothing here depends on.
        rates: the learning rates: the best in the search of `DESCENT_RATES`, and others beside it.
    """

    description: str
    backbone: str = "pocket"
    tasks: SuiteSettings = DESCENT_IMAGES
    recipe: Settings = DESCENT
    rates: tuple[float, ...] = (1e-3,)

    def run(self, request: StudyRequest) -> dict[str, Any]:
        """All seeds, one after the other."""
        backbone = load_backbone(self.backbone, folder=request.data)
        start: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for seed, suite in each_suite(self, backbone, self.tasks, folder=request.data):
            about = {"backbone": self.backbone, **suite.about, "recipe": asdict(self.recipe)}
            self.settings = {**about, "rates": list(self.rates), "steps_a_round": STEPS_A_ROUND}
            start[str(seed)] = suite.scores(None, suite.tasks)
            for rate in self.rates:
                own = replace(self.recipe, learning_rate=rate)
                found = suite.kept(
                    f"corrected_{rate:g}",
                    partial(_merges, suite, learning_rate=rate, steps=own.epochs),
                    about={**about, "recipe": asdict(own)},
                )
                rows += [{"seed": seed, "learning_rate": rate, **row} for row in found]
                say(f"{self.backbone}, seed {seed}, rate {rate:g}")
        return {
            "steps": self.recipe.epochs,
            "seeds": list(self.seeds),
            "start": start,
            "rows": rows,
            "tasks": list(suite.tasks),
            **suite.sizes(),
            "parameters": sum(part.numel() for part in trained_parameters(backbone.model).values()),
        }


def task_losses(
    backbone: Encoder, heads: Mapping[str, Head], tasks: Mapping[str, Task]
) -> tuple[list[Loss], Tensor]:
    """The mean training loss of each task as a function of the encoder's parameters (D,), and those it has.

    One call holds the graph of all training examples, so they should be hundreds and not thousands.

    Raises:
        UserError: if a parameter of the encoder is frozen: flat parameters would hold it too.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> from taskvec_mini.benchmarks.heads import prototype_head
        >>> encoder, tasks = load_backbone("random-pocket"), load_tasks(["digits"], suite="digits", limit=32)
        >>> heads = {name: prototype_head(encoder, task) for name, task in tasks.items()}
        >>> (loss,), start = task_losses(encoder, heads, tasks)
        >>> loss(start).shape, start.ndim
        (torch.Size([]), 1)
    """
    frozen = [name for name, part in backbone.model.named_parameters() if not part.requires_grad]
    if frozen:
        raise UserError(
            f"{len(frozen)} parameters of {backbone.name} are frozen, such as {frozen[0]}; call "
            "requires_grad_() on the model first"
        )
    losses: list[Loss] = []
    for name, task in tasks.items():
        inputs, labels = task.part("train")
        whole = nn.Sequential(backbone.model, heads[name].to(backbone.device))
        losses.append(flat_loss(whole, backbone.prepare(inputs), labels.to(backbone.device)))
    return losses, flatten(backbone.model)


def _merges(suite: Suite, *, learning_rate: float, steps: int) -> list[dict[str, Any]]:
    """Every way to the merge at one rate, joint descent first."""
    losses, start = task_losses(suite.backbone, suite.heads, suite.tasks)
    mean = 1 / len(losses)
    joint = theory.multitask_descent(
        losses, start, learning_rate=learning_rate, epochs=steps, scaling_coef=mean
    )[-1]

    def merged(*, exchange: bool) -> Tensor:
        vectors = theory.task_vectors(
            losses, start, learning_rate=learning_rate, epochs=steps, control_variates=exchange
        )
        return start + vectors.mean(0)

    def corrected(*, along_path: bool) -> Tensor:
        return theory.corrected_merge(
            losses,
            start,
            learning_rate=learning_rate,
            epochs=steps,
            scaling_coef=mean,
            along_path=along_path,
        )

    def rounds(*, exchange: bool) -> Tensor:
        *_, last = alternate(
            losses,
            start,
            rounds=steps // STEPS_A_ROUND,
            epochs=STEPS_A_ROUND,
            learning_rate=learning_rate,
            control_variates=exchange,
        )
        return last.theta

    ways = {
        "one merge": partial(merged, exchange=False),
        "corrected at the start": partial(corrected, along_path=False),
        "corrected along the path": partial(corrected, along_path=True),
        "one merge after an exchange": partial(merged, exchange=True),
        "rounds": partial(rounds, exchange=False),
        "rounds with an exchange": partial(rounds, exchange=True),
    }

    def row(training: str, theta: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            loss = torch.stack([loss(theta) for loss in losses]).mean().item()
        away = float((theta - joint).norm() / (joint - start).norm())
        return {
            "training": training,
            "test": suite.scores(theta, suite.tasks),
            "train_loss": round(loss, 6),
            "distance_to_joint": float(f"{away:.4g}"),
        }

    return [row("joint", joint), *(row(name, way()) for name, way in ways.items())]
