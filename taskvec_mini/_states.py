"""State dicts in memory: which tensors make up a task vector, and which stay as they are.

A state dict holds more than weights: counts and indices, running statistics of batch normalisations, one
tensor under two names. And some hold no weights at all that a difference could be taken of: adapters hold
factors, quantised models codes. Nothing here is skipped in silence.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from taskvec_mini import _checks
from taskvec_mini.errors import InputTypeError, UserError

Model = Mapping[str, Tensor] | nn.Module

STATISTICS = ("running_mean", "running_var")  # what batch normalisation calls its running statistics
RECOMPUTE = "torch.optim.swa_utils.update_bn(batches, model)"
_SCALES = ("scale", "scales", "absmax", "SCB", "weight_scale", "weight_scale_inv", "w_scale")
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_SAMPLE = 16  # entries of two changes that are compared before all of them are
_HALF = (torch.float16, torch.bfloat16)


def is_statistic(name: str) -> bool:
    """Whether this is the name of a running mean or variance.

    Example:
        >>> is_statistic("layer1.bn.running_var"), is_statistic("layer1.bn.weight")
        (True, False)
    """
    return name.rpartition(".")[2] in STATISTICS


def matching(patterns: str | Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that one of some patterns fits, as in a shell; an error where a pattern fits none.

    Example:
        >>> matching("head.*", ["head.weight", "body.weight"])
        {'head.weight'}
    """
    found = set()
    listed = list(names)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in listed if fnmatch.fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(
                f"exclude names {pattern!r}, but no tensor is called so; the first ones are "
                f"{', '.join(map(repr, listed[:3]))}"
            )
        found |= fitting
    return found


