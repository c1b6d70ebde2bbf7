"""Finetuning in the open: full-batch gradient descent and mini-batch training, as whole trajectories."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.networks import stacked

Loss = Callable[[Tensor], Tensor]
BatchLoss = Callable[[Tensor, Tensor], Tensor]
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class DivergedError(UserError, ArithmeticError):
    """Training left the finite numbers. `epoch` (counted from 1) and `loss` say where and with what."""

    def __init__(self, epoch: int, loss: float, learning_rate: float):
        super().__init__(
            f"the run diverged in epoch {epoch} (loss {loss}) at learning_rate {learning_rate:g}; "
            "lower the learning rate, or clip the gradients"
        )
        self.epoch, self.loss = epoch, loss


def gradients(losses: Sequence[Loss]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from thetas (T, D) to the values (T,) and gradients (T, D) of T losses, row by row.

    Losses that stack (see `networks.stacked`) are evaluated in one `vmap`; others one after the other.

    Example:
        >>> values, slopes = gradients([lambda theta: theta.square().sum()])(torch.tensor([[3.0, 1.0]]))
        >>> values.tolist(), slopes.tolist()
        ([10.0], [[6.0, 2.0]])
    """
    together = stacked(losses) if len(losses) > 1 else None

    def evaluate(thetas: Tensor) -> tuple[Tensor, Tensor]:
        points = thetas.detach().requires_grad_()
        values = (
            together(points) if together else torch.stack([f(p) for f, p in zip(losses, points, strict=True)])
        )
        (slopes,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), slopes

    return evaluate


