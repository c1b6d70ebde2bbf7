"""Networks and flat vectors, held against torch's own modules and losses and against slow plain loops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskvec_mini.networks import (
    ACTIVATIONS,
    MLP,
    FlatLoss,
    flat_loss,
    flatten,
    outputs_at,
    stacked,
    unflatten,
)

TORCH_ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "relu": nn.ReLU(),
    "identity": nn.Identity(),
}
PLAIN_ACTIVATIONS = {
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "softplus": lambda z: math.log1p(math.exp(z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "relu": lambda z: max(z, 0.0),
    "identity": lambda z: z,
}
every_activation = pytest.mark.parametrize("activation", sorted(PLAIN_ACTIVATIONS))
both_losses = pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(sizes=(3, 5, 4), seed=0, **settings):
    return MLP(sizes, generator=seeded(seed), **settings)


def assert_near(found, expected):
    """Equal but for the order in which a matrix product may add."""
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def data(count=6, inputs=3, classes=4, seed=0):
    generator = seeded(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


class Odd(nn.Module):
    """A model with a convolution, batch statistics, a frozen part and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2, dtype=torch.float64)
        self.batch = nn.BatchNorm1d(2, dtype=torch.float64)
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)

    def forward(self, inputs):
        hidden = self.batch(self.conv(inputs.unsqueeze(1))).flatten(1)
        return self.second(torch.tanh(self.first(hidden)))


MODELS = {"mlp": mlp, "odd": lambda: Odd().eval(), "linear": lambda: nn.Linear(3, 4, dtype=torch.float64)}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


# --- the MLP ---------------------------------------------------------------------------------------------


def test_the_activations_are_those_promised():
    assert ACTIVATIONS.keys() == TORCH_ACTIVATIONS.keys() == PLAIN_ACTIVATIONS.keys()


