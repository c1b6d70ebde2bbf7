"""The small networks, whole in view, and the way between named parameters and one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

LossName = Literal["cross_entropy", "squared_error"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "relu": torch.relu,
    "identity": lambda z: z,
}


class MLP(nn.Module):
    """A feed-forward network: linear layers with an activation between them, none after the last.

    Args:
        sizes: widths from inputs to outputs, at least two; `(64, 32, 10)` has one hidden layer of 32.
        activation: "tanh", "sigmoid", "softplus", "gelu", "relu" or "identity".
        generator: the source of the initial weights; None takes torch's default generator.
        dtype: float64 by default, because the theory is checked to rounding.

    The weights and biases of a layer with n inputs are drawn uniformly from ±1/√n, as `torch.nn.Linear` does.

    Raises:
        ValueError: if there are fewer than two sizes, one is below 1, or the activation is unknown.
        TypeError: if a size is not a whole number.

    Example:
        >>> model = MLP((64, 32, 10), generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(5, 64, dtype=torch.float64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        self.sizes = tuple(_checks.whole_number("a layer size", size) for size in sizes)
        if len(self.sizes) < 2:
            raise UserError(f"sizes must hold at least inputs and outputs, got {self.sizes}")
        self.activation = activation
        self._activate = _checks.named_choice("activation", activation, ACTIVATIONS)
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        # skip_init, because Linear's own initialisation would draw from torch's default generator
        empty = [nn.utils.skip_init(nn.Linear, n, m, dtype=dtype) for n, m in pairs]  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(empty)
        for width, layer in zip(self.sizes[:-1], self.layers, strict=True):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (N, sizes[-1]) of inputs (N, sizes[0])."""
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = self._activate(layer(hidden))
        outputs: Tensor = self.layers[-1](hidden)
        return outputs


def flatten(model: nn.Module) -> Tensor:
    """All parameters of `model` as one new 1-D tensor (D,), in the order of `named_parameters()`.

    Raises:
        ValueError: if the model has no parameters.

    Example:
        >>> flatten(MLP((2, 3))).shape
        torch.Size([9])
    """
    parts = [parameter.detach().reshape(-1) for parameter in model.parameters()]
    if not parts:
        raise UserError("the model has no parameters to flatten; give one that was built with layers")
    return torch.cat(parts)


def unflatten(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """The flat vector `theta` (D,) cut into the named parameters of `model`: views of theta, not copies.

    Raises:
        ValueError: if theta does not hold as many numbers as the model has parameters.

    Example:
        >>> unflatten(MLP((2, 1)), torch.tensor([1.0, 2.0, 3.0]))
        {'layers.0.weight': tensor([[1., 2.]]), 'layers.0.bias': tensor([3.])}
    """
    named = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]
    if theta.ndim != 1 or len(theta) != sum(sizes):
        raise UserError(
            f"theta has shape {tuple(theta.shape)} but the model has {sum(sizes)} parameters; "
            "use a vector that networks.flatten made from this architecture"
        )
    parts = torch.split(theta, sizes)
    return {name: part.view_as(old) for (name, old), part in zip(named.items(), parts, strict=True)}


def outputs_at(model: nn.Module, theta: Tensor, inputs: Tensor) -> Tensor:
    """Outputs (N, C) of `model` at the flat parameters `theta`; the model's own parameters stay untouched.

    Inputs are converted to the dtype of theta; numbers of tokens (int32 or int64) are left as they are.

    Raises:
        ValueError: if theta does not hold as many numbers as the model has parameters.

    Example:
        >>> outputs_at(MLP((2, 1)), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[10.0, 100.0]]))
        tensor([[213.]])
    """
    if inputs.dtype not in (torch.int32, torch.int64):
        inputs = inputs.to(theta.dtype)
    result: Tensor = functional_call(model, unflatten(model, theta), (inputs,))
    return result


@dataclass(frozen=True, eq=False)
class FlatLoss:
    """The mean loss of a model over a set of examples, as a function of the flat parameters.

    Call it with theta (D,) for the mean over all N examples, or with theta and an index tensor for the mean
    over those examples alone (a mini-batch). `len(loss)` is N. Make one with `flat_loss`.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: LossName
    outputs: slice

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """The mean loss at theta (D,), over all examples or over those of the index tensor."""
        inputs = self.inputs if index is None else self.inputs[index]
        targets = self.targets if index is None else self.targets[index]
        return self.mean_over(theta, inputs=inputs, targets=targets)

    def mean_over(self, theta: Tensor, *, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over other examples of the same kind: inputs (n, ...) and their targets."""
        logits = outputs_at(self.model, theta, inputs)[:, self.outputs]
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, targets)
        if not targets.is_floating_point():
            targets = F.one_hot(targets, logits.shape[1])
        return (logits - targets.to(logits.dtype)).square().sum(1).mean() / 2

    def __len__(self) -> int:
        return len(self.inputs)


def flat_loss(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName = "cross_entropy",
    outputs: slice = slice(None),
) -> FlatLoss:
    """The mean loss of `model` over the examples, as a function of the flat parameter vector.

    Args:
        model: any module from inputs (N, ...) to outputs (N, C); only its architecture is used.
        inputs: N examples; they are converted to the dtype of theta when the loss is called, but for the
            numbers of tokens (int32 or int64).
        targets: N class labels (integers), or for squared error N x C numbers as well.
        loss: "cross_entropy", or "squared_error": half the squared distance, labels as one-hot vectors.
        outputs: which outputs of the model this task uses (its head); all of them by default.

    Raises:
        ValueError: if there are no examples, lengths differ, or a label is not among the outputs.
        TypeError: if cross-entropy gets targets that are not integers.

    Example:
        >>> model = MLP((2, 3), generator=torch.Generator().manual_seed(0))
        >>> loss = flat_loss(model, torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
        >>> loss(torch.zeros(9)).item() - torch.tensor(3.0).log().item() < 1e-6
        True
    """
    _checks.named_choice("loss", loss, {"cross_entropy": 0, "squared_error": 0})
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise UserError(
            f"got {len(inputs)} inputs and {len(targets)} targets; give one target for each input"
        )
    with torch.no_grad():
        classes = outputs_at(model, flatten(model), inputs[:1])[:, outputs].shape[1]
    if targets.is_floating_point():
        if loss == "cross_entropy":
            raise InputTypeError(
                f"cross_entropy needs integer labels, got {targets.dtype}; call targets.long()"
            )
        if targets.shape != (len(inputs), classes):
            raise UserError(f"targets have shape {tuple(targets.shape)}, expected {(len(inputs), classes)}")
    elif targets.ndim != 1 or int(targets.min()) < 0 or int(targets.max()) >= classes:
        low, high = int(targets.min()), int(targets.max())
        raise UserError(
            f"labels must be one number each from 0 to {classes - 1}, got shape {tuple(targets.shape)} with "
            f"values from {low} to {high}; renumber the classes or widen the last layer"
        )
    return FlatLoss(model, inputs, targets if targets.is_floating_point() else targets.long(), loss, outputs)


def stacked(losses: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor] | None:
    """T losses as one function from thetas (T, D) to values (T,), or None where they do not stack.

    They stack when all come from `flat_loss` with one model, one kind of loss and data of equal shapes.

    Example:
        >>> model = MLP((2, 3))
        >>> losses = [flat_loss(model, torch.ones(4, 2), torch.full((4,), label)) for label in (0, 1)]
        >>> stacked(losses)(torch.zeros(2, 9)).shape
        torch.Size([2])
        >>> stacked([lambda theta: theta.sum()]) is None
        True
    """
    flat = [loss for loss in losses if isinstance(loss, FlatLoss)]
    kinds = {
        (
            id(each.model),
            each.loss,
            str(each.outputs),
            each.inputs.shape,
            each.targets.shape,
            each.targets.dtype,
        )
        for each in flat
    }
    if len(flat) < len(losses) or len(kinds) != 1:
        return None
    inputs = torch.stack([loss.inputs for loss in flat])
    targets = torch.stack([loss.targets for loss in flat])
    batched = vmap(lambda theta, x, y: flat[0].mean_over(theta, inputs=x, targets=y))
    return lambda thetas: batched(thetas, inputs, targets)
