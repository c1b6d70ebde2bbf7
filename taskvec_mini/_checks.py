"""Checks of what a caller hands in. Each message names the thing, its value and the remedy."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from taskvec_mini.errors import InputTypeError, UserError

Value = TypeVar("Value")
_WRAPPERS = (  # of DataParallel, torch.compile, FSDP and of the checkpointing of activations
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)


def finite_number(name: str, value: float) -> float:
    """`value` as a float; a TypeError unless it is one number, a ValueError unless that is finite."""
    try:
        number = value.__float__()  # not float(value), which also reads numbers out of words
    except OverflowError:
        number = math.inf
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number):
        raise UserError(f"{name} must be finite, got {number}; look for an overflow or a division by zero")
    return number


def positive_number(name: str, value: float, *, example: float = 0.1) -> float:
    """`value` as a float; an error that advises `example` unless it is finite and above zero."""
    number = finite_number(name, value)
    if number <= 0:
        raise UserError(f"{name} must be above 0, got {number}; choose a positive value such as {example:g}")
    return number


def whole_number(name: str, value: int, *, minimum: int = 1) -> int:
    """`value` as an int; an error unless it is a whole number of at least `minimum`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputTypeError(f"{name} must be a whole number, got {value!r}") from error
    if isinstance(value, bool):
        raise InputTypeError(f"{name} must be a whole number, got {value!r}")
    if number < minimum:
        raise UserError(f"{name} must be at least {minimum}, got {number}")
    return number


def seed(name: str, value: int) -> int:
    """`value` as an int; an error unless every generator of torch takes it as a seed: 0 to 2⁶³ − 1."""
    number = whole_number(name, value, minimum=0)
    if number >= 2**63:
        raise UserError(f"{name} must be below 2**63, got {number}; choose a smaller one, such as 0")
    return number


def named_choice(kind: str, name: str, options: Mapping[str, Value]) -> Value:
    """`options[name]`; a ValueError that suggests the near names where there is no such option."""
    if name in options:
        return options[name]
    near = _near_names(str(name), options) or _near_names(str(name).lower(), options)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(options)}"
    raise UserError(f"unknown {kind} {name!r}: {hint}")


def _near_names(name: str, options: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(options), n=3, cutoff=0.5)


def flat_parameters(name: str, theta: Tensor) -> Tensor:
    """`theta` itself; an error unless it is a 1-D floating-point tensor of finite numbers."""
    short = (
        isinstance(theta, Tensor) and theta.dtype.itemsize == 1
    )  # float8, with which torch cannot calculate
    if not isinstance(theta, Tensor) or not theta.is_floating_point() or theta.ndim != 1 or short:
        what = (
            f"{theta.dtype} of shape {tuple(theta.shape)}"
            if isinstance(theta, Tensor)
            else type(theta).__name__
        )
        raise InputTypeError(
            f"{name} must be a 1-D floating-point tensor of parameters, got {what}; "
            "networks.flatten(model) makes one"
        )
    check_finite(name, theta)
    return theta


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass and without a mask."""
    if tensor.numel() == 0:
        return True
    if not tensor.is_floating_point():
        return bool(torch.isfinite(tensor).all())
    least, largest = torch.aminmax(tensor.detach())  # NaN, if there is any
    return math.isfinite(least.item()) and math.isfinite(largest.item())


def check_finite(name: str, tensor: Tensor) -> None:
    """A ValueError with the first bad position where `tensor` holds NaN or infinity."""
    if not all_finite(tensor):
        raise UserError(
            f"{name} holds {_bad_values(tensor)}; a run that diverged leaves such values: lower its "
            "learning rate"
        )


def check_range(name: str, tensor: Tensor) -> None:
    """A ValueError where numbers made of finite ones are NaN or infinite: they overflowed."""
    if not all_finite(tensor):
        largest = torch.finfo(tensor.dtype).max
        raise UserError(
            f"{name} holds {_bad_values(tensor)}; what it was made of is finite, so it is beyond the range "
            f"of {tensor.dtype}, which ends at {largest:g}: compute in a wider type, with "
            ".to(dtype=torch.float32) or float64 first, or take smaller coefficients"
        )


def _bad_values(tensor: Tensor) -> str:
    bad = (~torch.isfinite(tensor)).nonzero()
    where = tuple(bad[0].tolist())
    first = tensor[where].item()
    return f"{len(bad)} value(s) that are NaN or infinite, the first ({first}) at position {where}"


def not_empty(name: str, items: Iterable[Value]) -> list[Value]:
    """`items` as a list; a ValueError where there is none."""
    listed = list(items)
    if not listed:
        raise UserError(f"{name} is empty; give at least one")
    return listed


def random_source(generator: object) -> None:
    """A TypeError unless `generator` is one: None would draw from torch's global generator, unseen."""
    if not isinstance(generator, torch.Generator):
        raise InputTypeError(
            f"generator must be a torch.Generator, got {generator!r}; "
            "torch.Generator().manual_seed(0) makes one"
        )


def named_tensors(name: str, state: object) -> None:
    """A TypeError unless `state` is a mapping from names to tensors."""
    if not isinstance(state, Mapping):
        raise InputTypeError(
            f"{name} must be a mapping from names to tensors, got {type(state).__name__}; "
            "model.state_dict() makes one"
        )
    for key, value in state.items():
        if isinstance(value, Mapping) and value and all(isinstance(each, Tensor) for each in value.values()):
            raise InputTypeError(
                f"{name} is a checkpoint of a training run, which keeps the model's tensors one level below; "
                f"give what is under {key!r}: checkpoint[{key!r}]"
            )
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputTypeError(
                f"{name} holds {key!r}, which is no tensor but {type(value).__name__}; leave it out"
            )


