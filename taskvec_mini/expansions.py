"""The task vector of one task as a power series in the learning rate: for full batches and for mini-batches.

Here g, H and ∇³L are the derivatives of a loss at the start θ₀, η is the learning rate, k the number of
epochs. The series were derived by following the steps of gradient descent one power of η at a time; the tests
check each coefficient by the slope of what it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.descent import Loss, gradient_descent, gradients
from taskvec_mini.errors import UserError
from taskvec_mini.theory import derivative, hessian_products, twice_differentiable


def task_vector_expansion(
    loss: Loss, start: Tensor, *, learning_rate: float, epochs: int, order: int
) -> Tensor:
    """The task vector τ (D,) of one task after k full-batch epochs, up to the given power of η: 1, 2 or 3.

    τ = −kη g + C(k,2) η² Hg − η³ [C(k,3) H²g + k(k−1)(2k−1)/12 · ∇³L[g, g]] + O(η⁴),
    for a loss with enough continuous derivatives. C(k, m) is the number of ways to choose m of k.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if start is not a flat vector of parameters.

    Example:
        >>> import torch
        >>> bowl = lambda theta: theta.square().sum() / 2
        >>> steps = {"learning_rate": 0.5, "epochs": 2}
        >>> [task_vector_expansion(bowl, torch.tensor([1.0]), **steps, order=n).item() for n in (1, 2)]
        [-1.0, -0.75]
    """
    rate = _checks.positive_number("learning_rate", learning_rate)
    epochs = _checks.whole_number("epochs", epochs)
    if _checks.whole_number("order", order) > 3:
        raise UserError(f"order must be 1, 2 or 3, got {order}; higher terms are not worked out here")
    point = _checks.flat_parameters("start", start).detach().requires_grad_()
    with twice_differentiable():
        graph = derivative(loss(point), point, keep_graph=True)
        slope = graph.detach()
        vector = -epochs * rate * slope
        if order >= 2:
            curved_graph = derivative(graph, point, slope, keep_graph=True)
            curved = curved_graph.detach()
            vector = vector + math.comb(epochs, 2) * rate**2 * curved
        if order == 3:
            third = derivative(curved_graph, point, slope, keep_graph=True).detach()  # ∇³L[g, g]
            squares = epochs * (epochs - 1) * (2 * epochs - 1) / 12
            twice = derivative(graph, point, curved)
            vector = vector - rate**3 * (math.comb(epochs, 3) * twice + squares * third)
    return vector


def minibatch_epoch(batches: Sequence[Loss], start: Tensor, *, learning_rate: float) -> Tensor:
    """The task vector (D,) of one epoch of mini-batches: one plain step on each batch's loss, in this order.

    Args:
        batches: the mean loss of each batch, a function of theta, in the order of the steps.
        start: theta at the start (D,).
        learning_rate: the size η of each of the B steps.

    Raises:
        DivergedError, ValueError, TypeError: as `descent.gradient_descent` does.

    Example:
        >>> import torch
        >>> pulls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> minibatch_epoch(pulls, torch.tensor([0.0]), learning_rate=0.5).item()
        1.0
    """
    theta = _checks.flat_parameters("start", start).detach()
    for loss in _checks.not_empty("the list of batches", batches):
        theta = gradient_descent(loss, theta, learning_rate=learning_rate, epochs=1)[-1]
    return theta - start.detach()


def minibatch_expansion(
    batches: Sequence[Loss], start: Tensor, *, learning_rate: float, shuffled: bool = False
) -> Tensor:
    """The task vector (D,) of one epoch of B mini-batches, up to η²: −η Σ_b g_b + η² Σ_b H_b Σ_{b'<b} g_{b'}.

    With `shuffled`, its average over all orders of the batches, where every pair stands either way round half
    the time: the second term is then η²/2 · [(Σ_b H_b)(Σ_b g_b) − Σ_b H_b g_b]. To first order an epoch is
    one step of size Bη on the mean loss of the batches.

    Args:
        batches: the mean loss of each batch, a function of theta, in the order of the steps.
        start: theta at the start (D,).
        learning_rate: the size η of each of the B steps.
        shuffled: average over random orders instead of taking the order of the list.

    Raises:
        ValueError: if there are no batches or the learning rate is out of range.
        TypeError: if start is not a flat vector of parameters.

    Example:
        >>> import torch
        >>> pulls = [lambda theta: theta.square().sum() / 2, lambda theta: (theta - 2).square().sum() / 2]
        >>> minibatch_expansion(pulls, torch.tensor([0.0]), learning_rate=0.5).item()
        1.0
        >>> minibatch_expansion(pulls, torch.tensor([0.0]), learning_rate=0.5, shuffled=True).item()
        0.75
    """
    batches = _checks.not_empty("the list of batches", batches)
    rate = _checks.positive_number("learning_rate", learning_rate)
    points = _checks.flat_parameters("start", start).detach().expand(len(batches), -1)
    _, slopes = gradients(batches)(points)
    earlier = (slopes.sum(0) - slopes) / 2 if shuffled else slopes.cumsum(0) - slopes
    _, _, products = hessian_products(batches)(points, earlier)
    return -rate * slopes.sum(0) + rate**2 * products.sum(0)
