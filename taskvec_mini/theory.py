"""What a task vector is, in symbols that run: task arithmetic beside multitask gradient descent.

Everything here speaks of flat parameters θ (D,) and of losses as functions of θ, so any model fits. L_t is
the mean loss of task t, η the learning rate, k the number of epochs (full-batch steps), α the scaling
coefficient. g_t is the gradient and H_t the Hessian of L_t, ĝ = Σ_t g_t their sum, and r_t = αĝ − g_t the
disagreement of task t; ḡ and H̄ are means over tasks. The statements come from Zhou et al., *On Task Vectors
and Gradients*, UniReps 2025, arXiv:2508.16082; the coefficients were derived anew for this library, and its
tests measure them. Control variates are those of SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378).

Your own model fits too, a transformer as well. Hessians are only ever multiplied with vectors, so it need not
be small. It must be a function of its parameters alone: no dropout, no batch statistics. Here is a
convolutional network that learns to read digits upright and mirrored; the gap, less its leading term, shrinks
with the third power of η:

    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from taskvec_mini.networks import flat_loss, flatten
    >>> digits, nn = load_digits(), torch.nn
    >>> images = torch.tensor(digits.images[:50]).unsqueeze(1) / 16
    >>> labels = torch.tensor(digits.target[:50]).long()
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 10)).double()
    >>> losses = [flat_loss(model, images, labels), flat_loss(model, images.flip(3), labels)]
    >>> source = torch.Generator().manual_seed(0)
    >>> start = 0.1 * torch.randn(flatten(model).shape, generator=source, dtype=torch.float64)
    >>> rates, gaps, remainders = [2.0**-9, 2.0**-10], [], []
    >>> for rate in rates:
    ...     run = {"learning_rate": rate, "epochs": 3, "scaling_coef": 0.5}
    ...     gaps.append(merge_gap(losses, start, **run))
    ...     remainders.append(gaps[-1] - leading_gap(losses, start, **run))
    >>> round(convergence_order(rates, [float(gap.norm()) for gap in gaps]), 1)
    2.0
    >>> round(convergence_order(rates, [float(rest.norm()) for rest in remainders]), 1)
    3.0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from taskvec_mini import _checks
from taskvec_mini.descent import DivergedError, Loss, gradient_descent, gradients
from taskvec_mini.errors import UserError
from taskvec_mini.networks import stacked


def task_vectors(
    losses: Sequence[Loss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    control_variates: bool = False,
) -> Tensor:
    """The task vectors τ_t = θ_t − θ₀ (T, D) after `epochs` full-batch steps on each loss by itself.

    After one epoch τ_t = −η∇L_t(θ₀), exactly: this is the identity the book is about. With
    `control_variates` the tasks first exchange one gradient each; see `descent.gradient_descent`.

    Raises:
        DivergedError, ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> task_vectors(bowls, torch.tensor([1.0]), learning_rate=0.5, epochs=1).tolist()
        [[-0.5], [1.0]]
        >>> run = {"learning_rate": 0.5, "epochs": 1, "control_variates": True}
        >>> task_vectors(bowls, torch.tensor([1.0]), **run).tolist()
        [[0.25], [0.25]]
    """
    losses = _checks.not_empty("the list of losses", losses)
    paths = gradient_descent(
        losses, start, learning_rate=learning_rate, epochs=epochs, control_variates=control_variates
    )
    return paths[:, -1] - start.detach()


def multitask_descent(
    losses: Sequence[Loss], start: Tensor, *, learning_rate: float, epochs: int, scaling_coef: float
) -> Tensor:
    """Gradient descent on α Σ_t L_t with rate η: the trajectory (epochs + 1, D), start first.

    With α = 1/T this is ordinary multitask training on the mean loss; with α = 1, on the sum.

    Raises:
        DivergedError, ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> start = torch.tensor([3.0])
        >>> multitask_descent(bowls, start, learning_rate=0.5, epochs=2, scaling_coef=0.5).tolist()
        [[3.0], [2.0], [1.5]]
    """
    losses = _checks.not_empty("the list of losses", losses)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    together = stacked(losses)

    def total(theta: Tensor) -> Tensor:
        values = together(theta.expand(len(losses), -1)) if together else [loss(theta) for loss in losses]
        return alpha * torch.stack(tuple(values)).sum()

    return gradient_descent(total, start, learning_rate=learning_rate, epochs=epochs)


def merge_gap(
    losses: Sequence[Loss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    scaling_coef: float,
    control_variates: bool = False,
) -> Tensor:
    """Δ = TA − M (D,): task arithmetic θ₀ + α Σ_t τ_t less the end of multitask descent, after k epochs.

    Zero after one epoch, for every α, η and T; of second order in η after more. With `control_variates`, for
    α = 1/T: zero after one epoch and after two, at every η, and of third order after more (`variance_gap`).
    For all tasks take the first step of multitask descent, so θ_t¹ = M¹, and the mean of their second
    steps −η[g_t(M¹) − g_t(θ₀) + ḡ(θ₀)] is −ηḡ(M¹).

    Raises:
        DivergedError, TypeError: as `descent.gradient_descent` does.
        ValueError: likewise, and if α is not 1/T where `control_variates` are asked for.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> start = torch.tensor([3.0])
        >>> merge_gap(bowls, start, learning_rate=0.5, epochs=1, scaling_coef=0.5).item()
        0.0
        >>> run = {"learning_rate": 0.5, "epochs": 2, "scaling_coef": 0.5}
        >>> [merge_gap(bowls, start, **run, control_variates=exchange).item() for exchange in (False, True)]
        [-0.0625, 0.0]
    """
    losses = _checks.not_empty("the list of losses", losses)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    if control_variates and not math.isclose(alpha * len(losses), 1, rel_tol=1e-9):
        raise UserError(
            f"with control_variates scaling_coef must be 1/T = 1/{len(losses)}, got {alpha:g}: the tasks "
            "step along the mean gradient, so with another coefficient multitask descent leaves them at the "
            "first step; for a longer step raise learning_rate instead"
        )
    vectors = task_vectors(
        losses, start, learning_rate=learning_rate, epochs=epochs, control_variates=control_variates
    )
    merged = start.detach() + alpha * vectors.sum(0)
    path = multitask_descent(losses, start, learning_rate=learning_rate, epochs=epochs, scaling_coef=alpha)
    return merged - path[-1]


def leading_gap(
    losses: Sequence[Loss], start: Tensor, *, learning_rate: float, epochs: int, scaling_coef: float
) -> Tensor:
    """The gap's leading term (D,), a double sum along the multitask path M⁰, M¹, ...:

    −αη² Σ_t Σ_{j=1}^{k−1} H_t(M^j) Σ_{m=0}^{j−1} r_t(M^m). What `merge_gap` holds beyond it is O(η³) where
    the losses have three continuous derivatives. Zero after one epoch.

    One pass along the path: a gradient and a Hessian-vector product per task and epoch. It keeps (T, D)
    numbers and takes at most about three times as long as finetuning the tasks.

    Raises:
        DivergedError, ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> start = torch.tensor([3.0])
        >>> leading_gap(bowls, start, learning_rate=0.5, epochs=2, scaling_coef=0.5).item()
        -0.0625
    """
    losses = _checks.not_empty("the list of losses", losses)
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    point = _checks.flat_parameters("start", start).detach()
    products_at = hessian_products(losses)
    _, slopes = gradients(losses)(point.expand(len(losses), -1))
    drift, total = torch.zeros_like(slopes), torch.zeros_like(point)
    for epoch in range(1, epochs):
        joint = alpha * slopes.sum(0)
        drift = drift + joint - slopes  # Σ_m r_t(M^m), one row a task: what saves the inner sum
        point = point - rate * joint
        values, slopes, products = products_at(point.expand(len(losses), -1), drift)
        if not bool(torch.isfinite(slopes).all() & torch.isfinite(point).all()):
            raise DivergedError(epoch, float(values.sum()), rate)
        total = total + products.sum(0)
    return -alpha * rate**2 * total


def collapsed_gap(
    losses: Sequence[Loss], start: Tensor, *, learning_rate: float, epochs: int, scaling_coef: float
) -> Tensor:
    """The gap's leading term (D,) with everything evaluated at the start: αη² · k(k−1)/2 · ∇Φ_α(θ₀).

    In full, −αη² · k(k−1)/2 · Σ_t H_t(θ₀) r_t(θ₀). It differs from `leading_gap` by O(η³), so it is as good
    in order; its cost does not grow with the epochs. The ½ belongs to this form, not to the double sum.

    Raises:
        ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> start = torch.tensor([3.0])
        >>> collapsed_gap(bowls, start, learning_rate=0.5, epochs=2, scaling_coef=0.5).item()
        -0.0625
    """
    rate = _checks.positive_number("learning_rate", learning_rate)
    pairs = _checks.whole_number("epochs", epochs) * (epochs - 1) / 2
    _checks.flat_parameters("start", start)
    uphill = potential_gradient(losses, start, scaling_coef=scaling_coef)
    return scaling_coef * rate**2 * pairs * uphill


def variance_gap(losses: Sequence[Loss], start: Tensor, *, learning_rate: float, epochs: int) -> Tensor:
    """The leading term (D,) of the gap that control variates leave: −η³ · C(k,3) · V ḡ(θ₀).

    V = (1/T) Σ_t (H_t − H̄)² is the variance of the tasks' Hessians at the start. Without an exchange the gap
    climbs the variance of the *gradients* (`collapsed_gap`); with one, the variance of the *curvatures* is
    all that is left up to O(η⁴). Mean form, α = 1/T. Zero up to two epochs, and where the tasks bend alike.

    Derivation: d_t^j = θ_t^j − M^j begins with d_t^1 = 0 and gains η² j (H_t − H̄)ḡ in step j, so it is
    η² C(j,2) (H_t − H̄)ḡ to leading order. The merge then falls behind by −η Σ_j (1/T) Σ_t H_t d_t^j, the
    C(j,2) add up to C(k,3), and (1/T) Σ_t H_t (H_t − H̄) = V. Patel, Zindari, Stich and Wang, NeurIPS 2025,
    bound local SGD by the same heterogeneity of second order.

    Two Hessian-vector products a task, on one graph, however many the epochs; (T, D) numbers.

    Raises:
        ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> start, run = torch.tensor([3.0]), {"learning_rate": 0.5, "epochs": 3}
        >>> variance_gap(bowls, start, **run).item()
        -0.078125
        >>> merge_gap(bowls, start, **run, scaling_coef=0.5, control_variates=True).item()
        -0.078125
    """
    losses = _checks.not_empty("the list of losses", losses)
    rate = _checks.positive_number("learning_rate", learning_rate)
    triples = math.comb(_checks.whole_number("epochs", epochs), 3)
    points = _checks.flat_parameters("start", start).detach().expand(len(losses), -1)
    _, slopes = gradients(losses)(points)
    products_at = hessian_products(losses)
    _, _, bent = products_at(points, slopes.mean(0).expand_as(points))  # H_t ḡ
    _, _, twice = products_at(points, bent - bent.mean(0))  # H_t (H_t − H̄) ḡ
    return -(rate**3) * triples * twice.mean(0)


def corrected_merge(
    losses: Sequence[Loss],
    start: Tensor,
    *,
    learning_rate: float,
    epochs: int,
    scaling_coef: float,
    along_path: bool = False,
) -> Tensor:
    """Task arithmetic less the leading term of its gap (D,): as near to multitask descent as O(η³).

    The tasks train as ever and nothing is exchanged beforehand. By default the term is `collapsed_gap`: one
    Hessian-vector product a task, at the start. With `along_path` it is one a task and epoch, where the task
    has just been: −αη Σ_t Σ_j H_t(θ_t^j) (θ_t^j − A^j), with A^j = θ₀ + α Σ_t τ_t^j the merge after j epochs.
    (The gap is −αη Σ_t Σ_j [g_t(θ_t^j) − g_t(M^j)] exactly, and A^j is M^j up to O(η²). `leading_gap` walks
    multitask descent itself, which whoever wants a merge does not have.)

    Where ηk times the curvature is not small, both may overshoot.

    Raises:
        DivergedError, ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> start, run = torch.tensor([3.0]), {"learning_rate": 0.5, "epochs": 2, "scaling_coef": 0.5}
        >>> multitask_descent(bowls, start, **run)[-1].item()
        1.4375
        >>> [corrected_merge(bowls, start, **run, along_path=along).item() for along in (False, True)]
        [1.4375, 1.4375]
    """
    losses = _checks.not_empty("the list of losses", losses)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    if not along_path:
        vectors = task_vectors(losses, start, learning_rate=learning_rate, epochs=epochs)
        gap = collapsed_gap(losses, start, learning_rate=learning_rate, epochs=epochs, scaling_coef=alpha)
        return start.detach() + alpha * vectors.sum(0) - gap
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    begin = _checks.flat_parameters("start", start).detach()
    products_at = hessian_products(losses)
    thetas, correction = begin.repeat(len(losses), 1), torch.zeros_like(begin)
    for epoch in range(1, epochs + 1):
        merged = begin + alpha * (thetas - begin).sum(0)
        values, slopes, products = products_at(thetas, thetas - merged)
        correction = correction + alpha * rate * products.sum(0)
        thetas = thetas - rate * slopes
        if not bool(torch.isfinite(thetas).all() & torch.isfinite(values).all()):
            raise DivergedError(epoch, float(values.sum()), rate)
    return begin + alpha * (thetas - begin).sum(0) + correction


def potential(losses: Sequence[Loss], theta: Tensor, *, scaling_coef: float) -> Tensor:
    """Φ_α(θ) = ½ Σ_t ‖g_t‖² − (α/2) ‖ĝ‖², a scalar: what the gap climbs to second order.

    See `collapsed_gap`. With α = 1/T it is ½ Σ_t ‖g_t − ĝ/T‖², how far the tasks' gradients disagree.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> potential(bowls, torch.tensor([5.0]), scaling_coef=0.5).item()
        1.0
    """
    slopes, alpha = _slopes_at(losses, theta, scaling_coef)
    return (slopes.square().sum() - alpha * slopes.sum(0).square().sum()) / 2


def potential_gradient(losses: Sequence[Loss], theta: Tensor, *, scaling_coef: float) -> Tensor:
    """∇Φ_α(θ) = Σ_t H_t (g_t − αĝ) = −Σ_t H_t r_t (D,), by one Hessian-vector product per task.

    Example:
        >>> bowls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum()]
        >>> potential_gradient(bowls, torch.tensor([3.0]), scaling_coef=0.5).item()
        -0.5
    """
    slopes, alpha = _slopes_at(losses, theta, scaling_coef)
    _, _, products = hessian_products(losses)(theta.expand(len(slopes), -1), slopes - alpha * slopes.sum(0))
    return products.sum(0)


def _slopes_at(losses: Sequence[Loss], theta: Tensor, scaling_coef: float) -> tuple[Tensor, float]:
    losses = _checks.not_empty("the list of losses", losses)
    alpha = _checks.finite_number("scaling_coef", scaling_coef)
    _checks.flat_parameters("theta", theta)
    _, slopes = gradients(losses)(theta.expand(len(losses), -1))
    return slopes, alpha


def hessian_products(losses: Sequence[Loss]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """A function from thetas and directions, both (T, D), to values (T,), gradients and H_t v_t, both (T, D).

    Reverse over reverse: no Hessian is ever formed. Losses that stack are evaluated in one `vmap`, as in
    `descent.gradients`; others one after the other, so that one graph is in memory at a time. Attention is
    computed in the one way that can be differentiated twice, see `twice_differentiable`.

    Example:
        >>> products_at = hessian_products([lambda theta: theta.pow(3).sum()])
        >>> _, _, products = products_at(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
        >>> products.tolist()
        [[6.0, 12.0]]
    """
    together = stacked(losses) if len(losses) > 1 else None

    def product(loss: Loss, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = point.detach().requires_grad_()
        with twice_differentiable():
            values = loss(point)
            slopes = derivative(values.sum(), point, keep_graph=True)
            return values.detach(), slopes.detach(), derivative(slopes, point, direction)

    def evaluate(thetas: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if together:
            return product(together, thetas, directions)
        rows = [product(*each) for each in zip(losses, thetas, directions, strict=True)]
        values, slopes, products = map(torch.stack, zip(*rows, strict=True))
        return values, slopes, products

    return evaluate


def twice_differentiable() -> AbstractContextManager[None]:
    """Within it, `scaled_dot_product_attention` is computed from products of matrices and a softmax.

    The fused kernels that torch takes by default have a first derivative only, on CPUs too. The values are
    the same up to rounding; attention of one's own making is not touched.

    Example:
        >>> queries = torch.ones(1, 2, 3, requires_grad=True)
        >>> with twice_differentiable():
        ...     out = torch.nn.functional.scaled_dot_product_attention(queries, queries, queries)
        >>> (slope,) = torch.autograd.grad(out.square().sum(), queries, create_graph=True)
        >>> torch.autograd.grad(slope.sum(), queries)[0].shape
        torch.Size([1, 2, 3])
    """
    kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return kernel


def derivative(
    outputs: Tensor, points: Tensor, directions: Tensor | None = None, *, keep_graph: bool = False
) -> Tensor:
    """The gradient of ⟨directions, outputs⟩ at `points`: zeros where the outputs no longer depend on them.

    The derivatives of a linear or quadratic loss end early, which torch calls an error. Set `keep_graph` to
    differentiate the result, or to take another derivative of the same outputs.
    """
    if not outputs.requires_grad:
        return torch.zeros_like(points)
    (result,) = torch.autograd.grad(
        outputs, points, directions, create_graph=keep_graph, materialize_grads=True
    )
    return result


def convergence_order(step_sizes: Sequence[float], errors: Sequence[float]) -> float:
    """The slope of log(error) against log(step size): p where error ≈ C · stepᵖ. Two points or more.

    Raises:
        ValueError: if a number is not above 0, the lists differ in length, or all step sizes are equal.

    Example:
        >>> round(convergence_order([0.1, 0.05, 0.025], [0.03, 0.0075, 0.001875]), 6)
        2.0
    """
    steps = [_checks.positive_number("a step size", step) for step in step_sizes]
    sizes = [_checks.positive_number("an error", error) for error in errors]
    if len(steps) != len(sizes) or len(set(steps)) < 2:
        raise UserError(
            f"got {len(steps)} step sizes and {len(sizes)} errors; give as many of both, "
            "with at least two different step sizes"
        )
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(sizes, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def local_orders(step_sizes: Sequence[float], errors: Sequence[float]) -> list[float]:
    """The slope between each step size and the next: where an expansion starts to hold, these settle.

    Raises:
        ValueError: as `convergence_order` does.

    Example:
        >>> [round(order, 6) for order in local_orders([0.1, 0.05, 0.025], [0.1, 0.05, 0.0125])]
        [1.0, 2.0]
    """
    convergence_order(step_sizes, errors)  # for its checks of both lists
    pairs = zip(itertools.pairwise(step_sizes), itertools.pairwise(errors), strict=True)
    return [convergence_order(steps, sizes) for steps, sizes in pairs]
