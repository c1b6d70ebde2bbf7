"""Closed forms on quadratics against the walk itself, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_losses import gradient, relative
from taskvec_mini.expansions import task_vector_expansion
from taskvec_mini.quadratics import Quadratic
from taskvec_mini.theory import collapsed_gap, leading_gap, merge_gap, task_vectors


def quadratic_task_vectors(losses, start, *, learning_rate, epochs):
    """(T, D) in closed form: τ_t = −(I − (I − ηA_t)^k)(θ₀ − μ_t). No step is taken."""
    run = {"learning_rate": learning_rate, "epochs": epochs}
    return torch.stack([moved(loss.hessian, loss.gradient(start), **run) for loss in losses])


def quadratic_gap(losses, start, *, learning_rate, epochs, scaling_coef):
    """The weighted sum of the losses is a quadratic as well, with Hessian α Σ_t A_t: both ends are known."""
    run = {"learning_rate": learning_rate, "epochs": epochs}
    vectors = quadratic_task_vectors(losses, start, **run)
    hessian = scaling_coef * torch.stack([loss.hessian for loss in losses]).sum(0)
    slope = scaling_coef * torch.stack([loss.gradient(start) for loss in losses]).sum(0)
    return scaling_coef * vectors.sum(0) - moved(hessian, slope, **run)


def moved(hessian, slope, *, learning_rate, epochs):
    """−η Σ_{j<k} (I − ηA)^j g, summed as a geometric series in the eigenbasis of A."""
    eigenvalues, basis = torch.linalg.eigh(hessian)
    share = learning_rate * eigenvalues
    # 1 − (1 − x)^k loses digits for a small x; expm1 and log1p keep them
    small = -torch.expm1(epochs * torch.log1p(-share.clamp(-0.5, 0.5)))
    travelled = torch.where(share.abs() < 0.5, small, 1 - (1 - share) ** epochs)
    flat = share == 0
    lengths = torch.where(flat, float(epochs), travelled / torch.where(flat, 1.0, share))
    return -learning_rate * (basis @ (lengths * (basis.T @ slope)))


def random_quadratics(tasks, *, size, kind, seed):
    """Quadratics whose Hessians are definite, indefinite or singular, of spectral norm 1, and a start."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    losses = []
    for _ in range(tasks):
        root = draw(size, size)
        raw = {
            "definite": root @ root.T,
            "indefinite": root + root.T,
            "singular": root[:, :1] @ root[:, :1].T,
        }
        hessian = raw[kind] / torch.linalg.matrix_norm(raw[kind], 2)
        losses.append(Quadratic((hessian + hessian.T) / 2, draw(size)))
    return losses, draw(size)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 50),
    st.sampled_from(["definite", "indefinite", "singular"]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([1e-6, 1e-3, 0.1, 0.5, 1.0]),
    st.sampled_from([1.0, 0.3, 0.05]),
    st.integers(0, 2**32),
)
def test_closed_forms_for_every_number_of_epochs(epochs, kind, tasks, size, rate, alpha, seed):
    """To 1e-12 of the longest path: for η‖A‖ = 1 and a negative eigenvalue that is 2⁵⁰ times the start."""
    losses, start = random_quadratics(tasks, size=size, kind=kind, seed=seed)
    run = {"learning_rate": rate, "epochs": epochs}
    walked = task_vectors(losses, start, **run)
    closed = quadratic_task_vectors(losses, start, **run)
    scale = float(start.norm() + sum(loss.centre.norm() for loss in losses) + walked.norm())
    assert (walked - closed).norm() <= 1e-12 * scale
    gap = merge_gap(losses, start, **run, scaling_coef=alpha)
    assert (gap - quadratic_gap(losses, start, **run, scaling_coef=alpha)).norm() <= 1e-12 * scale * (
        1 + alpha * tasks * rate
    ) ** epochs


