"""Losses of a flat vector, held against torch's own, plain loops and finite differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from small_networks import assert_near, data, every_model, mlp, seeded
from taskvec_mini.networks import FlatLoss, flat_loss, flatten, stacked

both_losses = pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])


# --- the mean loss ---------------------------------------------------------------------------------------


def plain_cross_entropy(logits, label):
    """−log softmax, in Python's own arithmetic."""
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def plain_squared_error(outputs, target):
    if isinstance(target, int):
        target = [float(number == target) for number in range(len(outputs))]
    return sum((z - y) ** 2 for z, y in zip(outputs, target, strict=True)) / 2


PLAIN_LOSSES = {"cross_entropy": plain_cross_entropy, "squared_error": plain_squared_error}


def plain_mean(kind, rows, targets):
    return sum(PLAIN_LOSSES[kind](row, t) for row, t in zip(rows, targets, strict=True)) / len(rows)


@both_losses
@every_model
def test_the_loss_is_the_mean_written_out(make, loss):
    model, (x, y) = make(), data()
    expected = plain_mean(loss, model(x).tolist(), y.tolist())
    assert float(flat_loss(model, x, y, loss=loss)(flatten(model))) == pytest.approx(expected, rel=1e-14)


def test_cross_entropy_and_squared_error_are_torchs():
    model, (x, y) = mlp(), data()
    theta = flatten(model)
    assert_near(flat_loss(model, x, y)(theta), F.cross_entropy(model(x), y))
    half = F.mse_loss(model(x), F.one_hot(y, 4).double(), reduction="sum") / 2 / len(x)
    assert_near(flat_loss(model, x, y, loss="squared_error")(theta), half)


def test_squared_error_takes_numbers_as_targets():
    model, (x, _) = mlp(), data()
    targets = torch.randn(6, 4, generator=seeded(1))
    expected = plain_mean("squared_error", model(x).tolist(), targets.double().tolist())
    found = flat_loss(model, x, targets, loss="squared_error")(flatten(model))
    assert float(found) == pytest.approx(expected, rel=1e-14)
    assert found.dtype == torch.float64


@both_losses
@pytest.mark.parametrize("outputs", [slice(0, 2), slice(1, 3), slice(2, 4), slice(None)], ids=str)
def test_a_slice_of_outputs_is_a_head_of_its_own(loss, outputs):
    model, (x, y) = mlp(), data(classes=2)
    rows = [row[outputs] for row in model(x).tolist()]
    found = flat_loss(model, x, y, loss=loss, outputs=outputs)(flatten(model))
    assert float(found) == pytest.approx(plain_mean(loss, rows, y.tolist()), rel=1e-14)


@both_losses
def test_an_index_chooses_a_mini_batch(loss):
    model, (x, y) = mlp(), data()
    theta, full = flatten(model), flat_loss(model, x, y, loss=loss)
    for index in ([0], [5, 1], [2, 2, 3], list(range(6))):
        part = flat_loss(model, x[index], y[index], loss=loss)
        assert_near(full(theta, torch.tensor(index)), part(theta))
    assert len(full) == 6


@both_losses
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_may_be_short_integers(loss, dtype):
    model, (x, y) = mlp(), data()
    found = flat_loss(model, x, y.to(dtype), loss=loss)(flatten(model))
    assert_near(found, flat_loss(model, x, y, loss=loss)(flatten(model)))


@both_losses
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "gelu", "identity"])
def test_the_gradient_agrees_with_finite_differences(loss, activation):
    model, (x, y) = mlp(activation=activation), data()
    f, theta, h = flat_loss(model, x, y, loss=loss), flatten(model), 1e-5
    steps = h * torch.eye(len(theta), dtype=torch.float64)
    slow = torch.stack([(f(theta + step) - f(theta - step)) / (2 * h) for step in steps])
    torch.testing.assert_close(torch.func.grad(f)(theta), slow, rtol=1e-6, atol=1e-9)


@both_losses
def test_the_gradient_is_that_of_the_module(loss):
    model, (x, y) = mlp(activation="relu"), data()
    found = torch.func.grad(flat_loss(model, x, y, loss=loss))(flatten(model))
    target = y if loss == "cross_entropy" else F.one_hot(y, 4).double()
    value = F.cross_entropy(model(x), target) if loss == "cross_entropy" else F.mse_loss(model(x), target) * 2
    value.backward()  # torch's mean runs over 4 outputs as well: half the squared distance is twice that
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    assert_near(found, expected)


def test_the_loss_has_the_dtype_of_the_vector():
    model, (x, y) = mlp(), data()
    for dtype in (torch.float32, torch.bfloat16):
        for loss in ("cross_entropy", "squared_error"):
            assert flat_loss(model, x, y, loss=loss)(flatten(model).to(dtype)).dtype == dtype


# --- bad input of a loss ---------------------------------------------------------------------------------