def gradient_descent(
    loss: Loss | Sequence[Loss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    control_variates: bool = False,
) -> Tensor:
    """Full-batch gradient descent, θ ← θ − η∇L(θ): one step is one epoch. The whole trajectory, start first.

    Args:
        loss: a function from theta (D,) to a scalar, or a sequence of T of them, each trained by itself.
        start: theta at the start (D,).
        learning_rate: the step size η, above 0.
        epochs: how many steps, at least 1.
        control_variates: whether the T losses exchange their gradients g_t at the start, and each then
            descends g_t(θ) − g_t(θ₀) + ḡ(θ₀) with ḡ their mean (SCAFFOLD: Karimireddy et al., ICML 2020,
            arXiv:1910.06378). All take the same first step, which evaluates the gradients that they
            exchange: none is evaluated for the exchange alone.

    Returns:
        For one loss (epochs + 1, D); for T losses (T, epochs + 1, D).

    Raises:
        DivergedError: as soon as a loss or a parameter is not finite, with the epoch and the loss.
        ValueError: if an argument is out of range or there are no losses.
        TypeError: if start is not a flat vector of parameters.

    Example:
        >>> bowl = lambda theta: theta.square().sum() / 2
        >>> gradient_descent(bowl, torch.tensor([1.0]), learning_rate=0.5, epochs=2).tolist()
        [[1.0], [0.5], [0.25]]
    """
    single = callable(loss)
    losses = [loss] if callable(loss) else _checks.not_empty("the list of losses", loss)
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    thetas = _checks.flat_parameters("start", start).detach().repeat(len(losses), 1)
    evaluate, path = gradients(losses), [thetas]
    for epoch in range(1, epochs + 1):
        values, slopes = evaluate(thetas)
        if control_variates and epoch == 1:
            shared = slopes.mean(0)
            variates = shared - slopes
            slopes = shared.expand_as(slopes)
        elif control_variates:
            slopes = slopes + variates
        thetas = thetas - rate * slopes
        _check_progress(values, thetas, epoch=epoch, learning_rate=rate)
        path.append(thetas)
    trajectories = torch.stack(path, dim=1)
    return trajectories[0] if single else trajectories


def finetune(
    loss: BatchLoss | Sequence[BatchLoss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    examples: int | None = None,
    optimizer: str = "sgd",
    clip_norm: float | None = None,
    warmup_steps: int = 0,
    record: Literal["epochs", "steps"] = "epochs",
    control_variates: bool = False,
    **options: Any,
) -> Tensor:
    """Mini-batch finetuning with one of torch's optimisers. The trajectory, start first.

    Every epoch visits all examples once in a fresh random order; a partial last batch is kept.

    Args:
        loss: a function of theta (D,) and an index tensor, the mean loss over those examples (what
            `networks.flat_loss` returns), or a sequence of T of them, each trained by itself.
        start: theta at the start (D,).
        learning_rate: the optimiser's rate, above 0, reached after the warm-up.
        epochs: passes over the data, at least 1.
        batch_size: examples a step, from 1 to the number of examples.
        generator: the source of the random orders, used task after task.
        examples: the number of examples; `len(loss)` by default.
        optimizer: "sgd", "adam" or "adamw".
        clip_norm: scale a longer gradient down to this norm; None leaves it.
        warmup_steps: raise the rate linearly, step s of w at s/w of it; 0 for none.
        record: keep the parameters after every epoch, or after every step.
        control_variates: whether ḡ(θ₀) − g_t(θ₀) is added to every batch's gradient of task t, before it is
            clipped. Here g_t is the gradient of the task's whole loss at the start, `loss(start)` without an
            index, and ḡ the mean over tasks: one more gradient of each whole loss.
        options: further arguments of the torch optimiser, such as momentum or weight_decay.

    Returns:
        For one loss (K + 1, D) with K epochs or steps; for T losses (T, K + 1, D).

    Raises:
        DivergedError: as soon as a loss or a parameter is not finite, with the epoch and the loss.
        ValueError: if an argument is out of range or a name is unknown.
        TypeError: if start is not flat, the generator is none, or the number of examples is not known.

    Example:
        >>> pull = lambda theta, index: (theta - index.double().mean()).square().sum() / 2
        >>> path = finetune(pull, torch.zeros(1), learning_rate=0.5, epochs=1, batch_size=2, examples=2,
        ...                 generator=torch.Generator().manual_seed(0))
        >>> path.tolist()
        [[0.0], [0.25]]
    """
    kind = _checks.named_choice("optimizer", optimizer, OPTIMIZERS)
    known = dict.fromkeys(name for name in inspect.signature(kind).parameters if name not in ("params", "lr"))
    for option in options:
        _checks.named_choice(f"option of the optimizer {optimizer!r}", option, known)
    _checks.flat_parameters("start", start)
    _checks.random_source(generator)
    make: Callable[..., torch.optim.Optimizer] = partial(kind, **options)
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    batch_size = _checks.whole_number("batch_size", batch_size)
    longest = math.inf if clip_norm is None else _checks.positive_number("clip_norm", clip_norm)
    warmup_steps = _checks.whole_number("warmup_steps", warmup_steps, minimum=0)
    every_step = _checks.named_choice("record", record, {"epochs": False, "steps": True})
    single = callable(loss)
    losses = [loss] if callable(loss) else _checks.not_empty("the list of losses", loss)
    variates: Tensor | list[float] = [0.0] * len(losses)
    if control_variates:
        _, slopes = gradients(cast(list[Loss], losses))(start.expand(len(losses), -1))
        variates = slopes.mean(0) - slopes
    trajectories = []
    for each, variate in zip(losses, variates, strict=True):
        if examples is not None:
            count = _checks.whole_number("examples", examples)
        elif hasattr(each, "__len__"):
            count = len(each)
        else:
            raise InputTypeError("this loss does not say how many examples it has; pass examples=...")
        if batch_size > count:
            raise UserError(
                f"batch_size is {batch_size} but there are {count} examples; choose a size of 1 to {count}"
            )
        theta = start.detach().clone().requires_grad_()
        torch_optimizer = make([theta], lr=rate)
        path = [start.detach().clone()]
        step = 0
        for epoch in range(1, epochs + 1):
            for batch in torch.split(torch.randperm(count, generator=generator), batch_size):
                step += 1
                warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
                for group in torch_optimizer.param_groups:
                    group["lr"] = rate * warm
                value = each(theta, batch)
                (theta.grad,) = torch.autograd.grad(value, theta)
                theta.grad += variate
                torch.nn.utils.clip_grad_norm_([theta], longest)
                torch_optimizer.step()
                _check_progress(value.detach(), theta.detach(), epoch=epoch, learning_rate=rate)
                if every_step:
                    path.append(theta.detach().clone())
            if not every_step:
                path.append(theta.detach().clone())
        trajectories.append(torch.stack(path))
    return trajectories[0] if single else torch.stack(trajectories)


def _check_progress(values: Tensor, thetas: Tensor, *, epoch: int, learning_rate: float) -> None:
    if not (bool(torch.isfinite(values).all()) and bool(torch.isfinite(thetas).all())):
        bad = values[~torch.isfinite(values)] if values.ndim else values
        worst = bad.reshape(-1)[0] if bad.numel() else values.max()
        raise DivergedError(epoch, float(worst), learning_rate)