@pytest.mark.parametrize("epochs", range(1, 51))
def test_every_number_of_epochs_up_to_fifty(epochs):
    for kind in ("definite", "indefinite", "singular"):
        losses, start = random_quadratics(3, size=4, kind=kind, seed=epochs)
        run = {"learning_rate": 0.1, "epochs": epochs}
        assert (
            relative(quadratic_task_vectors(losses, start, **run), task_vectors(losses, start, **run)) < 1e-12
        )
        if epochs > 1:
            at = {**run, "scaling_coef": 1 / 3}
            assert relative(quadratic_gap(losses, start, **at), merge_gap(losses, start, **at)) < 1e-12


def test_the_formula_written_out():
    """τ = −(I − (I − ηA)^k)(θ₀ − μ), with a matrix power."""
    (loss,), start = random_quadratics(1, size=4, kind="indefinite", seed=0)
    eye = torch.eye(4, dtype=torch.float64)
    power = torch.linalg.matrix_power(eye - 0.3 * loss.hessian, 7)
    expected = -(eye - power) @ (start - loss.centre)
    found = quadratic_task_vectors([loss], start, learning_rate=0.3, epochs=7)[0]
    assert relative(found, expected) < 1e-13


def test_small_steps_keep_their_digits():
    """1 − (1 − x)^k would lose ten digits here; the first order says what is right to fifteen."""
    (loss,), start = random_quadratics(1, size=3, kind="definite", seed=1)
    found = quadratic_task_vectors([loss], start, learning_rate=1e-10, epochs=5)[0]
    expected = task_vector_expansion(loss, start, learning_rate=1e-10, epochs=5, order=2)
    assert relative(found, expected) < 1e-15


@pytest.mark.parametrize("epochs", [1, 4, 50])
def test_flat_directions_are_walked_straight(epochs):
    """Two Hessians that cancel: the sum of the losses is a plain slope, while each task is curved."""
    (loss,), start = random_quadratics(1, size=4, kind="indefinite", seed=5)
    losses = [loss, Quadratic(-loss.hessian, loss.centre + 1)]
    run = {"learning_rate": 0.1, "epochs": epochs}
    straight = -0.1 * epochs * 0.5 * sum(each.gradient(start) for each in losses)
    expected = 0.5 * quadratic_task_vectors(losses, start, **run).sum(0) - straight
    found = quadratic_gap(losses, start, **run, scaling_coef=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        found, merge_gap(losses, start, **run, scaling_coef=0.5), rtol=1e-11, atol=1e-12
    )


def test_leading_terms_on_quadratics():
    """For two epochs of quadratics the whole gap is of second order, and can be written out by hand."""
    losses, start = random_quadratics(3, size=4, kind="indefinite", seed=2)
    run = {"learning_rate": 0.2, "epochs": 2, "scaling_coef": 0.7}
    total = sum(loss.gradient(start) for loss in losses)
    expected = -0.7 * 0.2**2 * sum(loss.hessian @ (0.7 * total - loss.gradient(start)) for loss in losses)
    for function in (leading_gap, collapsed_gap, quadratic_gap, merge_gap):
        assert relative(function(losses, start, **run), expected) < 1e-12


def test_value_and_gradient():
    (loss,), theta = random_quadratics(1, size=3, kind="indefinite", seed=3)
    offset = theta - loss.centre
    expected = sum(loss.hessian[i, j] * offset[i] * offset[j] / 2 for i in range(3) for j in range(3))
    torch.testing.assert_close(loss(theta), expected)
    torch.testing.assert_close(loss.gradient(theta), gradient(loss, theta))


def test_bad_quadratics_are_named():
    with pytest.raises(ValueError, match=r"hessian has shape \(2, 3\) but centre has 2 entries"):
        Quadratic(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="hessian is not symmetric"):
        Quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.zeros(2))
    with pytest.raises(ValueError, match="hessian holds 1 value"):
        Quadratic(torch.tensor([[math.nan]]), torch.zeros(1))
    with pytest.raises(TypeError, match="centre must be a 1-D floating-point tensor"):
        Quadratic(torch.eye(2), torch.zeros(2, 1))
