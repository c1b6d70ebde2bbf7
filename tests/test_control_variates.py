"""One exchanged gradient buys one order: exact for two epochs, then the variance of the Hessians."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_losses import convolutional_losses, digit_losses, gradient, hessian, relative, tiny_losses
from taskvec_mini.descent import finetune, gradient_descent
from taskvec_mini.errors import UserError
from taskvec_mini.networks import ACTIVATIONS, MLP, flat_loss, flatten
from taskvec_mini.quadratics import Quadratic
from taskvec_mini.theory import (
    collapsed_gap,
    corrected_merge,
    local_orders,
    merge_gap,
    multitask_descent,
    task_vectors,
    variance_gap,
)

CASES = [("tanh", "cross_entropy", 4), ("softplus", "squared_error", 2), ("gelu", "cross_entropy", 3)]


@st.composite
def random_losses(draw):
    """Two to eight losses of a random network: any activation, either loss, equal or unequal data."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sizes = [3, *draw(st.lists(st.integers(1, 6), max_size=2)), 4]
    model = MLP(sizes, activation=draw(st.sampled_from(sorted(ACTIVATIONS))), generator=generator)
    kind = draw(st.sampled_from(["cross_entropy", "squared_error"]))
    equal = st.integers(2, 8).map(lambda tasks: [5] * tasks)
    counts = draw(st.one_of(equal, st.lists(st.integers(1, 9), min_size=2, max_size=8)))
    losses = []
    for count in counts:
        inputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (count,), generator=generator)
        losses.append(flat_loss(model, inputs, labels, loss=kind))
    return losses, flatten(model) * draw(st.floats(0.1, 3))


def scaffold(loss_list, start, *, learning_rate, epochs):
    """The paths, slowly: a loop over tasks and steps, each gradient by itself."""
    first = [gradient(loss, start) for loss in loss_list]
    mean = torch.stack(first).mean(0)
    paths = []
    for loss, own in zip(loss_list, first, strict=True):
        path = [start]
        for _ in range(epochs):
            path.append(path[-1] - learning_rate * (gradient(loss, path[-1]) - own + mean))
        paths.append(torch.stack(path))
    return torch.stack(paths)


@settings(deadline=None, max_examples=100)
@given(random_losses(), st.floats(1e-4, 1))
def test_two_epochs_are_exact(case, learning_rate):
    losses, start = case
    joint = multitask_descent(
        losses, start, learning_rate=learning_rate, epochs=2, scaling_coef=1 / len(losses)
    )
    steps = [
        learning_rate * (gradient(loss, start).norm() + gradient(loss, joint[1]).norm()) for loss in losses
    ]
    for epochs in (1, 2):
        run = {"learning_rate": learning_rate, "epochs": epochs, "scaling_coef": 1 / len(losses)}
        gap = merge_gap(losses, start, **run, control_variates=True)
        assert gap.norm() <= 1e-14 * (start.norm() + max(steps))


def test_two_epochs_need_no_smoothness():
    def kinks(theta):
        return (theta - 0.3).abs().sum()

    def steps(theta):
        return 2 * torch.relu(theta - 0.1).sum() + torch.floor(theta).sum()

    start = torch.tensor([0.5, -2.0, 0.25], dtype=torch.float64)
    run = {"learning_rate": 0.25, "epochs": 2, "scaling_coef": 0.5}
    assert merge_gap([kinks, steps], start, **run).norm() > 0.05
    assert merge_gap([kinks, steps], start, **run, control_variates=True).count_nonzero() == 0


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_leading_term_is_zero_where_the_gap_is(epochs):
    losses, start = tiny_losses(3)
    assert variance_gap(losses, start, learning_rate=0.5, epochs=epochs).count_nonzero() == 0