def each_once(what: str, names: Sequence[str]) -> None:
    """A ValueError where a name is given twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the {what} {name!r} is given twice; name each {what} once")


def check_keys(
    first: Mapping[str, object],
    second: Mapping[str, object],
    *,
    name: str,
    other: str,
    part: str | None = None,
) -> None:
    """An error that names the first key which one of two mappings has and the other lacks.

    Wrappers around a model put their names in front of keys or into them, and a larger model has the smaller
    one inside, under a prefix; the remedy tells of that. `part` says how to ask for a part of a model.
    """
    missing = [key for key in first if key not in second]
    extra = [key for key in second if key not in first]
    if not (missing or extra):
        return
    has, lacks = (name, other) if missing else (other, name)
    keys = missing or extra
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    remedy = _wrapper_remedy(set(first), set(second))
    remedy = (
        remedy or _prefix_remedy(first, second, larger=other) or _prefix_remedy(second, first, larger=name)
    )
    remedy = remedy or "use two state dicts of one and the same architecture"
    if part and not (missing and extra):
        remedy += f", or say that they stay out of it: {part}[{keys[0]!r}{', ...' if more else ''}]"
    raise UserError(f"keys differ: {has} has {keys[0]!r}{more}, {lacks} has not; {remedy}")


def _wrapper_remedy(first: set[str], second: set[str]) -> str | None:
    """What to take out of the keys, if two sets of them are one but for the names of wrappers."""
    if {unwrapped(key) for key in first} != {unwrapped(key) for key in second}:
        return None
    odd = sorted(key for key in first ^ second if key != unwrapped(key))
    prefixes = {key.removesuffix(unwrapped(key)) for key in odd}  # the key itself, if something is inside
    if len(prefixes) == 1 and not prefixes & set(odd):
        prefix = prefixes.pop()
        wrapper = "a wrapper" if prefix.count(".") == 1 else "wrappers"
        return f"take {prefix!r} away in front of the keys, where {wrapper} around the model has put it"
    inside = [f"{part}." for part in _WRAPPERS if any(part in key.split(".") for key in odd)]
    calls = "".join(f".replace({part!r}, '')" for part in inside)
    return (
        f"take {' and '.join(map(repr, inside))} out of the keys, where wrappers around parts of the model "
        f"have put it: {{key{calls}: tensor for key, tensor in state.items()}}"
    )


def _prefix_remedy(
    smaller: Mapping[str, object], larger_keys: Mapping[str, object], *, larger: str
) -> str | None:
    """How to find the smaller model inside of a larger one, where all its keys have one prefix."""
    if not smaller:
        return None
    known = next(iter(smaller))
    for key in larger_keys:
        prefix = key.removesuffix(known)
        if not (key.endswith(f".{known}") and all(f"{prefix}{each}" in larger_keys for each in smaller)):
            continue
        if len(smaller) == len(larger_keys):
            return f"take {prefix!r} away in front of the keys of {larger}"
        return (
            f"{larger} is a larger model with the other one inside, under {prefix!r}: give "
            f"{{key.removeprefix({prefix!r}): tensor for key, tensor in state.items() if "
            f"key.startswith({prefix!r})}} of its state dict"
        )
    return None


def unwrapped(key: str) -> str:
    """The key without the names of wrappers around the model or around parts of it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def check_storage(state: Mapping[str, Tensor], name: str) -> None:
    """An error if two names stand for one tensor, as tied weights do: it would count twice."""
    seen: dict[tuple[str, int], str] = {}
    for key, tensor in state.items():
        if tensor.numel() and tensor.device.type != "meta":
            other = seen.setdefault((str(tensor.device), tensor.data_ptr()), key)
            if other != key and state[other].shape == tensor.shape:
                raise UserError(
                    f"{name} holds one tensor under two names, {other!r} and {key!r}, as tied weights do; "
                    "leave one of them out, as dict(model.named_parameters()) does"
                )


def check_pair(name: str, first: Tensor, second: Tensor, *, reference: Tensor) -> None:
    """An error unless two tensors of one name agree in shape, dtype and device and are finite."""
    check_shapes(name, tuple(first.shape), tuple(second.shape))
    check_kinds(repr(name), first, second)
    check_kinds(f"{name!r} and the tensors before it", first, reference)
    check_finite(repr(name), first)
    check_finite(repr(name), second)


def check_shapes(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """An error that names the tensor and both shapes where they differ."""
    if first != second:
        raise UserError(
            f"shapes differ at {name!r}: {first} against {second}; "
            "both sides must have one and the same architecture"
        )


def check_kinds(what: str, first: Tensor, second: Tensor) -> None:
    """An error that names both dtypes or devices where they differ."""
    if first.dtype != second.dtype:
        raise InputTypeError(
            f"dtypes differ at {what}: {first.dtype} against {second.dtype}; convert one with .to(dtype=...)"
        )
    check_devices(what, first, second)


def check_devices(what: str, first: Tensor, second: Tensor) -> None:
    """An error that names both devices where they differ."""
    if first.device != second.device:
        raise InputTypeError(
            f"devices differ at {what}: {first.device} against {second.device}; move one with .to(device=...)"
        )
