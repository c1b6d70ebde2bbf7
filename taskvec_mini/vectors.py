"""Task vectors and their algebra: what finetuning added to a model, as one flat vector with a layout.

A task vector is the difference of two sets of named parameters, `finetuned - pretrained` (Ilharco et al.,
*Editing Models with Task Arithmetic*, ICLR 2023). It is added, subtracted, scaled and put back onto a model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from taskvec_mini import _checks, _files, _memory, _states
from taskvec_mini._states import Model
from taskvec_mini.errors import InputTypeError, UserError

Layout = tuple[tuple[str, tuple[int, ...]], ...]
Scalar = int | float | Tensor
_CHUNK = 1 << 18  # entries turned to float64 at a time: few calls, and all of them near the processor
_KIND = "taskvec_mini.TaskVector/2"
_REMEDY = "copy it again, or make it anew: TaskVector.between(pretrained, finetuned).save(path)"


class TaskVector:
    """A difference of parameters: one flat tensor and the layout that names its parts.

    Args:
        flat: the D entries, a 1-D floating-point tensor; the vector keeps a copy of its own.
        layout: the parts in order, each a name and a shape; their sizes add up to D.
        carried: names of integer buffers which the vector leaves as they are (see `between`).

    Raises:
        TypeError: if `flat` is not a 1-D floating-point tensor.
        ValueError: if an entry is NaN or infinite, or the layout does not add up to D or names a part twice.

    Example:
        >>> import torch
        >>> pretrained = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
        >>> finetuned = {"weight": torch.tensor([[1.5, 2.0]]), "bias": torch.tensor([0.0])}
        >>> tv = TaskVector.between(pretrained, finetuned)
        >>> tv
        TaskVector(3 entries in 2 tensors, torch.float32, norm 0.7071)
        >>> (-2 * tv).apply_to(pretrained, scaling_coef=0.5)["bias"]
        tensor([1.])
    """

    __array_ufunc__ = None  # so that `numpy.float64(0.5) * tv` is left to this class

    def __init__(
        self,
        flat: Tensor,
        layout: Sequence[tuple[str, Sequence[int]]],
        carried: Sequence[str] = (),
        *,
        about: Mapping[str, Any] | None = None,
    ):
        _checks.flat_parameters("flat", flat)
        self.layout: Layout = tuple((name, tuple(shape)) for name, shape in layout)
        self.carried = tuple(carried)
        self.about: dict[str, Any] = dict(about or {})
        seen = set()
        for name, shape in self.layout:
            if name in seen:
                raise UserError(f"the layout names {name!r} twice; give every part a name of its own")
            seen.add(name)
            if any(length < 0 for length in shape):
                raise UserError(f"{name!r} has the shape {shape}, but no length can be below 0")
        size = sum(self._sizes())
        if size != len(flat):
            raise UserError(f"the layout names {size} entries but flat holds {len(flat)}; they must agree")
        self._flat = _memory.copy(flat)
        self._length: float | None = None

    @classmethod
    def between(
        cls,
        pretrained: Model,
        finetuned: Model,
        *,
        integer_buffers: Literal["refuse", "carry"] = "refuse",
        statistics: Literal["carry", "merge"] = "carry",
        exclude: str | Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> TaskVector:
        """The task vector `finetuned - pretrained` of two modules, or of two state dicts.

        Of modules it is the parameters, a tied one once. Of state dicts (mappings from names to tensors) it
        is all floating-point tensors but the running statistics of batch normalisations, which no gradient
        moved. What is left out of these is named in `carried`: `apply_to` keeps the pretrained one.

        Args:
            pretrained: the start: a module, or its named tensors, all on one device.
            finetuned: the same after finetuning: the same names, shapes and dtypes.
            integer_buffers: a count of batches, say, has no meaningful difference. "refuse" raises an error
                on such a buffer; "carry" leaves it out, also where only one of the two has it.
            statistics: "carry" leaves running means and variances out; "merge" takes them in, where they
                weigh on norms and cosines, and a scaled variance may fall below 0.
            exclude: names, or patterns such as "head.*", to leave out; these may stand in one model alone.
            dtype: of the vector. None takes that of the tensors, or the widest if they differ, as with
                float32 norms beside bfloat16 weights. float32 holds most differences of bfloat16 exactly.

        Raises:
            TypeError: if dtypes or devices differ, an integer buffer is met and refused, a tensor is complex,
                quantised, sparse or without entries, there are factors of an adapter, or one of the two is
                neither a module nor a mapping from names to tensors.
            ValueError: if keys or shapes differ, there are no tensors, two names stand for one tensor (or for
                two equal ones before and after), or a value is NaN or infinite.

        Example:
            >>> start, model = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
            >>> tv = TaskVector.between(start, model)
            >>> tv.layout
            (('weight', (1, 2)), ('bias', (1,)))
            >>> start.load_state_dict(tv.apply_to(start))
            <All keys matched successfully>
        """
        carry = _checks.named_choice("integer_buffers", integer_buffers, {"refuse": False, "carry": True})
        kept = _checks.named_choice("statistics", statistics, {"carry": True, "merge": False})
        start, end = _states.weights_of(pretrained, finetuned)
        excluded = _states.matching(exclude, {**start, **end})
        names, carried = _states.split(
            start, end, excluded=excluded, carry_integers=carry, carry_statistics=kept
        )
        if not names:
            raise UserError("pretrained holds no floating-point tensors; give a state dict with parameters")
        first = start[names[0]]
        for name in names:
            _checks.check_shapes(name, tuple(start[name].shape), tuple(end[name].shape))
            _checks.check_kinds(repr(name), start[name], end[name])
            _checks.check_devices(f"{name!r} and the tensors before it", start[name], first)
        if first.device.type == "meta":
            raise InputTypeError(
                f"{names[0]!r} is on the device meta, where tensors have no entries; load the weights first"
            )
        _states.check_ties(start, end, names)
        widest = reduce(torch.promote_types, (start[name].dtype for name in names))
        kind = dtype or widest
        if not _states.holds(kind, widest):
            raise InputTypeError(
                f"dtype is {kind}, which is narrower than the tensors, {widest}; leave it out, and round the "
                "vector afterwards with .to(dtype=...)"
            )
        layout = tuple((name, tuple(start[name].shape)) for name in names)
        sizes = [start[name].numel() for name in names]
        flat = _memory.empty((sum(sizes),), dtype=kind, device=first.device)
        parts = {
            name: part.view(shape)
            for (name, shape), part in zip(layout, torch.split(flat, sizes), strict=True)
        }
        for name, part in parts.items():
            if start[name].dtype == kind:
                torch.sub(end[name].detach(), start[name].detach(), out=part)
            else:
                part.copy_(end[name].detach()).sub_(start[name].detach())
        if not _checks.all_finite(flat):  # one look at the difference, instead of one at each of the models
            for name in names:
                _checks.check_finite(repr(name), start[name])
                _checks.check_finite(repr(name), end[name])
            _checks.check_range("the task vector", flat)
        _states.check_copied_ties(parts, start, end)
        _states.warn_of_zeros(parts, start)
        if not kept:
            _states.warn_of_statistics(names)
        _states.warn_of_buffers(pretrained, finetuned, apart={*names, *excluded})
        return cls._made(flat, layout, carried)

    @property
    def flat(self) -> Tensor:
        """The D entries, a 1-D tensor: a copy, so that nobody writes into the vector by accident."""
        return _memory.copy(self._flat)

    def __len__(self) -> int:
        return len(self._flat)

    def __repr__(self) -> str:
        parts = f"{len(self)} entries in {len(self.layout)} tensors"
        return f"TaskVector({parts}, {self._flat.dtype}, norm {self.norm():.4g})"

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each part, in the order of the layout; the tensors are copies."""
        for name, part in self._parts():
            yield name, _memory.copy(part)

    # the algebra: every result is a new vector with storage of its own

    def __add__(self, other: object) -> TaskVector:
        if isinstance(other, int) and other == 0:  # so that sum([...]), which starts from 0, works
            return self._with(_memory.copy(self._flat), what="the copy")
        if not isinstance(other, TaskVector):
            return NotImplemented
        self._check_match(other)
        return self._result("the sum", torch.add, other._flat)

    __radd__ = __add__

    def __sub__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        self._check_match(other)
        return self._result("the difference", torch.sub, other._flat)

    def __neg__(self) -> TaskVector:
        return self._result("the negative", torch.mul, -1.0)

    def __mul__(self, scale: Scalar) -> TaskVector:
        if not _is_scalar(scale):
            return NotImplemented
        number = _checks.finite_number("a scaling coefficient", float(scale))
        return self._result("the scaled task vector", torch.mul, number)

    __rmul__ = __mul__

    def __truediv__(self, scale: Scalar) -> TaskVector:
        if not _is_scalar(scale):
            return NotImplemented
        number = _checks.finite_number("a divisor", float(scale))
        if number == 0:
            raise ZeroDivisionError("a task vector cannot be divided by 0; choose another divisor")
        return self._result("the divided task vector", torch.div, number)

    def dot(self, other: TaskVector) -> float:
        """The inner product with `other`, accumulated in float64.

        Raises:
            TypeError: if dtypes or devices differ.
            ValueError: if the layouts differ.
        """
        self._check_match(other)
        return sum(float(torch.dot(a, b)) for a, b in _wide_pieces(self._flat, other._flat))

    def norm(self) -> float:
        """The Euclidean length, accumulated in float64."""
        if self._length is None:
            self._length = math.sqrt(sum(float(torch.dot(a, a)) for (a,) in _wide_pieces(self._flat)))
        return self._length

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the angle to `other`, accumulated in float64.

        Raises:
            TypeError: if dtypes or devices differ.
            ValueError: if the layouts differ, one of the two is zero, or a norm is beyond float64.
        """
        self._check_match(other)
        if self._length is None or other._length is None:  # then all three products, in one reading
            products = own = others = 0.0
            for a, b in _wide_pieces(self._flat, other._flat):
                products += float(torch.dot(a, b))
                own += float(torch.dot(a, a))
                others += float(torch.dot(b, b))
            self._length = math.sqrt(own)
            other._length = math.sqrt(others)
        else:
            products = self.dot(other)
        lengths = _checks.finite_number("the product of the two norms", self.norm() * other.norm())
        if lengths == 0:
            raise UserError("a task vector is zero and so has no direction; was the model finetuned at all?")
        return max(-1.0, min(1.0, products / lengths))

    def zero_share(self) -> float:
        """The share of entries that are exactly 0, in the tensors that have any other: from 0 to 1.

        In half precision most of these are changes that rounding has eaten. Of a bfloat16 model whose changes
        are normally distributed, half of them zeros leaves a cosine of about 0.93 to the true vector, and two
        thirds leave 0.87. Rows of an embedding that no text used, and units that never fired, are zeros too.

        Example:
            >>> layout = [("moved", (2,)), ("frozen", (2,))]
            >>> TaskVector(torch.tensor([0.0, 1.0, 0.0, 0.0]), layout).zero_share()
            0.5
        """
        return _states.zero_share(part for _, part in self._parts())

    def apply_to(
        self, pretrained: Model, scaling_coef: float = 1.0, *, exclude: str | Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """`pretrained + scaling_coef * self` as a new state dict; writes into none of its inputs.

        It has all names of the pretrained model, so `load_state_dict(strict=True)` takes it. What is no
        parameter (buffers of a module; integers and running statistics in a mapping) is carried over where
        the vector has none. Tied weights, and equal copies of them under a name that the vector does not
        have, are edited alike and returned under both names. Each tensor has the dtype of the pretrained one,
        is contiguous and has memory of its own.

        Args:
            pretrained: a module, or a state dict with the names and shapes of the vector. Its tensors may be
                of a narrower dtype than the vector: then each entry is computed in the wider one and rounded
                once. Half precision is computed in float32.
            scaling_coef: the scaling coefficient, any finite number; a negative one negates the task.
            exclude: names or patterns of parameters that the vector does not have and that stay as they are.

        Raises:
            TypeError: if devices differ, the vector is of a narrower dtype, or `pretrained` is neither a
                module nor a mapping from names to tensors.
            ValueError: if keys or shapes differ, `scaling_coef` or the result is not finite, as beyond the
                range of float16, or a running variance falls below 0.
        """
        scale = _checks.finite_number("scaling_coef", scaling_coef)
        state, optional = _states.full_state(pretrained)
        left_out = _states.matching(exclude, {**state, **dict(self.layout), **dict.fromkeys(self.carried)})
        parts = {name: part for name, part in self._parts() if name not in left_out}
        own = {**parts, **{name: None for name in self.carried if name not in left_out}}
        rest = [name for name, each in state.items() if isinstance(each, Tensor) and name not in parts]
        rest = [name for name in rest if name not in left_out]
        for name in [*rest, *parts]:
            if name in state:
                _states.check_supported(name, state[name])
        copies = _states.copies(state, [name for name in own if name in state], others=rest)
        free = {*optional, *copies, *left_out}
        theirs = {name: None for name in state if name in own or name not in free}
        _checks.check_keys(own, theirs, name="the task vector", other="pretrained", part="exclude=")
        for name, part in parts.items():
            _checks.check_shapes(name, tuple(part.shape), tuple(state[name].shape))
            if not _states.holds(part.dtype, state[name].dtype):
                _checks.check_kinds(repr(name), part, state[name])
            _checks.check_devices(repr(name), part, state[name])
        edited = {
            name: _edited(tensor, part=parts[name], scale=scale) if name in parts else _states.copied(tensor)
            for name, tensor in state.items()
        }
        for name in parts:
            if not _checks.all_finite(edited[name]):
                _checks.check_finite(repr(name), state[name])
                _checks.check_range(f"{name!r} of the edited model, at scaling_coef={scale:g},", edited[name])
            _states.check_variance(name, edited[name])
        if scale:
            _states.warn_of_lost_edits(parts, start=state, edited=edited)
        return {**edited, **{name: _memory.copy(edited[first]) for name, first in copies.items()}}

    def to(self, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> TaskVector:
        """The same vector in another floating-point type or on another device.

        Raises:
            TypeError: if the type is no floating-point type.
            ValueError: if an entry is beyond the range of the type.
        """
        if dtype is not None and not (dtype.is_floating_point and dtype.itemsize > 1):
            raise InputTypeError(
                f"dtype must be a floating-point type of 16 bits or more, got {dtype}; take torch.float32"
            )
        moved = self._flat.to(dtype=dtype, device=device, copy=True)
        return self._with(moved, what="the converted task vector", about=self.about)

    def ordered_like(self, other: TaskVector) -> TaskVector:
        """The same vector with its tensors in the order of another one; files, for one, are read by name.

        Raises:
            ValueError: if names or shapes differ.
        """
        _check_parts(self.layout, other.layout)
        parts = dict(self._parts())
        flat = torch.cat([parts[name].reshape(-1) for name, _ in other.layout])
        return self._made(flat, other.layout, self.carried, about=self.about)

    # files: safetensors only, written whole or not at all

    def save(self, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> None:
        """Write the vector to a safetensors file, whole or not at all: an older file stays until then.

        Args:
            path: where to.
            about: the vector's past, if it is to be kept: rule, options, tasks, epochs, hashes, or whatever
                JSON can hold. `load` gives it back as `about`. None takes that of the vector.

        Raises:
            TypeError: if `about` holds what JSON cannot.
            OSError: if the folder does not exist, may not be written to, or is full.

        Example:
            >>> import tempfile
            >>> path = os.path.join(tempfile.mkdtemp(), "merged.safetensors")
            >>> TaskVector(torch.ones(1), [("bias", (1,))]).save(path, about={"rule": "mean"})
            >>> TaskVector.load(path).about
            {'rule': 'mean'}
        """
        description: dict[str, Any] = {"layout": self.layout, "carried": self.carried}
        past = dict(self.about if about is None else about)
        if past:
            try:
                json.dumps(past, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise InputTypeError(
                    f"about must hold what JSON can ({error}); give names, numbers, words and lists of them"
                ) from error
            description["about"] = past
        _files.write_tensors(path, {"flat": self._flat}, description, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskVector:
        """Read a vector that `save` wrote. Pickles are refused unread: loading one can run any code.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is a pickle, is truncated or corrupted, or is no task vector.
        """
        tensors, description = _files.read_tensors(path, kind=_KIND, what="task vector", remedy=_REMEDY)
        try:
            about = description.get("about")
            return cls(tensors["flat"], description["layout"], description["carried"], about=about)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} does not hold what a task vector needs ({error}); {_REMEDY}") from error

    def _sizes(self) -> list[int]:
        """The entries of each part."""
        return [math.prod(shape) for _, shape in self.layout]  # exact, where torch's numel overflows

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each part; nobody may write into them."""
        for (name, shape), part in zip(self.layout, torch.split(self._flat, self._sizes()), strict=True):
            yield name, part.view(shape)

    @classmethod
    def _made(
        cls, flat: Tensor, layout: Layout, carried: Sequence[str], *, about: Mapping[str, Any] | None = None
    ) -> TaskVector:
        """A vector that takes over `flat`, which is known to fit, to be finite, and to be nobody else's."""
        made = cls.__new__(cls)
        made._flat = flat
        made._length = None
        made.layout = layout
        made.carried = tuple(carried)
        made.about = dict(about or {})
        return made

    def _with(self, flat: Tensor, *, what: str, about: Mapping[str, Any] | None = None) -> TaskVector:
        """A vector of this layout that takes over `flat`; an error where that overflowed."""
        _checks.check_range(what, flat)
        return self._made(flat, self.layout, self.carried, about=about)

    def _result(self, what: str, operation: Callable[..., Tensor], other: Tensor | float) -> TaskVector:
        out = _memory.empty(self._flat.shape, dtype=self._flat.dtype, device=self._flat.device)
        return self._with(operation(self._flat, other, out=out), what=what)

    def _check_match(self, other: TaskVector) -> None:
        if not isinstance(other, TaskVector):
            raise InputTypeError(
                f"the other one must be a task vector, got {type(other).__name__}; "
                "TaskVector.between(pretrained, finetuned) makes one"
            )
        if self.layout != other.layout:
            _check_parts(self.layout, other.layout)
            raise UserError(
                "the two task vectors list their tensors in different orders; "
                "second.ordered_like(first) makes both alike"
            )
        _checks.check_kinds("the task vectors", self._flat, other._flat)


