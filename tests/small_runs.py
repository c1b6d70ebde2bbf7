"""A small problem, and runs of it, which the tests of descent and of finetuning share."""

from __future__ import annotations

import pytest
import torch

from taskvec_mini.descent import finetune
from taskvec_mini.networks import MLP, flat_loss, flatten

EXAMPLES = 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_near(found, expected):
    """Equal but for the order of sums; the runs are short, so that rounding does not grow."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def problem(seed=0, count=EXAMPLES):
    """A small network, its inputs and labels."""
    generator = seeded(seed)
    model = MLP((3, 5, 4), generator=generator)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(4, (count,), generator=generator)


def one_loss(seed=0):
    model, x, y = problem(seed)
    return flat_loss(model, x, y), flatten(model)


def several_losses(kind):
    """Three losses which stack, or which do not: of unequal sizes, or plain functions."""
    model, x, y = problem()
    if kind == "stacked":
        return [flat_loss(model, x + shift, y) for shift in (0, 1, 2)], flatten(model)
    if kind == "unequal":
        return [flat_loss(model, x[:n], y[:n]) for n in (11, 7, 4)], flatten(model)
    return [lambda theta, s=s: (theta - s).pow(4).sum() for s in (0, 1, 2)], flatten(model)


kinds = pytest.mark.parametrize("kind", ["stacked", "unequal", "functions"])


def run(loss=None, start=None, *, seed=5, **changes):
    """A finetuning run of the small problem with these settings changed."""
    own, own_start = one_loss()
    settings = {"learning_rate": 0.2, "epochs": 3, "batch_size": 4, "generator": seeded(seed), **changes}
    return finetune(own if loss is None else loss, own_start if start is None else start, **settings)
