"""Rules that merge several task vectors into one, each a function of the vectors alone.

Every rule takes the T task vectors of one pretrained model and returns a new task vector of the same layout.
The caller adds it: `merged.apply_to(pretrained, scaling_coef=λ)`. Each rule has a λ of its own: 0.3 for the
sum of eight vectors makes the same model as 2.4 for their mean.

    >>> import torch
    >>> pretrained = {"bias": torch.zeros(2)}
    >>> taught = [{"bias": torch.tensor([1.0, 4.0])}, {"bias": torch.tensor([3.0, -2.0])}]
    >>> merged = mean(TaskVector.between(pretrained, finetuned) for finetuned in taught)
    >>> merged.apply_to(pretrained, scaling_coef=1.0)["bias"]
    tensor([2., 1.])

For all rules alike: no input is written to. `task_arithmetic` and `mean` add up in the dtype of the vectors,
half precision in float32, and round at every addition: the order of the vectors can matter in the last bits.
The sums of all others run in float64 and are rounded once, to the dtype of the vectors. Of two entries of one
magnitude, the earlier counts as the larger. Beside the vectors a rule holds a few buffers of their length,
not T of them; the rules with masks add a byte per task and entry. The rules for matrices (`tsv`, `iso_c`,
`iso_cts`, `regmean_from_vectors` and `wudi`) go tensor by tensor and compute in float64. Of float32 and
narrower vectors they find singular directions through WᵀW, which takes less time than an SVD and is more
exact (`_matrices` says why). Any number of threads gives the same bits, but for the rules for matrices: there
a few entries may differ in the last bit, and all of directions whose singular values tie.

Raises (every rule):
    TypeError: if an item is no TaskVector, or dtypes or devices differ.
    ValueError: if there are no vectors or no entries, layouts differ, or the result is beyond the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from taskvec_mini import _checks, _memory
from taskvec_mini.errors import InputTypeError, UserError
from taskvec_mini.merging._matrices import (
    adam_from_the_sum,
    average,
    isotropic,
    isotropic_with_own_directions,
    least_interference,
    least_squares,
    whitened,
)
from taskvec_mini.vectors import TaskVector

_PIECE = 1 << 15  # positions merged at a time: T rows of them in float64 stay in a processor's cache


def task_arithmetic(task_vectors: Iterable[TaskVector]) -> TaskVector:
    """The sum Σ_t τ_t: task addition (Ilharco et al., ICLR 2023, arXiv:2212.04089).

    θ₀ + λΣτ is the sum form, θ₀ + λ·mean(τ) the mean form. Both make the same model when the mean's λ is T
    times that of the sum: λ = 0.3 for the sum of eight vectors is λ = 2.4 for their mean.

    Example:
        >>> layout = [("bias", (2,))]
        >>> vectors = [TaskVector(torch.tensor(row), layout) for row in ([1.0, 4.0], [3.0, -2.0])]
        >>> task_arithmetic(vectors).flat
        tensor([4., 2.])

    The vectors are read one after the other: of those that a generator makes, the first and the two newest
    are in memory, beside the sum.
    """
    return _running(task_vectors, lambda total, vector, place: total.add_(vector))


def mean(task_vectors: Iterable[TaskVector]) -> TaskVector:
    """The mean Σ_t τ_t / T; with λ = 1 the merged model is the average of the finetuned weights.

    This is weight averaging (Wortsman et al., *Model soups*, ICML 2022, arXiv:2203.05482) with one vector per
    task. It is `task_arithmetic` divided by T, so the same model needs a λ that is T times as large. Here too
    the vectors are read one after the other.

    Example:
        >>> layout = [("bias", (2,))]
        >>> vectors = [TaskVector(torch.tensor(row), layout) for row in ([1.0, 4.0], [3.0, -2.0])]
        >>> mean(vectors).flat
        tensor([2., 1.])
    """
    return _running(task_vectors, lambda average, vector, place: average.lerp_(vector, 1 / (place + 1)))


def ties(
    task_vectors: Iterable[TaskVector],
    *,
    density: float = 0.2,
    per_tensor: bool = False,
    elect: Literal["mass", "count"] = "mass",
    combine: Literal["mean", "sum"] = "mean",
) -> TaskVector:
    """TIES: trim, elect a sign, merge those that agree (Yadav et al., NeurIPS 2023, arXiv:2306.01708).

    Each vector keeps its entries of largest magnitude. Each position elects a sign. The entries left there
    with that sign are averaged, and only those: zeros have no voice. Where no sign wins, the result is 0; the
    authors' code gives such a position the sign that is commoner in the whole model.

    Args:
        task_vectors: T vectors of one layout.
        density: the share kept, above 0 and at most 1. Exactly ⌈density · size⌉ entries stay; the authors'
            code also keeps all that tie with the last of them.
        per_tensor: False ranks the whole vector, as the authors do; True each tensor by itself, as several
            libraries do, so that each keeps its share.
        elect: "mass", the sign of the sum (the paper's), or "count", the sign that more entries have. By
            count, two tasks that disagree leave nothing.
        combine: "mean" (the paper's; λ near 1) or "sum" (λ near 0.3 for eight tasks). The number of agreeing
            tasks changes from position to position, so no factor turns the one λ into the other.

    Raises:
        ValueError: if `density` is out of range, or `elect` or `combine` is unknown.

    Example:
        >>> layout = [("bias", (4,))]
        >>> rows = [5.0, -4.0, 1.0, 0.5], [3.0, 6.0, -0.5, 2.0]
        >>> ties([TaskVector(torch.tensor(row), layout) for row in rows], density=0.5).flat
        tensor([4., 6., 0., 0.])
    """
    if not 0 < _checks.finite_number("density", density) <= 1:
        raise UserError(f"density must be above 0 and at most 1, got {density}; 0.2 keeps the largest fifth")
    counted = _checks.named_choice("election", elect, {"mass": False, "count": True})
    averaged = _checks.named_choice("combination", combine, {"mean": True, "sum": False})
    vectors = _matching(task_vectors)
    masks = None
    if density != 1:
        masks = []
        for vector in vectors:
            magnitudes = vector._flat.abs()
            parts = torch.split(magnitudes, vector._sizes()) if per_tensor else [magnitudes]
            kept = [_largest(part, kept_entries(density, size=len(part)))[0] for part in parts]
            masks.append(torch.cat(kept))

    def merge(kept: Tensor) -> Tensor:
        elected = (kept.sign() if counted else kept).sum(0).sign()
        agreeing = (kept * elected).clamp(min=0)  # the magnitudes of entries with the elected sign
        voters = agreeing.sign().sum(0).clamp(min=1) if averaged else 1
        return elected * agreeing.sum(0) / voters

    return _merged(_across(vectors, merge, masks=masks), vectors[0])


def dare(
    task_vectors: Iterable[TaskVector], *, drop_rate: float = 0.9, generator: torch.Generator
) -> TaskVector:
    """DARE: drop entries at random, rescale the others, then sum (Yu et al., ICML 2024, arXiv:2311.03099).

    Every task draws a mask of its own. Survivors are divided by 1 − p, so that the mean over masks is the sum
    Σ_t τ_t; the variance of an entry is Σ_t τ_t² · p / (1 − p). One popular tool rescales each vector to its
    old L1 norm instead, which gives another result.

    Args:
        task_vectors: T vectors of one layout; masks are drawn in their order.
        drop_rate: the probability p that an entry is dropped, at least 0 and below 1.
        generator: the source of the masks, drawn on its device: a CPU generator gives the same masks wherever
            the vectors are.

    Raises:
        TypeError: if `generator` is no torch.Generator.
        ValueError: if `drop_rate` is out of range, or leaves nothing of all vectors together.

    Example:
        >>> vector = TaskVector(torch.tensor([1.0, 2.0, 3.0, 4.0]), [("bias", (4,))])
        >>> dare([vector], drop_rate=0.5, generator=torch.Generator().manual_seed(1)).flat
        tensor([2., 0., 0., 8.])
    """
    vectors = _matching(task_vectors)
    merged = dropped_at_random(vectors, drop_rate=drop_rate, generator=generator)
    if drop_rate and not merged._flat.any() and any(vector._flat.any() for vector in vectors):
        raise UserError(
            f"drop_rate={drop_rate:g} has left nothing of {len(vectors)} vector(s) with {len(merged):,} "
            "entries each; choose a lower one"
        )
    return merged


def dropped_at_random(
    vectors: list[TaskVector], *, drop_rate: float = 0.9, generator: torch.Generator
) -> TaskVector:
    """What `dare` makes of vectors, or of a part of them, of which nothing may be left.

    Raises:
        UserError: as `dare` does, for the drop rate and the generator.
    """
    rate = _below_one("drop_rate", drop_rate)
    _checks.random_source(generator)
    masks = []
    for vector in vectors:
        mask = torch.empty(len(vector), dtype=torch.bool, device=vector._flat.device)
        for piece in torch.split(mask, _PIECE):
            # uniform numbers and not bernoulli_, whose draws depend on whether torch was built with MKL
            drawn = torch.rand(len(piece), generator=generator, device=generator.device, dtype=torch.float32)
            piece.copy_(drawn >= rate)
        masks.append(mask)
    return _merged(_across(vectors, lambda kept: kept.sum(0) / (1 - rate), masks=masks), vectors[0])


def breadcrumbs(
    task_vectors: Iterable[TaskVector], *, smallest: float = 0.85, largest: float = 0.01
) -> TaskVector:
    """Model Breadcrumbs: mask both ends of each layer's magnitudes, then sum.

    Davari and Belilovsky, ECCV 2024, arXiv:2312.06795. The smallest entries are taken for noise, the largest
    for outliers. A layer is one tensor of the layout, ranked as a whole; the authors' code ranks each row by
    itself (the last axis). Shares are rounded down to whole entries, so every tensor keeps at least one.

    Args:
        task_vectors: T vectors of one layout.
        smallest: the share of smallest magnitudes to mask, at least 0.
        largest: the share of largest magnitudes to mask, at least 0.

    Raises:
        ValueError: if a share is out of range, or the two together leave nothing.

    Example:
        >>> vector = TaskVector(torch.tensor([9.0, -4.0, 0.1, 3.0]), [("bias", (4,))])
        >>> breadcrumbs([vector], smallest=0.25, largest=0.25).flat
        tensor([ 0., -4.,  0.,  3.])
    """
    low = _below_one("smallest", smallest)
    high = _below_one("largest", largest)
    if round(low + high, 6) >= 1:
        raise UserError(f"smallest={low} and largest={high} leave nothing; choose shares with a sum below 1")
    vectors = _matching(task_vectors)
    masks = []
    for vector in vectors:
        middles = []
        for part in torch.split(vector._flat.abs(), vector._sizes()):
            not_small = len(part) - math.floor(_entries(low, size=len(part)))
            too_large = math.floor(_entries(high, size=len(part)))
            kept, outliers = _largest(part, not_small, too_large)
            middles.append(kept & ~outliers)
        masks.append(torch.cat(middles))
    return _merged(_across(vectors, lambda kept: kept.sum(0), masks=masks), vectors[0])


def consensus(
    task_vectors: Iterable[TaskVector], *, threshold: float | Sequence[float] = 0.4, agreeing: int = 2
) -> TaskVector:
    """Consensus task arithmetic: the sum, without the entries that hardly a task has a use for.

    Wang et al., ICML 2024, arXiv:2405.07813. Task t uses an entry where |τ_t| ≥ λ_t |Σ_s τ_s − τ_t|: where
    the other tasks together do not drown it. An entry that fewer than `agreeing` tasks use becomes 0; the
    authors call those of one task selfish, those of none catastrophic. What is left is the sum of *all*
    tasks. `ties` asks for agreeing signs and leaves the others out of its mean; `breadcrumbs` masks each task
    by its own magnitudes.

    The result is a sum, so λ is that of `task_arithmetic`, around 0.3 for eight tasks. The entries of T equal
    vectors are used where λ_t (T − 1) ≤ 1, which gives T times the vector, and else all become 0. Tensors
    that are no matrices are treated like all others.

    The paper compares with ≥, as here, the authors' code with >. They differ in entries that are 0, or just
    at the threshold: with > a threshold of 0 would still mask what a single task has moved. The authors can
    start from TIES as well as from the sum; here it is the sum.

    Args:
        task_vectors: T vectors of one layout.
        threshold: λ_t, one for all tasks or one for each, at least 0. The authors choose each task's among
            0.2, 0.3 … 0.6 on validation data. At 0 every task uses every entry, which gives the sum.
        agreeing: how many tasks have to use an entry, from 1 to T; the authors' 2. At 1 selfish ones stay.

    Raises:
        ValueError: if a threshold is negative, if there is not one for each task, or if `agreeing` is not
            from 1 to T.

    Example:
        >>> layout = [("bias", (3,))]
        >>> rows = [4.0, 1.0, 1.0], [0.5, 1.0, -9.0]  # 0.5 < 0.4 · 4, and 1 < 0.4 · 9
        >>> consensus([TaskVector(torch.tensor(row), layout) for row in rows]).flat
        tensor([0., 2., 0.])
    """
    vectors = _matching(task_vectors)
    numbers = threshold if isinstance(threshold, Sequence) else [threshold] * len(vectors)
    given = [_checks.finite_number("threshold", number) for number in numbers]
    if len(given) != len(vectors):
        raise UserError(
            f"threshold has {len(given)} number(s) for {len(vectors)} task(s); give one for each of them"
        )
    if min(given) < 0:
        raise UserError(f"threshold must be at least 0, got {min(given)}; the authors try 0.2 to 0.6")
    least = _checks.whole_number("agreeing", agreeing)
    if least > len(vectors):
        raise UserError(
            f"agreeing={least} asks for more tasks than the {len(vectors)} that are merged, which leaves "
            "nothing; choose at most so many"
        )
    factors = torch.tensor(given, dtype=torch.float64, device=vectors[0]._flat.device)[:, None]

    def merge(rows: Tensor) -> Tensor:
        total = rows.sum(0)
        used = rows.abs() >= factors * (total - rows).abs()
        return total.where(used.sum(0) >= least, 0)

    return _merged(_across(vectors, merge), vectors[0])


def tsv(task_vectors: Iterable[TaskVector], *, kernels: Literal["mean", "matrix"] = "mean") -> TaskVector:
    """TSV-M: keep each task's top singular directions and make them orthogonal across tasks.

    Gargiulo et al., *Task Singular Vectors*, CVPR 2025, arXiv:2412.00081. Of a matrix with r rows or columns,
    whichever is fewer, each task gives its ⌊r / T⌋ largest singular values with their left and right
    directions. The left ones of all tasks stand side by side and are replaced by the nearest orthonormal
    columns (orthogonal Procrustes, a whitening); so are the right ones. Then the factors are multiplied back.

    Everything else is averaged: tensors that are no matrices, and matrices with r < T, which have no room for
    a direction of each task; ⌊r / T⌋ = 0 would erase them. The authors' code averages text projections too.

    Directions whose singular value is mere rounding are left out, because nothing fixes them. So a zero
    matrix takes no part, and T equal matrices give that matrix cut to rank ⌊r / T⌋. Where two singular values
    tie just at the cut, rounding decides which stays.

    Args:
        task_vectors: T vectors of one layout.
        kernels: what becomes of kernels (out, in, height, width), and of all tensors with three axes or more.
            "mean" averages them, as the authors' code does; it was written for transformers, and of a network
            made of convolutions it leaves little more than the mean. "matrix" takes them for matrices
            (out, in · height · width), but averages those with in = 1: there each row of a depthwise kernel
            sees a channel of its own.

    Raises:
        ValueError: if `kernels` is unknown.

    Example:
        >>> layout = [("weight", (2, 2))]
        >>> matrices = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 5.0]])
        >>> merged = tsv(TaskVector(matrix.reshape(-1), layout) for matrix in matrices)
        >>> merged.flat.reshape(2, 2).abs()  # the second direction of task 1 made room for task 2
        tensor([[3., 0.],
                [0., 5.]])
    """
    unrolled = _checks.named_choice("treatment of kernels", kernels, {"mean": False, "matrix": True})
    return _by_matrices(_matching(task_vectors), whitened, unrolled=unrolled)


def iso_c(task_vectors: Iterable[TaskVector], *, kernels: Literal["mean", "matrix"] = "mean") -> TaskVector:
    """Iso-C: the sum of the task matrices with all its singular values made equal.

    Marczak et al., *No Task Left Behind*, ICML 2025, arXiv:2502.04959. One SVD of Σ_t τ_t = U S Vᵀ, and every
    singular value becomes their arithmetic mean: σ̄ U Vᵀ. The directions that many tasks share drown those of
    a single task; now all weigh the same, and none is cut off. `tsv` works on the SVD of each task by
    itself and keeps its singular values; `iso_cts` goes on from here.

    A matrix comes out as a sum: T equal ones give T times what one gives. But the large singular values
    of a sum are what makes it need a small λ, and they are gone, so λ is near 1 (1.0 to 1.5 for eight
    tasks in the paper, tuned). Tensors that are no matrices are averaged, so λ is that of `mean` there. The
    authors average text projections too; here no name means anything, and they are matrices like others.

    Directions whose singular value is mere rounding are left out, because nothing fixes them, though they
    count in the mean: diag(4, 0) gives diag(2, 0). The authors' code takes whatever directions the SVD gives.

    Args:
        task_vectors: T vectors of one layout.
        kernels: what becomes of tensors with three axes or more, as in `tsv`.

    Raises:
        ValueError: if `kernels` is unknown.

    Example:
        >>> vector = TaskVector(torch.tensor([4.0, 0.0, 0.0, 1.0]), [("weight", (2, 2))])
        >>> iso_c([vector]).flat
        tensor([2.5000, 0.0000, 0.0000, 2.5000])
    """
    unrolled = _checks.named_choice("treatment of kernels", kernels, {"mean": False, "matrix": True})
    return _by_matrices(_matching(task_vectors), isotropic, unrolled=unrolled)


def iso_cts(
    task_vectors: Iterable[TaskVector],
    *,
    common_share: float = 0.8,
    kernels: Literal["mean", "matrix"] = "mean",
) -> TaskVector:
    """Iso-CTS: as Iso-C, with the weakest common directions replaced by directions of single tasks.

    Marczak et al., *No Task Left Behind*, ICML 2025, arXiv:2502.04959. Of the r directions that a matrix can
    have, the first ones are those of the sum. The others belong to the tasks, equally many to each: the top
    directions of τ_t once the common left directions are projected out. Left directions, and right ones,
    are replaced by the nearest orthonormal ones, as in `tsv`, and all singular values by the mean of the
    r collected. It is meant for many tasks: in the paper it is level with Iso-C for eight and ahead for 14
    and 20.

    Sum or mean, λ and tensors that are no matrices: as in `iso_c`. Of T equal matrices the tasks' own
    directions coincide, so fewer than r are left. One task, or so many that none gets a direction, give
    `iso_c`.

    Args:
        task_vectors: T vectors of one layout.
        common_share: the share of r that comes from the sum, from 0 to 1; the paper's 0.8. What that leaves
            is divided by T and rounded, as in the authors' code, so the sum may get some more or fewer. At 1
            this is `iso_c`.
        kernels: what becomes of tensors with three axes or more, as in `tsv`.

    Raises:
        ValueError: if `common_share` is out of range, or `kernels` is unknown.

    Example:
        >>> layout = [("weight", (2, 2))]
        >>> rows = [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]
        >>> iso_cts([TaskVector(torch.tensor(row), layout) for row in rows], common_share=0).flat
        tensor([1.5000, 0.0000, 0.0000, 1.5000])
    """
    share = _checks.finite_number("common_share", common_share)
    if not 0 <= share <= 1:
        raise UserError(f"common_share must be from 0 to 1, got {share}; the paper takes 0.8")
    unrolled = _checks.named_choice("treatment of kernels", kernels, {"mean": False, "matrix": True})
    rule = partial(isotropic_with_own_directions, common_share=share)
    return _by_matrices(_matching(task_vectors), rule, unrolled=unrolled)


def regmean_from_vectors(task_vectors: Iterable[TaskVector], *, ridge: float = 0.01) -> TaskVector:
    """RegMean without data: least squares in which τ_tᵀτ_t stands for the inputs of task t.

    RegMean (Jin et al., ICLR 2023, arXiv:2212.09849) merges a linear layer by the W with the least
    Σ_t ‖(W − τ_t) X_t‖², where the columns of X_t are the inputs of task t. Here they are not at hand. But a
    gradient of the layer is a sum of outer products δxᵀ, so after one step the rows of τ_t lie in the span of
    the inputs; later steps, and Adam, blur this. Hence C_t = n τ_tᵀτ_t / ‖τ_t‖², with n the length of an
    input, stands for X_t X_tᵀ. A ridge ε settles what that leaves open:

        W = (Σ_t τ_t (C_t + εI)) (Σ_t C_t + TεI)⁻¹

    The eigenvalues of every C_t have the mean 1. So ε is a pure number, and no task is heavier than another.
    A direction of strength c that one task alone uses keeps (c + ε) / (c + Tε) of its length: nearly all, as
    in the sum, if c is large, and 1 / T, as in the mean, if c is small. T equal matrices give that matrix.
    ε → ∞ gives the mean. So λ = 1 asks for every task in full where the others leave room; tune it still.

    The idea is published. As ε → 0 the objective is that of WUDI-Merging (Cheng et al., ICML 2025,
    arXiv:2503.08099), whose code takes 300 steps of Adam from the sum. ACTMat (Abdel Hameed et al. 2026,
    arXiv:2604.01329) has the closed form, with C_t = τ_tᵀτ_t and a pseudoinverse in place of the ridge.
    ACE-Merging (Xu et al., CVPR 2026, arXiv:2603.02945) adds a small multiple of I, too, and corrections for
    tasks of unlike size. Wei et al. (2026, arXiv:2606.07289) report that the exact minimum does worse than
    those steps, since weak directions carry noise, and filter them; the ridge is the plainest such filter.

    Kernels (out, in, height, width) are matrices (out, in · height · width), whose inputs are patches. Biases
    and scales are averaged, which is least squares for an input that is always 1. Averaged are, too, kernels
    with in = 1: in a depthwise one, each row has inputs of its own. Every other tensor with two axes counts
    as the weight (out, in) of a linear layer, a table of embeddings too.

    Args:
        task_vectors: T vectors of one layout.
        ridge: ε above 0. Tune it by factors of 10 with λ.

    Raises:
        ValueError: if `ridge` is not above 0, or so small that rounding leaves nothing to invert.

    Example:
        >>> layout = [("weight", (1, 2))]
        >>> vectors = [TaskVector(torch.tensor(row), layout) for row in ([2.0, 0.0], [0.0, 4.0])]
        >>> regmean_from_vectors(vectors, ridge=1.0).flat  # between the mean (1, 2) and the sum (2, 4)
        tensor([1.5000, 3.0000])
    """
    number = _checks.positive_number("ridge", ridge, example=0.01)
    return _by_matrices(_matching(task_vectors), partial(least_squares, ridge=number), unrolled=True)


def wudi(task_vectors: Iterable[TaskVector], *, steps: int = 0, step_size: float = 1e-5) -> TaskVector:
    """WUDI-Merging: the matrix that disturbs each task least, measured by the task's own vector.

    Cheng et al., *Whoever Started the Interference Should End It*, ICML 2025, arXiv:2503.08099. It minimises
    Σ_t ‖(W − τ_t) τ_tᵀ‖² / ‖τ_t‖²: the rows of τ_t stand for the inputs of task t. (So the paper and the
    authors' scripts for vision and for language; one script of theirs divides by ‖τ_t‖ instead.)

    With `steps=0` this is the exact minimum, and of many the one nearest to the sum Σ_t τ_t. It is the limit
    of `regmean_from_vectors` for a ridge towards 0; directions in which all tasks together are mere rounding
    are left out. The authors instead take 300 steps of Adam from the sum, of up to 1e-5 a weight (2e-5 for
    language): `steps=300`. Wei et al. (2026, arXiv:2606.07289) report that this does better, since weak
    directions carry noise. They are where the two differ: of four random 16 × 48 matrices with entries near
    0.001, the exact minimum has 0.22 of the objective that the sum has, and is 1.66 times as long as the sum;
    300 steps reach 0.30 of it, at 0.93 times the length.

    Where tasks leave each other room this is the sum, so λ is near 1; the paper takes 1. T equal matrices
    give that matrix with `steps=0`. Steps have a length of their own, so with them the result does not scale
    with the vectors. Kernels (out, in, height, width) are matrices (out, in · height · width). Tensors that
    are no matrices are averaged, and so are kernels with in = 1. The authors merge the weights of attention
    and MLPs alone, and leave all other tensors as they were pretrained.

    Args:
        task_vectors: T vectors of one layout.
        steps: 0 for the exact minimum, or how many steps of Adam.
        step_size: Adam's learning rate; it matters only with steps.

    Raises:
        ValueError: if `steps` is negative, or `step_size` is not above 0.

    Example:
        >>> layout = [("weight", (1, 2))]
        >>> vectors = [TaskVector(torch.tensor(row), layout) for row in ([2.0, 0.0], [0.0, 4.0])]
        >>> wudi(vectors).flat  # each task has an input of its own, and gets its vector in full
        tensor([2., 4.])
    """
    count = _checks.whole_number("steps", steps, minimum=0)
    length = _checks.positive_number("step_size", step_size, example=1e-5)
    rule = partial(adam_from_the_sum, steps=count, step_size=length) if count else least_interference
    return _by_matrices(_matching(task_vectors), rule, unrolled=True)


# what the rules share


def _matching(task_vectors: Iterable[TaskVector]) -> list[TaskVector]:
    """The vectors as a list, all of one layout, dtype and device."""
    return list(_one_by_one(task_vectors))


def _one_by_one(task_vectors: Iterable[TaskVector]) -> Iterator[TaskVector]:
    """The vectors in turn, each of the layout, dtype and device of the first."""
    if not isinstance(task_vectors, Iterable):
        raise InputTypeError(
            f"task_vectors must be several TaskVectors, got {type(task_vectors).__name__}; "
            "put them into a list"
        )
    first = None
    for place, vector in enumerate(task_vectors):
        if not isinstance(vector, TaskVector):
            raise InputTypeError(
                f"task_vectors[{place}] must be a TaskVector, got {type(vector).__name__}; "
                "TaskVector.between(pretrained, finetuned) makes one; of a dictionary give the values()"
            )
        first = vector if first is None else first
        try:
            first._check_match(vector)
        except (TypeError, ValueError) as error:
            raise type(error)(f"task_vectors[0] and task_vectors[{place}] do not match: {error}") from None
        if set(vector.carried) != set(first.carried):
            raise UserError(
                f"task_vectors[0] carries the buffers {first.carried}, task_vectors[{place}] carries "
                f"{vector.carried}; make all vectors from state dicts of one architecture"
            )
        if len(vector) == 0:
            raise UserError("the task vectors have no entries; give vectors of a model with parameters")
        yield vector
    if first is None:
        raise UserError("the list of task vectors is empty; give at least one")


def _running(
    task_vectors: Iterable[TaskVector], take_in: Callable[[Tensor, Tensor, int], object]
) -> TaskVector:
    """What `take_in` makes of the first vector (D,), with the others taken in in place, one by one.

    Half precision is computed in float32 and rounded once.
    """
    vectors = _one_by_one(task_vectors)
    first = next(vectors)
    wide = torch.promote_types(first._flat.dtype, torch.float32)
    total = _memory.empty(first._flat.shape, dtype=wide, device=first._flat.device).copy_(first._flat)
    for place, vector in enumerate(vectors, start=1):
        take_in(total, vector._flat.to(wide), place)
    return _merged(total.to(first._flat.dtype), first)


def _across(
    vectors: list[TaskVector], rule: Callable[[Tensor], Tensor], *, masks: list[Tensor] | None = None
) -> Tensor:
    """The merged entries (D,): `rule` takes rows (T, n) to one row (n,), piece by piece and in float64.

    Entries are 0 where the mask (D,) of their vector is false.
    """
    flats = [vector._flat for vector in vectors]  # .flat would copy each; nothing here writes to them
    first = flats[0]
    merged = _memory.empty(first.shape, dtype=first.dtype, device=first.device)
    buffer = torch.empty(len(flats), min(_PIECE, len(first)), dtype=torch.float64, device=first.device)
    for start in range(0, len(first), _PIECE):
        here = slice(start, start + _PIECE)
        rows = buffer[:, : len(merged[here])]
        for row, flat in zip(rows, flats, strict=True):
            row.copy_(flat[here])
        if masks is not None:
            for row, mask in zip(rows, masks, strict=True):
                row.mul_(mask[here])
        merged[here] = rule(rows)
    return merged


def _merged(flat: Tensor, first: TaskVector) -> TaskVector:
    return first._with(flat, what="the merged task vector")


def _below_one(name: str, value: float) -> float:
    number = _checks.finite_number(name, value)
    if not 0 <= number < 1:
        raise UserError(f"{name} must be at least 0 and below 1, got {number}; 0 drops nothing")
    return number


def kept_entries(density: float, *, size: int) -> int:
    """How many of `size` entries a trim to this density keeps: ⌈density · size⌉, and one at least."""
    return min(max(math.ceil(_entries(density, size=size)), 1), size)


def _entries(share: float, *, size: int) -> float:
    """`share * size` cleared of rounding, so that 0.1 of 30 is 3.0 and not 3.0000000000000004."""
    return round(float(share) * size, 6)


def _largest(magnitudes: Tensor, *counts: int) -> list[Tensor]:
    """For each count a mask of so many largest of some magnitudes (n,), the earlier of equal ones first."""
    size = len(magnitudes)
    places = sorted(
        size - count for count in counts if count
    )  # of the smallest one kept each, in rising order
    thresholds = {}
    if magnitudes.device.type == "cpu":  # there numpy is several times as fast as torch's kthvalue
        wide = magnitudes.to(torch.promote_types(magnitudes.dtype, torch.float32))  # numpy knows no bfloat16
        ranked = wide.numpy().copy()
        below = 0  # so many are smaller than all that is still to be ranked
        for place in places:
            ranked[below:].partition(place - below)
            thresholds[size - place] = float(ranked[place])
            below = place
    else:
        for place in places:
            thresholds[size - place] = magnitudes.kthvalue(place + 1).values.item()
    masks = []
    for count in counts:
        if count == 0:
            masks.append(torch.zeros_like(magnitudes, dtype=torch.bool))
            continue
        mask = magnitudes > thresholds[count]
        equal = (magnitudes == thresholds[count]).nonzero().squeeze(1)
        mask[equal[: count - int(mask.sum())]] = True
        masks.append(mask)
    return masks


def _by_matrices(
    vectors: list[TaskVector], rule: Callable[[list[Tensor]], Tensor], *, unrolled: bool
) -> TaskVector:
    """`rule` takes T matrices (out, in) to one in float64; what is no matrix is averaged.

    With `unrolled`, kernels count as matrices, except those whose rows have inputs of their own.
    """
    first = vectors[0]
    merged = _memory.empty(first._flat.shape, dtype=first._flat.dtype, device=first._flat.device)
    places = torch.split(merged, first._sizes())
    parts_of_all = zip(*(torch.split(vector._flat, first._sizes()) for vector in vectors), strict=True)
    for (_, shape), place, parts in zip(first.layout, places, parts_of_all, strict=True):
        is_kernel = len(shape) > 2 and shape[1] > 1
        if 0 not in shape and (len(shape) == 2 or (unrolled and is_kernel)):
            place.copy_(rule([part.view(shape).flatten(1) for part in parts]).reshape(-1))
        else:
            place.copy_(average(list(parts)))
    return _merged(merged, first)