def _check_parts(first: Layout, second: Layout) -> None:
    """An error unless two layouts have the same names and shapes, in whatever order."""
    mine = dict(first)
    theirs = dict(second)
    _checks.check_keys(mine, theirs, name="the first task vector", other="the second")
    for name in mine:
        _checks.check_shapes(name, mine[name], theirs[name])


def _wide_pieces(*flats: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The entries of some vectors side by side in float64; each piece lies in the place of the last one."""
    size = min(_CHUNK, len(flats[0]))
    buffers = torch.empty((len(flats), size), dtype=torch.float64, device=flats[0].device)
    for pieces in zip(*(torch.split(flat, _CHUNK) for flat in flats), strict=True):
        yield tuple(buffer[: len(piece)].copy_(piece) for buffer, piece in zip(buffers, pieces, strict=True))


def _edited(start: Tensor, *, part: Tensor, scale: float) -> Tensor:
    """`start + scale * part`, contiguous, in the dtype of `start`."""
    start = start.detach()
    edited = _memory.empty(start.shape, dtype=start.dtype, device=start.device)
    if start.dtype == part.dtype and start.dtype.itemsize > 2:
        return torch.mul(part, scale, out=edited).add_(start)
    wide = part.to(torch.promote_types(part.dtype, torch.float32), copy=True)
    return edited.copy_(wide.mul_(scale).add_(start))


def _is_scalar(value: object) -> bool:
    """Whether `value` is one number: of Python or numpy, or a tensor or an array without dimensions."""
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
