"""The bounds from weight norms: every constant is right, needed, and no smaller number would do."""

import dataclasses
import math

import pytest
import torch

from random_networks import gradient
from taskvec_mini.bounds import local_bounds, network_bounds, weights
from taskvec_mini.bounds.constants import ACTIVATION_CONSTANTS, LOSS_CONSTANTS
from taskvec_mini.networks import MLP, flat_loss, flatten
from tight_networks import TIGHT, Tight


@pytest.mark.parametrize("case", TIGHT.values(), ids=list(TIGHT))
def test_no_bound_is_crossed_where_it_is_tight(case):
    assert not case.is_crossed()
    assert case.truth() > 0.8 * case.bound()


def shrink(number):
    return 0.8 * number


def shrink_constant(table, name, field):
    def mutate(patch):
        constants = table[name]
        patch.setitem(
            table, name, dataclasses.replace(constants, **{field: shrink(getattr(constants, field))})
        )

    return mutate


def shrink_result(name, index=None):
    def mutate(patch):
        right = getattr(weights, name)

        def wrong(*args, **named):
            found = right(*args, **named)
            if index is None:
                return shrink(found)
            return [shrink(each) if place == index else each for place, each in enumerate(found)]

        patch.setattr(weights, name, wrong)

    return mutate


MUTATIONS = {
    "γ of cross-entropy": shrink_constant(LOSS_CONSTANTS, "cross_entropy", "residual"),
    "λ of cross-entropy": shrink_constant(LOSS_CONSTANTS, "cross_entropy", "curvature"),
    "λ of squared error": shrink_constant(LOSS_CONSTANTS, "squared_error", "curvature"),
    "γ of squared error": shrink_result("residuals", None),
    "|σ(0)|": shrink_constant(ACTIVATION_CONSTANTS, "sigmoid", "at_zero"),
    "sup |σ|": shrink_constant(ACTIVATION_CONSTANTS, "tanh", "supremum"),
    "β₁": shrink_constant(ACTIVATION_CONSTANTS, "tanh", "slope"),
    "β₂": shrink_constant(ACTIVATION_CONSTANTS, "tanh", "curvature"),
    "the factor of the layer pairs": shrink_result("_pair_factor"),
    **{f"radius of layer {layer + 1}": shrink_result("layer_radii", layer) for layer in range(2)},
    **{f"s_{layer + 1}": shrink_result("_weight_norms", layer) for layer in range(2)},
    "‖b_1‖": shrink_result("_bias_norms", 0),
    **{f"B_{layer}": shrink_result("_activation_norms", layer) for layer in range(2)},
    **{f"q_{layer + 1}": shrink_result("_reaches", layer) for layer in range(2)},
    **{f"P_{layer + 1}": shrink_result("_amplifications", layer) for layer in range(2)},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_constant_that_is_a_fifth_too_small_is_found_out(mutation, monkeypatch):
    MUTATIONS[mutation](monkeypatch)
    assert [name for name, case in TIGHT.items() if case.is_crossed()]


# --- what the bounds are made of -------------------------------------------------------------------------


def test_the_factor_of_the_layer_pairs_is_the_largest_there_can_be():
    """2 Σ_{i<l} ν_i² ν_l² over numbers with Σ ν² = 1: never above 1 − 1/L, which equal numbers reach."""
    generator = torch.Generator().manual_seed(0)
    for layers in range(1, 7):
        shares = torch.rand(200, layers, generator=generator, dtype=torch.float64)
        shares[0] = 1.0
        shares = shares / shares.sum(1, keepdim=True)  # ν²
        pairs = 1 - shares.square().sum(1)
        assert weights._pair_factor(layers) ** 2 / 2 == pytest.approx(float(pairs.max()), abs=1e-12)


def test_every_constant_of_a_small_network_by_hand():
    """Two layers with weights 3 and 2, biases 1 and 5, tanh, inputs 4 and −7: the formulas, in numbers."""
    case = Tight((1, 1, 1), [3, 1, 2, 5], activation="tanh", x=4.0, y=0.0, of="gradient")
    inputs = torch.tensor([[4.0], [-7.0]]).double()
    bounds = network_bounds(case.model, inputs, targets=torch.zeros(2, 1).double(), loss="squared_error")
    assert bounds.weight_norms == (3, 2)
    assert bounds.bias_norms == (1, 5)
    assert bounds.activation_norms == (7, 1)  # tanh stays below 1, less than 3 · 7 + 1
    q_1, q_2 = math.sqrt(50), math.sqrt(2 + 4 * 50)
    assert bounds.reaches == pytest.approx((q_1, q_2))
    assert bounds.amplifications == (2, 1)
    assert bounds.residual == pytest.approx(2 * math.tanh(13) + 5)
    assert bounds.gradient == pytest.approx(bounds.residual * q_2)
    assert bounds.gauss_newton == pytest.approx(q_2**2)
    assert bounds.layer_pairs == pytest.approx(bounds.residual * q_1)
    assert bounds.bending == pytest.approx(bounds.residual * 4 / (3 * math.sqrt(3)) * 2 * q_1**2)
    assert bounds.hessian == pytest.approx(bounds.gauss_newton + bounds.layer_pairs + bounds.bending)


def test_a_head_uses_its_own_rows_only():
    """With outputs 1 and 2 of three, the bounds are those of the network that has these outputs alone."""
    model, inputs = MLP((2, 3, 3), generator=torch.Generator().manual_seed(0)), torch.ones(1, 2).double()
    smaller = MLP((2, 3, 2))
    smaller.load_state_dict(
        {name: part[1:] if name.startswith("layers.1") else part for name, part in model.state_dict().items()}
    )
    assert network_bounds(model, inputs, outputs=slice(1, 3)) == network_bounds(smaller, inputs)


def test_theta_stands_for_the_parameters_of_the_model():
    model, other = (MLP((2, 3, 2), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    inputs = torch.ones(1, 2).double()
    assert network_bounds(model, inputs, theta=flatten(other)) == network_bounds(other, inputs)


@pytest.mark.parametrize("bounds", [network_bounds, local_bounds])
def test_a_float32_network_is_bounded_in_float64(bounds):
    model = MLP((2, 3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    inputs, targets = torch.ones(2, 2), torch.tensor([0, 1])
    found, same = bounds(model, inputs, targets=targets), bounds(model.double(), inputs, targets=targets)
    assert (found.gradient, found.hessian) == (same.gradient, same.hessian)


def test_relu_has_a_bound_on_its_gradient_and_none_on_its_hessian():
    model = MLP((3, 8, 8, 2), activation="relu", generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.tensor([0, 1, 0, 1, 1])
    bounds = network_bounds(model, inputs, targets=targets)
    assert float(gradient(flat_loss(model, inputs, targets), flatten(model)).norm()) <= bounds.gradient
    with pytest.raises(ValueError, match=r"'relu' has a kink.*use a smooth one such as 'gelu'"):
        _ = bounds.hessian
    with pytest.raises(ValueError, match="'relu' has a kink"):
        local_bounds(model, inputs, targets)


# --- bad input -------------------------------------------------------------------------------------------

MODEL, INPUTS, LABELS = MLP((2, 3, 2)), torch.ones(4, 2).double(), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("bounds", [network_bounds, local_bounds])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": "cross_entropi"}, ValueError, "unknown loss 'cross_entropi': did you mean 'cross_entropy'"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, r"networks\.MLP, got Linear"),
        ({"inputs": torch.ones(4, 3)}, ValueError, r"shape \(4, 3\), expected \(N, 2\)"),
        ({"inputs": torch.ones(4, 1, 2)}, ValueError, r"flatten images with inputs\.flatten\(1\)"),
        ({"inputs": torch.ones(0, 2)}, ValueError, "N of at least 1"),
        ({"inputs": INPUTS / 0}, ValueError, "inputs holds 8 value"),
        ({"targets": torch.tensor([0, 1, 2, 1])}, ValueError, "labels must be one number each from 0 to 1"),
        ({"targets": LABELS[:3]}, ValueError, "4 inputs and 3 targets"),
        ({"theta": torch.zeros(5).double()}, ValueError, r"shape \(5,\) but the model has 17"),
        ({"theta": torch.full((17,), math.nan)}, ValueError, "theta holds 17 value"),
        ({"radius": -1.0}, ValueError, "at least 0"),
        ({"radius": [0.1, 0.1, 0.1]}, ValueError, "or 2 of them"),
        ({"radius": math.inf}, ValueError, "radius must be finite"),
    ],
)
def test_bad_input_is_named_with_its_remedy(bounds, changes, error, message):
    arguments = {"model": MODEL, "inputs": INPUTS, "targets": LABELS, **changes}
    with pytest.raises(error, match=message):
        bounds(arguments.pop("model"), arguments.pop("inputs"), **arguments)


def test_squared_error_needs_targets():
    with pytest.raises(ValueError, match=r"so it needs targets; pass targets="):
        network_bounds(MODEL, INPUTS, loss="squared_error")