@every_activation
def test_every_activation_is_torchs_and_the_textbooks(activation):
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)
    found = ACTIVATIONS[activation](z)
    assert torch.equal(found, TORCH_ACTIVATIONS[activation](z))
    expected = torch.tensor([PLAIN_ACTIVATIONS[activation](x) for x in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


@every_activation
@pytest.mark.parametrize("sizes", [(3, 4), (3, 5, 4), (3, 6, 5, 4)])
def test_the_network_is_affine_maps_with_the_activation_between_them(activation, sizes):
    model, (x, _) = mlp(sizes, activation=activation), data()
    hidden = x.numpy()
    for number, layer in enumerate(model.layers):
        if number > 0:
            hidden = np.vectorize(PLAIN_ACTIVATIONS[activation])(hidden)
        hidden = hidden @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    assert len(model.layers) == len(sizes) - 1
    np.testing.assert_allclose(model(x).detach().numpy(), hidden, rtol=1e-12, atol=1e-14)


@every_activation
def test_the_network_is_torchs_own_sequential(activation):
    model, (x, _) = mlp((3, 6, 5, 4), activation=activation), data()
    act = TORCH_ACTIVATIONS[activation]
    first, second, third = model.layers
    assert_near(model(x), nn.Sequential(first, act, second, act, third)(x))


def test_initial_weights_are_uniform_within_one_over_the_root_of_the_width():
    model = mlp((100, 300, 4))
    for width, layer in zip((100, 300), model.layers, strict=True):
        for parameter in layer.parameters():
            assert parameter.abs().max() <= width**-0.5
        spread = float(layer.weight.detach().std()) * math.sqrt(
            3 * width
        )  # uniform ±a: a/√3
        assert spread == pytest.approx(1, abs=0.05)
        assert layer.weight.mean().abs() < 3 / math.sqrt(layer.weight.numel() * 3 * width)


def test_a_generator_decides_the_weights_and_the_default_one_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (flatten(mlp(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_without_a_generator_torchs_default_one_is_used():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        one = flatten(MLP((3, 4)))
        torch.manual_seed(5)
        same, other = flatten(MLP((3, 4))), flatten(MLP((3, 4)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_is_that_of_all_parameters_and_float64_by_default(dtype):
    assert flatten(mlp()).dtype == torch.float64
    assert {p.dtype for p in mlp(dtype=dtype).parameters()} == {dtype}


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((3,), ValueError, r"sizes must hold at least inputs and outputs, got \(3,\)"),
        ((), ValueError, "sizes must hold at least inputs and outputs"),
        ((3, 0), ValueError, "a layer size must be at least 1, got 0"),
        ((3, 2.5), TypeError, r"a layer size must be a whole number, got 2\.5"),
    ],
)
def test_bad_sizes_are_named(sizes, error, message):
    with pytest.raises(error, match=message):
        MLP(sizes)


@pytest.mark.parametrize(
    ("name", "near"), [("than", "'tanh'"), ("ReLU", "'relu'"), ("GELU", "'gelu'"), ("Sigmoid", "'sigmoid'")]
)
def test_an_unknown_activation_suggests_the_near_ones(name, near):
    with pytest.raises(ValueError, match=f"unknown activation '{name}': did you mean .*{near}"):
        MLP((2, 3), activation=name)


def test_an_activation_without_near_ones_lists_all():
    with pytest.raises(ValueError, match="unknown activation 'q': choose one of tanh, sigmoid, softplus"):
        MLP((2, 3), activation="q")


# --- one flat vector -------------------------------------------------------------------------------------


@every_model
def test_flatten_and_unflatten_are_inverse(make):
    model = make()
    theta = flatten(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(unflatten(model, theta)[name], parameter)
    other = torch.arange(float(len(theta)))
    assert torch.equal(torch.cat([part.reshape(-1) for part in unflatten(model, other).values()]), other)


def test_flatten_follows_the_order_of_the_named_parameters():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model.bias.copy_(torch.tensor([5.0, 6.0]))
    assert flatten(model).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_weight_used_twice_is_counted_once():
    model = Odd()
    assert len(flatten(model)) == sum(p.numel() for p in model.parameters()) == (2 * 2 + 2) + 4 + 16 + 4 + 4
    assert "second.weight" not in unflatten(model, flatten(model))


@every_model
def test_a_flat_vector_is_a_copy_and_its_parts_are_views(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    theta = flatten(model)
    assert not theta.requires_grad
    parts = unflatten(model, theta)
    theta.fill_(9)
    assert all(bool((part == 9).all()) for part in parts.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", [(43,), (45,), (1, 44), ()])
def test_a_vector_of_another_length_is_refused(shape):
    model = mlp()  # 3·5 + 5 + 5·4 + 4 = 44
    with pytest.raises(ValueError, match=r"theta has shape .* but the model has 44 parameters; use a vector"):
        unflatten(model, torch.zeros(shape))


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters to flatten; give one that was built with layers"):
        flatten(nn.Tanh())


# --- outputs at given parameters -------------------------------------------------------------------------


@every_model
def test_outputs_are_those_of_the_module_with_these_parameters(make):
    model, (x, _) = make(), data()
    assert_near(outputs_at(model, flatten(model), x), model(x))
    theta = torch.randn(len(flatten(model)), generator=seeded(), dtype=torch.float64)
    loaded = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta, loaded.parameters())
    assert_near(outputs_at(model, theta, x), loaded(x))


@every_model
def test_the_module_stays_as_it_is(make):
    model, (x, _) = make(), data()
    before = copy.deepcopy(model.state_dict())
    theta = torch.zeros(len(flatten(model)), dtype=torch.float64, requires_grad=True)
    outputs_at(model, theta, x).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert theta.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_vector_decides_the_dtype(dtype):
    model, (x, _) = mlp(), data()
    outputs = outputs_at(model, flatten(model).to(dtype), x)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs.double(), model(x), rtol=0, atol=8 * torch.finfo(dtype).eps)


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