def weights_of(pretrained: Model, finetuned: Model) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Two mappings to subtract: of modules their parameters, a tied one once; else what was given."""
    modules = [isinstance(model, nn.Module) for model in (pretrained, finetuned)]
    if isinstance(pretrained, nn.Module) and isinstance(finetuned, nn.Module):
        start, end = dict(pretrained.named_parameters()), dict(finetuned.named_parameters())
        for name in set(start) ^ set(end):
            if name in dict(pretrained.named_parameters(remove_duplicate=False)) and name in dict(
                finetuned.named_parameters(remove_duplicate=False)
            ):
                which, other = ("pretrained", "finetuned") if name in end else ("finetuned", "pretrained")
                raise UserError(
                    f"{name!r} is tied to another tensor in {which} and a tensor of its own in {other}; give "
                    "two models that are both tied (model.tie_weights() in transformers) or both untied"
                )
        return start, end
    if any(modules):
        which, other = ("pretrained", "finetuned") if modules[0] else ("finetuned", "pretrained")
        given = pretrained if modules[0] else finetuned
        raise InputTypeError(
            f"{which} is a module ({type(given).__name__}) and {other} is none; give two modules, or the "
            "state dicts of both: model.state_dict() makes one"
        )
    for name, state in (("pretrained", pretrained), ("finetuned", finetuned)):
        _checks.named_tensors(name, state)
    return pretrained, finetuned  # type: ignore[return-value]


def split(
    pretrained: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    *,
    excluded: set[str],
    carry_integers: bool,
    carry_statistics: bool,
) -> tuple[list[str], list[str]]:
    """The names to subtract, and those of the pretrained model that stay as they are.

    Raises:
        InputTypeError: if one of the two is an adapter or quantised, or there is a tensor that can neither
            be subtracted nor left as it is.
        UserError: if keys or shapes differ, or a pattern fits no name.
    """
    for which, state in (("pretrained", pretrained), ("finetuned", finetuned)):
        _refuse_adapter(which, state)
    left_out = set(excluded)
    states = {"pretrained": pretrained, "finetuned": finetuned}
    for which, state in states.items():
        for name, tensor in state.items():
            if name not in left_out:
                _refuse_unusual(name, tensor, state=state, which=which)
    alone = {name for name in {**pretrained, **finetuned} if (name in pretrained) != (name in finetuned)}
    indices = {name for name in alone - left_out if _is_integer({**pretrained, **finetuned}[name])}
    if carry_integers:
        left_out |= indices
    ours, theirs = ({n: 0 for n in state if n not in left_out} for state in (pretrained, finetuned))
    if indices and not carry_integers and {*ours} - indices == {*theirs} - indices:
        first = sorted(indices)[0]
        which, other = ("pretrained", "finetuned") if first in pretrained else ("finetuned", "pretrained")
        raise UserError(
            f"keys differ: {which} has {first!r}, {other} has not; it holds {states[which][first].dtype} and "
            "no weights (some versions of a library save an index that others make anew): pass "
            'integer_buffers="carry" to keep what the pretrained model has'
        )
    _checks.check_keys(ours, theirs, name="pretrained", other="finetuned", part="exclude=")
    names = []
    carried = [name for name in pretrained if name in left_out]
    for name in ours:
        start, end = pretrained[name], finetuned[name]
        if carry_statistics and is_statistic(name):
            carried.append(name)
        elif start.is_floating_point() or end.is_floating_point():
            names.append(name)
        elif start.is_complex():
            raise InputTypeError(
                f"{name!r} is {start.dtype}, of which no task vector is made here; "
                "leave it out, or give torch.view_as_real(...) of it"
            )
        elif not carry_integers:
            raise InputTypeError(
                f"{name!r} is {start.dtype}, which has no meaningful difference; "
                'pass integer_buffers="carry" to leave such buffers as they are in the pretrained model'
            )
        else:
            _checks.check_shapes(name, tuple(start.shape), tuple(end.shape))
            carried.append(name)
    return names, [name for name in pretrained if name in set(carried)]


def check_ties(pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], names: list[str]) -> None:
    """An error if two names stand for one tensor in either model, as tied weights do."""
    states = {"pretrained": pretrained, "finetuned": finetuned}
    for (which, state), other in zip(states.items(), reversed(states), strict=True):
        for name, first in shared(state, names):
            if torch.equal(states[other][first], states[other][name]):
                remedy = "leave one of them out, as dict(model.named_parameters()) does"
            else:
                remedy = (
                    f"but in {other} the two differ. Untie them in {which} if they were finetuned apart, "
                    f"with a .clone() of {name!r}; else leave {name!r} out of both"
                )
            raise UserError(
                f"{which} holds one tensor under two names, {first!r} and {name!r}, as tied weights do; "
                f"{remedy}"
            )


def check_copied_ties(
    parts: Mapping[str, Tensor], pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]
) -> None:
    """An error if a tensor stands twice in both models, equal entry by entry: a tied weight that was copied.

    A copy has an address of its own, so content has to tell. Two tensors count as one if they are equal
    before finetuning and after, and moved by more than one number: entries that merely stayed at their
    start, or moved all alike, say nothing about a tie. `parts` are the differences by name.
    """
    seen: dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]] = {}
    for name, part in parts.items():
        flat = part.reshape(-1)
        step = max(1, len(flat) // _SAMPLE)
        alike = seen.setdefault((tuple(part.shape), tuple(flat[::step][:_SAMPLE].tolist())), [])
        for first in alike:
            equal = torch.equal(finetuned[first], finetuned[name]) and torch.equal(
                pretrained[first], pretrained[name]
            )
            if equal and not _is_constant(part):
                raise UserError(
                    f"{first!r} and {name!r} are equal in both models, before finetuning and after: a tied "
                    f"weight that was copied. It would count twice; leave {name!r} out "
                    f"(exclude=[{name!r}]; apply_to edits both alike), or give the two modules"
                )
        alike.append(name)


def copies(state: Mapping[str, Tensor], names: Iterable[str], *, others: Iterable[str]) -> dict[str, str]:
    """Which of the others are a tensor of `names` under a second name: in the same memory, or equal copies.

    A tensor of one constant, as biases of 0 are, is no copy of another one.
    """
    own = list(names)
    rest = list(others)
    found = {name: first for name, first in shared(state, [*own, *rest]) if first in own and name in rest}
    for name in rest:
        tensor = state[name]
        if name in found or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        for first in own:
            if first == name:
                continue
            start = state[first]
            alike = (start.shape, start.dtype, start.device) == (tensor.shape, tensor.dtype, tensor.device)
            if alike and torch.equal(start, tensor) and not _is_constant(tensor):
                found[name] = first
                break
    return found


def shared(state: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and an earlier one which stand for one and the same memory."""
    seen: dict[tuple[str, int, tuple[int, ...]], str] = {}
    for name in names:
        tensor = state[name]
        if isinstance(tensor, Tensor) and tensor.numel() and tensor.device.type != "meta":
            first = seen.setdefault((str(tensor.device), tensor.data_ptr(), tuple(tensor.shape)), name)
            if first != name:
                yield name, first