@pytest.mark.parametrize("stacks", [True, False])
def test_the_paths_are_those_of_a_plain_loop(stacks):
    losses, start = tiny_losses(3)
    run = {"learning_rate": 0.4, "epochs": 5}
    expected = scaffold(losses, start, **run)
    if not stacks:
        losses = [lambda theta, loss=loss: loss(theta) for loss in losses]
    found = gradient_descent(losses, start, **run, control_variates=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    vectors = task_vectors(losses, start, **run, control_variates=True)
    torch.testing.assert_close(vectors, expected[:, -1] - start, rtol=1e-12, atol=1e-13)
    assert torch.equal(found[0, 1], found[1, 1])  # they set out together
    assert (found[0, 2] - found[1, 2]).norm() > 1e-3


def test_one_task_has_nothing_to_exchange():
    (loss,), start = tiny_losses(1)
    run = {"learning_rate": 0.4, "epochs": 4}
    plain = gradient_descent(loss, start, **run)
    torch.testing.assert_close(gradient_descent(loss, start, **run, control_variates=True), plain)


def test_the_exchange_costs_no_evaluation_more():
    calls = []

    def counted(theta):
        calls.append(theta)
        return theta.pow(3).sum()

    task_vectors([counted, counted], torch.ones(3), learning_rate=0.01, epochs=4, control_variates=True)
    assert len(calls) == 2 * 4


def test_batches_that_are_whole_sets_take_the_full_steps():
    losses, start = tiny_losses(3)
    run = {"learning_rate": 0.4, "epochs": 4, "control_variates": True}
    found = finetune(losses, start, batch_size=7, generator=torch.Generator().manual_seed(0), **run)
    torch.testing.assert_close(found, gradient_descent(losses, start, **run), rtol=1e-10, atol=1e-12)


def test_an_epoch_of_batches_is_shifted_by_the_whole_gradients():
    """On a loss that is linear in theta each step moves by −η(batch gradient + ḡ − g_t)."""
    pulls = [
        lambda theta, index=None: theta.sum() * (1.0 if index is None else 2.0 * float(index.sum())),
        lambda theta, index=None: theta.sum() * 5.0,
    ]
    path = finetune(
        pulls,
        torch.zeros(1, dtype=torch.float64),
        learning_rate=0.5,
        epochs=1,
        batch_size=1,
        examples=2,
        generator=torch.Generator().manual_seed(0),
        control_variates=True,
    )
    assert path[:, -1, 0].tolist() == [-0.5 * (0 + 2 + 2 * (3 - 1)), -0.5 * (5 + 5 + 2 * (3 - 5))]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("epochs", [3, 4, 6, 10])
def test_orders(case, epochs):
    """Slopes between halvings: gap 3, without its leading term 4; merges corrected afterwards 3."""
    activation, kind, tasks = case
    losses, start = digit_losses(tasks, activation=activation, loss=kind)
    shift = 4 if kind == "squared_error" else 1  # these bend more: the expansion begins at smaller steps
    rates = [2.0 ** -(n + shift) for n in (7, 8)]
    norms = {"gap": [], "rest": [], "wrong": [], "corrected": [], "along": [], "halved": []}
    for rate in rates:
        run = {"learning_rate": rate, "epochs": epochs}
        mean = {**run, "scaling_coef": 1 / tasks}
        gap = merge_gap(losses, start, **mean, control_variates=True)
        leading = variance_gap(losses, start, **run)
        joint = multitask_descent(losses, start, **mean)[-1]
        norms["gap"].append(float(gap.norm()))
        norms["rest"].append(float((gap - leading).norm()))
        norms["wrong"].append(float((gap - leading / 2).norm()))
        norms["corrected"].append(float((corrected_merge(losses, start, **mean) - joint).norm()))
        along = corrected_merge(losses, start, **mean, along_path=True)
        norms["along"].append(float((along - joint).norm()))
        halved = merge_gap(losses, start, **mean) - collapsed_gap(losses, start, **mean) / 2
        norms["halved"].append(float(halved.norm()))
    assert min(norms["rest"]) > 1e-15
    expected = {"gap": 3, "rest": 4, "wrong": 3, "corrected": 3, "along": 3, "halved": 2}
    for name, order in expected.items():
        assert local_orders(rates, norms[name])[-1] == pytest.approx(order, abs=0.1), name


@pytest.mark.parametrize("scaling_coef", [1.0, 0.3])
def test_corrections_are_of_third_order_for_other_coefficients_too(scaling_coef):
    losses, start = digit_losses(3)
    rates = [2.0**-8, 2.0**-9]
    for along_path in (False, True):
        rests = []
        for rate in rates:
            run = {"learning_rate": rate, "epochs": 4, "scaling_coef": scaling_coef}
            merged = corrected_merge(losses, start, **run, along_path=along_path)
            rests.append(float((merged - multitask_descent(losses, start, **run)[-1]).norm()))
        assert local_orders(rates, rests)[-1] == pytest.approx(3, abs=0.1)


def test_variance_gap_is_the_variance_of_dense_hessians():
    losses, start = tiny_losses(4)
    hessians = torch.stack([hessian(loss, start) for loss in losses])
    spread = hessians - hessians.mean(0)
    variance = (spread @ spread).mean(0)
    mean = torch.stack([gradient(loss, start) for loss in losses]).mean(0)
    for epochs in (3, 4, 7):
        expected = -(0.3**3) * math.comb(epochs, 3) * variance @ mean
        found = variance_gap(losses, start, learning_rate=0.3, epochs=epochs)
        assert relative(found, expected) < 1e-12
        plain = [lambda theta, loss=loss: loss(theta) for loss in losses]
        assert relative(variance_gap(plain, start, learning_rate=0.3, epochs=epochs), expected) < 1e-11


@st.composite
def random_bowls(draw):
    """Quadratics, some saddles, with their matrices and the start."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tasks, size = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    matrices = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
    matrices = (matrices + matrices.mT) / (2 * size**0.5)
    centres = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    start = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    return [Quadratic(*pair) for pair in zip(matrices, centres, strict=True)], matrices, start


@settings(deadline=None, max_examples=100)
@given(random_bowls(), st.floats(1e-3, 0.5), st.integers(1, 10))
def test_closed_forms_on_quadratics(case, learning_rate, epochs):
    """τ_t = −η Σ_{j<k} (I − ηA_t)^j ḡ, and the gap is a sum over the moments of the Hessians."""
    bowls, matrices, start = case
    mean = torch.stack([bowl.gradient(start) for bowl in bowls]).mean(0)
    keep = torch.eye(len(start), dtype=torch.float64) - learning_rate * matrices
    powers = [torch.linalg.matrix_power(keep, j) for j in range(epochs)]
    expected = -learning_rate * torch.stack(powers).sum(0) @ mean
    run = {"learning_rate": learning_rate, "epochs": epochs}
    vectors = task_vectors(bowls, start, **run, control_variates=True)
    scale = start.norm() + expected.norm(dim=1).max()
    assert (vectors - expected).norm() <= 1e-12 * scale
    gap = torch.zeros_like(start)
    for m in range(2, epochs):
        moment = torch.stack([torch.linalg.matrix_power(each, m) for each in matrices]).mean(0)
        moment = moment - torch.linalg.matrix_power(matrices.mean(0), m)
        gap -= learning_rate * math.comb(epochs, m + 1) * (-learning_rate) ** m * moment @ mean
    found = merge_gap(bowls, start, **run, scaling_coef=1 / len(bowls), control_variates=True)
    assert (found - gap).norm() <= 1e-12 * scale
    if epochs == 3:
        assert (variance_gap(bowls, start, **run) - found).norm() <= 1e-12 * scale
    if epochs == 2:  # there the leading term of the plain gap is all of it
        for along_path in (False, True):
            merged = corrected_merge(bowls, start, **run, scaling_coef=0.7, along_path=along_path)
            joint = multitask_descent(bowls, start, **run, scaling_coef=0.7)[-1]
            assert (merged - joint).norm() <= 1e-12 * (start.norm() + joint.norm())


def test_tasks_that_bend_alike_leave_no_gap():
    matrix = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    bowls = [Quadratic(matrix, torch.tensor(centre).double()) for centre in ([1.0, 0.0], [-3.0, 2.0])]
    start = torch.tensor([0.3, -0.7], dtype=torch.float64)
    run = {"learning_rate": 0.2, "epochs": 9}
    gap = merge_gap(bowls, start, **run, scaling_coef=0.5, control_variates=True)
    assert gap.norm() < 1e-13
    assert variance_gap(bowls, start, **run).norm() < 1e-15


def test_variance_gap_describes_a_convolutional_network():
    losses, start = convolutional_losses()
    rates, rests = [2.0**-6, 2.0**-7, 2.0**-8], []
    for rate in rates:
        run = {"learning_rate": rate, "epochs": 4}
        gap = merge_gap(losses, start, **run, scaling_coef=0.5, control_variates=True)
        rests.append(float((gap - variance_gap(losses, start, **run)).norm()))
    assert local_orders(rates, rests) == pytest.approx([4, 4], abs=0.1)


def test_inputs_are_left_as_they_are_and_nothing_keeps_a_graph():
    losses, start = tiny_losses(2)
    start.requires_grad_()
    run = {"learning_rate": 0.1, "epochs": 4}
    results = [
        variance_gap(losses, start, **run),
        corrected_merge(losses, start, **run, scaling_coef=0.5),
        corrected_merge(losses, start, **run, scaling_coef=0.5, along_path=True),
        task_vectors(losses, start, **run, control_variates=True),
    ]
    assert not any(result.requires_grad for result in results)
    assert start.grad is None


def test_another_coefficient_is_refused_with_the_reason():
    losses, start = tiny_losses(3)
    run = {"learning_rate": 0.1, "epochs": 2, "control_variates": True}
    with pytest.raises(
        UserError, match=r"scaling_coef must be 1/T = 1/3, got 0.5.*first step.*learning_rate"
    ):
        merge_gap(losses, start, **run, scaling_coef=0.5)
    merge_gap(losses, start, **run, scaling_coef=1 / 3)


@pytest.mark.parametrize("along_path", [False, True])
def test_bad_arguments_of_the_correction_are_refused(along_path):
    losses, start = tiny_losses(2)
    run = {"learning_rate": 0.1, "epochs": 2, "scaling_coef": 0.5, "along_path": along_path}
    for bad in ({"learning_rate": 0.0}, {"epochs": 0}, {"scaling_coef": math.nan}):
        with pytest.raises(UserError):
            corrected_merge(losses, start, **{**run, **bad})
    with pytest.raises(UserError, match="diverged"):
        corrected_merge([lambda theta: theta.pow(4).sum()] * 2, start + 10, **{**run, "epochs": 9})
