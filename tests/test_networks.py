"""Networks and flat vectors, held against torch's own modules and against slow plain arithmetic."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from small_networks import Odd, assert_near, data, every_model, mlp, seeded
from taskvec_mini.networks import ACTIVATIONS, MLP, flatten, outputs_at, unflatten

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
        spread = float(layer.weight.detach().std()) * math.sqrt(3 * width)  # uniform ±a: a/√3
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
