"""What is largest about activations and losses: found again by differentiating what the networks use."""

import dataclasses
import math

import pytest
import torch

from taskvec_mini.bounds.constants import ACTIVATION_CONSTANTS, LOSS_CONSTANTS
from taskvec_mini.networks import ACTIVATIONS

LINE = torch.linspace(-30, 30, 120_001, dtype=torch.float64)  # steps of 0.0005, with 0 among them


def derivatives(name):
    """σ, σ', σ'' and σ''' on a line, by differentiating what the networks use."""
    points = LINE.clone().requires_grad_()
    found = [ACTIVATIONS[name](points)]
    for _ in range(3):
        if found[-1].requires_grad:
            found += torch.autograd.grad(found[-1].sum(), points, create_graph=True, materialize_grads=True)
        else:
            found.append(torch.zeros_like(points))
    return [each.detach().abs() for each in found]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "gelu", "identity"])
def test_constants_of_the_activations(name):
    """Each is reached somewhere on the line to 1e-6 and exceeded nowhere: none is too large or too small."""
    c = ACTIVATION_CONSTANTS[name]
    value, *slopes = derivatives(name)
    assert c.at_zero == pytest.approx(float(value[len(LINE) // 2]), abs=1e-15)
    for constant, found in zip((c.slope, c.curvature, c.third), slopes, strict=True):
        assert float(found.max()) <= constant * (1 + 1e-12)
        assert float(found.max()) == pytest.approx(constant, abs=1e-6)
    grows = float(value.max()) > 10
    assert math.isinf(c.supremum) if grows else c.supremum == pytest.approx(float(value.max()), abs=1e-12)


def test_gelu_has_its_extremes_where_the_comment_says():
    """σ' at √2, σ'' at 0, σ''' at the inner root of x⁴ − 7x² + 4."""
    _, first, second, third = derivatives("gelu")
    inner = math.sqrt((7 - math.sqrt(33)) / 2)
    for found, place in ((first, math.sqrt(2)), (second, 0.0), (third, inner)):
        assert abs(abs(float(LINE[found.argmax()])) - place) < 1e-3


def softmax_hessian(z):
    p = torch.softmax(z, 0)
    return torch.diag(p) - torch.outer(p, p)


def sizes_of(z, v, label):
    """Length of the gradient, largest curvature, and how fast the curvature changes along v."""
    error = torch.softmax(z, 0) - torch.eye(len(z), dtype=torch.float64)[label]
    change = torch.autograd.functional.jvp(softmax_hessian, z, v / v.norm())[1]
    return [
        float(error.norm()),
        *(float(torch.linalg.matrix_norm(m, 2)) for m in (softmax_hessian(z), change)),
    ]


def test_constants_of_cross_entropy():
    """Exceeded by no random prediction; reached by a confident mistake, an even bet and an uneven one."""
    constants = dataclasses.astuple(LOSS_CONSTANTS["cross_entropy"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        z, v = (2 * torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
        for size, constant in zip(sizes_of(z, v, int(z.argmin())), constants, strict=True):
            assert size <= constant
    uneven = math.log((1 + 1 / math.sqrt(3)) / (1 - 1 / math.sqrt(3)))
    for place, gap in enumerate((40.0, 0.0, uneven)):
        z = torch.tensor([gap, 0.0], dtype=torch.float64)
        found = sizes_of(z, torch.tensor([1.0, -1.0], dtype=torch.float64), 1)
        assert found[place] == pytest.approx(constants[place])