@both_losses
@pytest.mark.parametrize(("labels", "low", "high"), [([0, 4], 0, 4), ([-1, 2], -1, 2), ([0, -100], -100, 0)])
def test_labels_out_of_range_are_named_with_the_range(loss, labels, low, high):
    message = (
        rf"labels must be one number each from 0 to 3, got shape \(2,\) with values from {low} to {high}; "
        "renumber the classes or widen the last layer"
    )
    with pytest.raises(ValueError, match=message):
        flat_loss(mlp(), torch.zeros(2, 3), torch.tensor(labels), loss=loss)


def test_labels_must_fit_the_slice_of_outputs():
    with pytest.raises(ValueError, match=r"from 0 to 1, got shape \(1,\) with values from 2 to 2"):
        flat_loss(mlp(), torch.zeros(1, 3), torch.tensor([2]), outputs=slice(2, 4))
    assert flat_loss(mlp(), torch.zeros(1, 3), torch.tensor([1]), outputs=slice(2, 4)).outputs == slice(2, 4)


def test_labels_are_one_number_each():
    with pytest.raises(ValueError, match=r"one number each from 0 to 3, got shape \(2, 4\)"):
        flat_loss(mlp(), torch.zeros(2, 3), torch.zeros(2, 4).long())


@pytest.mark.parametrize(("inputs", "targets"), [(0, 0), (2, 3), (3, 2), (0, 1)])
def test_each_input_needs_a_target(inputs, targets):
    message = f"got {inputs} inputs and {targets} targets; give one target for each input"
    with pytest.raises(ValueError, match=message):
        flat_loss(mlp(), torch.zeros(inputs, 3), torch.zeros(targets).long())


def test_cross_entropy_needs_integers():
    with pytest.raises(TypeError, match=r"needs integer labels, got torch.float32; call targets.long\(\)"):
        flat_loss(mlp(), torch.zeros(2, 3), torch.zeros(2))


def test_numbers_as_targets_must_have_the_shape_of_the_outputs():
    with pytest.raises(ValueError, match=r"targets have shape \(2, 3\), expected \(2, 4\)"):
        flat_loss(mlp(), torch.zeros(2, 3), torch.zeros(2, 3), loss="squared_error")


def test_an_unknown_loss_suggests_the_near_one():
    with pytest.raises(ValueError, match="unknown loss 'crossentropy': did you mean 'cross_entropy'"):
        flat_loss(mlp(), torch.zeros(1, 3), torch.tensor([0]), loss="crossentropy")


# --- several losses at once ------------------------------------------------------------------------------


def values_and_slopes(function, thetas):
    points = thetas.clone().requires_grad_()
    values = function(points)
    return values.detach(), torch.autograd.grad(values.sum(), points)[0]


@both_losses
@pytest.mark.parametrize("count", [1, 2, 5])
def test_stacked_losses_equal_the_loop_in_values_and_gradients(loss, count):
    model = mlp()
    losses = [flat_loss(model, *data(seed=seed), loss=loss) for seed in range(count)]
    thetas = torch.randn(count, len(flatten(model)), generator=seeded(9), dtype=torch.float64)
    loop = lambda points: torch.stack([f(point) for f, point in zip(losses, points, strict=True)])  # noqa: E731
    for fast, slow in zip(
        values_and_slopes(stacked(losses), thetas), values_and_slopes(loop, thetas), strict=True
    ):
        assert_near(fast, slow)


def test_stacked_losses_use_their_slice_of_outputs_and_numbers_as_targets():
    model = mlp()
    pieces = [data(classes=2, seed=seed) for seed in (0, 1)]
    heads = [flat_loss(model, *piece, outputs=slice(1, 3)) for piece in pieces]
    targets = torch.randn(6, 4, generator=seeded())
    regressions = [flat_loss(model, x, targets, loss="squared_error") for x, _ in pieces]
    for losses in (heads, regressions):
        thetas = flatten(model).repeat(2, 1)
        expected = torch.stack([f(theta) for f, theta in zip(losses, thetas, strict=True)])
        assert_near(stacked(losses)(thetas), expected)


def test_losses_that_differ_in_kind_do_not_stack():
    model, (x, y) = mlp(), data(classes=2)
    one = flat_loss(model, x, y)
    others = {
        "another model": flat_loss(mlp(), x, y),
        "another loss": flat_loss(model, x, y, loss="squared_error"),
        "another number of examples": flat_loss(model, x[:3], y[:3]),
        "other outputs": flat_loss(model, x, y, outputs=slice(0, 2)),
        "a function": lambda theta: theta.sum(),
    }
    assert stacked([one, flat_loss(model, x, y)]) is not None
    for why, other in others.items():
        assert stacked([one, other]) is None, why
        assert stacked([other, one]) is None, why


def test_losses_with_other_shapes_of_targets_do_not_stack():
    model, (x, y) = mlp(), data()
    numbers = flat_loss(model, x, F.one_hot(y, 4).double(), loss="squared_error")
    assert stacked([numbers, flat_loss(model, x, y, loss="squared_error")]) is None


def test_a_flat_loss_is_a_frozen_record():
    loss = flat_loss(mlp(), *data())
    assert isinstance(loss, FlatLoss)
    with pytest.raises(AttributeError):
        loss.inputs = torch.zeros(1, 3)
