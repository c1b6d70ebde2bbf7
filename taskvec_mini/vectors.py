"""Task vectors and their algebra: what finetuning added to a model, as one flat vector with a layout.

A task vector is the difference of two sets of named parameters, `finetuned - pretrained` (Ilharco et al.,
*Editing Models with Task Arithmetic*, ICLR 2023). It is added, subtracted, scaled and put back onto a model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from taskvec_mini import _checks, _files
from taskvec_mini.errors import InputTypeError, UserError

Layout = tuple[tuple[str, tuple[int, ...]], ...]
Scalar = int | float | Tensor
_CHUNK = 1 << 22  # entries turned to float64 at a time, so that a norm needs no second copy of the vector
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
        self, flat: Tensor, layout: Sequence[tuple[str, Sequence[int]]], carried: Sequence[str] = ()
    ):
        _checks.flat_parameters("flat", flat)
        self.layout: Layout = tuple((name, tuple(shape)) for name, shape in layout)
        self.carried = tuple(carried)
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
        self._flat = flat.detach().clone()

    @classmethod
    def between(
        cls,
        pretrained: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        *,
        integer_buffers: Literal["refuse", "carry"] = "refuse",
    ) -> TaskVector:
        """The task vector `finetuned - pretrained` of two state dicts (mappings from names to tensors).

        All floating-point tensors are in it, also the running statistics of batch normalisations, of which a
        warning tells: `dict(model.named_parameters())` leaves them out.

        Args:
            pretrained: the named tensors of the start, all of one dtype on one device.
            finetuned: the same names and shapes after finetuning.
            integer_buffers: a count of batches, say, has no meaningful difference. "refuse" raises an error
                on such a buffer; "carry" leaves it out, and `apply_to` keeps the pretrained one.

        Raises:
            TypeError: if dtypes or devices differ, an integer buffer is met and refused, a tensor is complex,
                or one of the two is no mapping from names to tensors.
            ValueError: if keys or shapes differ, there are no tensors, two names stand for one tensor, or a
                value is NaN or infinite.
        """
        _checks.named_tensors("pretrained", pretrained)
        _checks.named_tensors("finetuned", finetuned)
        _checks.check_keys(pretrained, finetuned, name="pretrained", other="finetuned")
        carry = _checks.named_choice("integer_buffers", integer_buffers, {"refuse": False, "carry": True})
        names = []
        carried = []
        for name, tensor in pretrained.items():
            if tensor.is_floating_point() or finetuned[name].is_floating_point():
                names.append(name)
            elif tensor.is_complex():
                raise InputTypeError(
                    f"{name!r} is {tensor.dtype}, of which no task vector is made here; "
                    "leave it out, or give torch.view_as_real(...) of it"
                )
            elif not carry:
                raise InputTypeError(
                    f"{name!r} is {tensor.dtype}, which has no meaningful difference; "
                    'pass integer_buffers="carry" to leave such buffers as they are in the pretrained model'
                )
            else:
                _checks.check_shapes(name, tuple(tensor.shape), tuple(finetuned[name].shape))
                carried.append(name)
        if not names:
            raise UserError("pretrained holds no floating-point tensors; give a state dict with parameters")
        for name in names:
            _checks.check_pair(name, pretrained[name], finetuned[name], reference=pretrained[names[0]])
        _checks.check_storage({name: finetuned[name] for name in names}, "finetuned")
        _checks.warn_of_statistics(names)
        sizes = [pretrained[name].numel() for name in names]
        flat = pretrained[names[0]].new_empty(sum(sizes))
        for name, part in zip(names, torch.split(flat, sizes), strict=True):
            start = pretrained[name].detach()
            torch.sub(finetuned[name].detach(), start, out=part.view(start.shape))
        return cls(flat, [(name, tuple(pretrained[name].shape)) for name in names], carried)

    @property
    def flat(self) -> Tensor:
        """The D entries, a 1-D tensor: a copy, so that nobody writes into the vector by accident."""
        return self._flat.clone()

    def __len__(self) -> int:
        return len(self._flat)

    def __repr__(self) -> str:
        parts = f"{len(self)} entries in {len(self.layout)} tensors"
        return f"TaskVector({parts}, {self._flat.dtype}, norm {self.norm():.4g})"

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each part, in the order of the layout; the tensors are copies."""
        for (name, shape), part in zip(self.layout, torch.split(self._flat, self._sizes()), strict=True):
            yield name, part.clone().reshape(shape)

    # the algebra: every result is a new vector with storage of its own

    def __add__(self, other: object) -> TaskVector:
        if isinstance(other, int) and other == 0:  # so that sum([...]), which starts from 0, works
            return self._with(self._flat)
        if not isinstance(other, TaskVector):
            return NotImplemented
        self._check_match(other)
        return self._with(self._flat + other._flat)

    __radd__ = __add__

    def __sub__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        self._check_match(other)
        return self._with(self._flat - other._flat)

    def __neg__(self) -> TaskVector:
        return self._with(-self._flat)

    def __mul__(self, scale: Scalar) -> TaskVector:
        if not _is_scalar(scale):
            return NotImplemented
        return self._with(self._flat * _checks.finite_number("a scaling coefficient", float(scale)))

    __rmul__ = __mul__

    def __truediv__(self, scale: Scalar) -> TaskVector:
        if not _is_scalar(scale):
            return NotImplemented
        number = _checks.finite_number("a divisor", float(scale))
        if number == 0:
            raise ZeroDivisionError("a task vector cannot be divided by 0; choose another divisor")
        return self._with(self._flat / number)

    def dot(self, other: TaskVector) -> float:
        """The inner product with `other`, accumulated in float64.

        Raises:
            TypeError: if dtypes or devices differ.
            ValueError: if the layouts differ.
        """
        self._check_match(other)
        pairs = zip(torch.split(self._flat, _CHUNK), torch.split(other._flat, _CHUNK), strict=True)
        return sum(float(torch.dot(a.double(), b.double())) for a, b in pairs)

    def norm(self) -> float:
        """The Euclidean length, accumulated in float64."""
        return math.sqrt(self.dot(self))

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the angle to `other`, accumulated in float64.

        Raises:
            TypeError: if dtypes or devices differ.
            ValueError: if the layouts differ, one of the two is zero, or a norm is beyond float64.
        """
        product = self.dot(other)
        lengths = _checks.finite_number("the product of the two norms", self.norm() * other.norm())
        if lengths == 0:
            raise UserError("a task vector is zero and so has no direction; was the model finetuned at all?")
        return max(-1.0, min(1.0, product / lengths))

    def apply_to(self, pretrained: Mapping[str, Tensor], scaling_coef: float = 1.0) -> dict[str, Tensor]:
        """`pretrained + scaling_coef * self` as a new dictionary; writes into none of its inputs.

        Args:
            pretrained: a state dict with the same names, shapes and dtype as the vector.
            scaling_coef: the scaling coefficient, any finite number; a negative one negates the task.

        Raises:
            TypeError: if dtypes or devices differ, or `pretrained` is no mapping from names to tensors.
            ValueError: if keys or shapes differ, or `scaling_coef` or the result is not finite, as beyond the
                range of float16.
        """
        scale = _checks.finite_number("scaling_coef", scaling_coef)
        _checks.named_tensors("pretrained", pretrained)
        own = dict(self.items())
        keys = {**own, **dict.fromkeys(self.carried)}
        _checks.check_keys(keys, pretrained, name="the task vector", other="pretrained")
        for name, part in own.items():
            _checks.check_pair(name, part, pretrained[name], reference=part)
        edited = {
            name: tensor.detach() + scale * own[name] if name in own else tensor.detach().clone()
            for name, tensor in pretrained.items()
        }
        for name in own:
            _checks.check_finite(f"{name!r} of the edited model, at scaling_coef={scale:g},", edited[name])
        return edited

    def to(self, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> TaskVector:
        """The same vector in another floating-point type or on another device.

        Raises:
            TypeError: if the type is no floating-point type.
            ValueError: if an entry is beyond the range of the type.
        """
        return self._with(self._flat.to(dtype=dtype, device=device))

    def ordered_like(self, other: TaskVector) -> TaskVector:
        """The same vector with its tensors in the order of another one; files, for one, are read by name.

        Raises:
            ValueError: if names or shapes differ.
        """
        _check_parts(self.layout, other.layout)
        parts = dict(self.items())
        return TaskVector(
            torch.cat([parts[n].reshape(-1) for n, _ in other.layout]), other.layout, self.carried
        )

    # files: safetensors only, written whole or not at all

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vector to a safetensors file, whole or not at all: an older file stays until then.

        Raises:
            OSError: if the folder does not exist, may not be written to, or is full.
        """
        description = {"layout": self.layout, "carried": self.carried}
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
            return cls(tensors["flat"], description["layout"], description["carried"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} does not hold what a task vector needs ({error}); {_REMEDY}") from error

    def _sizes(self) -> list[int]:
        """The entries of each part."""
        return [math.prod(shape) for _, shape in self.layout]  # exact, where torch's numel overflows

    def _with(self, flat: Tensor) -> TaskVector:
        return TaskVector(flat, self.layout, self.carried)

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


def _is_scalar(value: object) -> bool:
    """Whether `value` is one number: of Python or numpy, or a tensor or an array without dimensions."""
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
