"""The parameters of an encoder that finetuning moves: read, written in place, put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.errors import UserError

Parameters = Mapping[str, Tensor] | Tensor


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The named parameters that require a gradient, in the order of `named_parameters()`.

    Buffers and frozen parameters are left out: no task vector should carry entries that never move.

    Raises:
        UserError: if the model has none.

    Example:
        >>> list(trained_parameters(nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    if not named:
        raise UserError("no parameter of the model requires a gradient; call model.requires_grad_() first")
    return named


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters on the CPU, by name: what a checkpoint holds.

    Example:
        >>> {name: tuple(part.shape) for name, part in state_of(nn.Linear(2, 1)).items()}
        {'weight': (1, 2), 'bias': (1,)}
    """
    return {
        name: part.detach().to("cpu", copy=True).contiguous()
        for name, part in trained_parameters(model).items()
    }


def write_parameters(model: nn.Module, parameters: Parameters) -> None:
    """Write values into the trained parameters of `model`, in place.

    Args:
        model: the module that is written into.
        parameters: a mapping with just the names of the trained parameters, or one flat vector (D,) in their
            order.

    Raises:
        UserError: if names or sizes differ.
        InputTypeError: if `parameters` is neither of the two.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> write_parameters(layer, torch.tensor([1.0, 2.0, 3.0]))
        >>> layer.weight.tolist(), layer.bias.tolist()
        ([[1.0, 2.0]], [3.0])
    """
    own = trained_parameters(model)
    if isinstance(parameters, Tensor):
        sizes = [part.numel() for part in own.values()]
        if parameters.ndim != 1 or len(parameters) != sum(sizes):
            raise UserError(
                f"the flat vector has shape {tuple(parameters.shape)} but the model trains {sum(sizes)} "
                "parameters; use a vector made from this architecture"
            )
        pieces = zip(own.items(), torch.split(parameters, sizes), strict=True)
        parameters = {name: piece.view(part.shape) for (name, part), piece in pieces}
    else:
        _checks.named_tensors("the state", parameters)
        _checks.check_keys(own, parameters, name="the model", other="the state")
        for name, part in own.items():
            _checks.check_shapes(name, tuple(part.shape), tuple(parameters[name].shape))
    with torch.no_grad():
        for name, part in own.items():
            part.copy_(parameters[name])


@contextlib.contextmanager
def holding(model: nn.Module, parameters: Parameters | None) -> Iterator[None]:
    """Inside the `with` block the model has these parameters, in evaluation mode; then all is as before.

    None leaves the parameters as they are. What the block itself writes is put back too.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with holding(layer, torch.tensor([2.0, 0.5])):
        ...     layer(torch.ones(1)).item()
        2.5
    """
    own = [(part, part.detach().clone()) for part in model.parameters() if part.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if parameters is not None:
            write_parameters(model, parameters)
        yield
    finally:
        with torch.no_grad():
            for part, value in own:
                part.copy_(value)
        for module, mode in modes:
            module.training = mode