def warn_of_zeros(parts: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> None:
    """A warning if rounding has eaten most of a difference of models in half precision."""
    share = zero_share(part for name, part in parts.items() if pretrained[name].dtype in _HALF)
    if share > 0.5:
        warnings.warn(
            f"{share:.0%} of the task vector is exactly 0, in tensors that did change: they are stored in "
            "half precision, and most changes were smaller than half of its steps. What is left is mostly "
            "rounding, in norms and cosines too; save the finetuned model in float32 before it is rounded",
            stacklevel=3,
        )


def zero_share(parts: Iterable[Tensor]) -> float:
    """The share of entries that are exactly 0, among those of the tensors that have any other."""
    zeros = size = 0
    for part in parts:
        moved = int(torch.count_nonzero(part))
        if moved:
            zeros += part.numel() - moved
            size += part.numel()
    return zeros / size if size else 0.0


def warn_of_buffers(pretrained: Model, finetuned: Model, *, apart: set[str]) -> None:
    """A warning if what stays as it is in the pretrained model differs in the finetuned one.

    A single count may: nothing depends on the number of batches. `apart` are names not to look at.
    """
    state, optional = full_state(pretrained)
    other = full_state(finetuned)[0]
    for name in state:
        if name not in optional or name in apart or name not in other or not isinstance(state[name], Tensor):
            continue
        start, end = state[name], other[name]
        if (
            start.ndim == 0
            or start.shape != end.shape
            or start.device != end.device
            or torch.equal(start, end)
        ):
            continue
        remedy = "see that the finetuned weights do not depend on its own"
        if is_statistic(name):
            remedy = f"load the edited model, then recompute the statistics on data with {RECOMPUTE}"
        warnings.warn(
            f"{name!r} differs between the models, but no gradient moved it, so the task vector leaves it "
            f"out and the edited model keeps the pretrained one; {remedy}",
            stacklevel=3,
        )
        return


def warn_of_statistics(names: Iterable[str]) -> None:
    """A warning if there are running statistics of a batch normalisation among the tensors to subtract."""
    found = [name for name in names if is_statistic(name)]
    if found:
        warnings.warn(
            f"{found[0]!r} looks like a running statistic of a batch normalisation, which no gradient moved; "
            "in a task vector it weighs on norms and cosines, and a scaled variance may fall below 0; give "
            "dict(model.named_parameters()) instead of the state dict to leave it out",
            stacklevel=3,
        )


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of one floating-point type is one of another.

    Example:
        >>> holds(torch.float32, torch.bfloat16), holds(torch.float16, torch.bfloat16)
        (True, False)
    """
    return wide.itemsize > 1 and narrow.is_floating_point and torch.promote_types(wide, narrow) == wide


def copied(tensor: Tensor) -> Tensor:
    """A copy; what else a module keeps in its state dict is copied as well."""
    return tensor.detach().clone() if isinstance(tensor, Tensor) else copy.deepcopy(tensor)


def check_variance(name: str, tensor: Tensor) -> None:
    """An error if this is a running variance below 0, of whose root a normalisation would make NaN."""
    if name.rpartition(".")[2] == "running_var" and tensor.numel() and float(tensor.min()) < 0:
        raise UserError(
            f"{name!r} of the edited model falls to {float(tensor.min()):.4g}, but a running variance below "
            "0 makes outputs NaN. Leave the statistics out of the vector, as TaskVector.between does unless "
            f"told to merge them; load the edited model, and recompute them on data with {RECOMPUTE}"
        )


def warn_of_lost_edits(
    parts: Mapping[str, Tensor], *, start: Mapping[str, Tensor], edited: Mapping[str, Tensor]
) -> None:
    """A warning if rounding to half precision puts most entries that a vector moves back to their start."""
    moved = lost = 0
    for name, part in parts.items():
        if start[name].dtype in _HALF:
            moved += int(torch.count_nonzero(part))
            lost += int(torch.count_nonzero((part != 0) & (edited[name] == start[name])))
    if lost > 0.5 * moved:
        warnings.warn(
            f"of the entries that the task vector moves, {lost / moved:.0%} stay where they were: the edit "
            "is smaller than half a step of the model's half precision. Edit a copy in float32: "
            "vector.to(dtype=torch.float32).apply_to({name: t.float() for name, t in state.items()})",
            stacklevel=3,
        )


def full_state(model: Model) -> tuple[Mapping[str, Tensor], set[str]]:
    """All tensors of a model by name, and the names of those that no task vector has to have.

    These are the buffers of a module. Of a mapping, which does not tell parameters from buffers, they are
    what cannot be a parameter: integers, and running statistics.
    """
    if isinstance(model, nn.Module):
        state = model.state_dict()
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        return state, set(state) - parameters
    _checks.named_tensors("pretrained", model)
    return model, {name for name, tensor in model.items() if _is_integer(tensor) or is_statistic(name)}


def check_supported(name: str, tensor: Tensor) -> None:
    """An error that names the remedy unless this is an ordinary dense tensor."""
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise UserError(
            f"{name!r} has no shape yet, as in a lazy module; pass one batch through the model first"
        )
    what, remedy = None, ""
    if tensor.layout != torch.strided:
        what, remedy = f"a tensor of layout {tensor.layout}", "make it dense with .to_dense()"
    elif tensor.is_nested:
        what, remedy = "a nested tensor", "make it dense with .to_padded_tensor(0.0), or leave it out"
    elif tensor.is_quantized:
        what, remedy = "quantised by torch", "give both models .dequantize()d"
    elif hasattr(tensor, "full_tensor"):
        what, remedy = "spread over several processes (a DTensor)", "gather it with .full_tensor()"
    elif tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        what = f"{tensor.dtype}, with which torch cannot calculate"
        remedy = "give both models as torch.float32, multiplied by their scales where they have some"
    if what is not None:
        raise InputTypeError(f"{name!r} is {what}; {remedy}")


def _is_constant(tensor: Tensor) -> bool:
    if tensor.numel() < 2:
        return True
    least, largest = torch.aminmax(tensor.detach())
    return bool(least == largest)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _refuse_adapter(which: str, state: Mapping[str, Tensor]) -> None:
    found = [name for name in state if any(part in _ADAPTERS for part in name.split("."))]
    if found:
        raise InputTypeError(
            f"{which} holds {found[0]!r}, a factor of a LoRA adapter. Sums and differences of factors mean "
            "nothing: the product B @ A does, and merging.adapter_vector(folder, pretrained) multiplies it "
            "out; of a model with the adapter inside, give model.merge_and_unload()"
        )


def _refuse_unusual(name: str, tensor: Tensor, *, state: Mapping[str, Tensor], which: str) -> None:
    """An error if this tensor is not dense, or holds the codes of quantised weights."""
    check_supported(name, tensor)
    if _is_integer(tensor) and _holds_codes(name, tensor, state=state):
        raise InputTypeError(
            f"{name!r} of {which} is {tensor.dtype}: quantised weights, codes which mean nothing without "
            "their scales, so they can neither be subtracted nor left as they are; give both models "
            "dequantised, or as they were before"
        )


def _holds_codes(name: str, tensor: Tensor, *, state: Mapping[str, Tensor]) -> bool:
    """Whether integers are quantised weights: so named, with scales beside them, or bytes of a matrix."""
    last = name.rpartition(".")[2]
    if "weight" in last or last in {"qzeros", "g_idx"}:
        return True
    if tensor.dtype in {torch.int64, torch.bool} or tensor.numel() < 2:
        return False
    place = name.removesuffix(last)
    beside = [f"{place}{each}" for each in _SCALES]
    beside += [f"{name}{mark}{each}" for mark in "._" for each in _SCALES]
    if any(each in state and state[each].numel() < tensor.numel() for each in beside):
        return True
    in_bytes = tensor.dtype in {torch.int8, torch.uint8} and tensor.ndim > 1
    return in_bytes and tensor.device.type != "meta" and bool(((tensor != 0) & (tensor != 1)).any())
