"""Random networks with data, and the plain truth about their derivatives, for the tests of the bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from taskvec_mini.bounds import curvature_range
from taskvec_mini.networks import MLP, FlatLoss, flat_loss, flatten

SMOOTH = ("tanh", "sigmoid", "softplus", "gelu", "identity")
LOSSES = ("cross_entropy", "squared_error")
DENSE = 400  # up to so many parameters the Hessian is formed and its eigenvalues are computed exactly
SLACK = 1 + 1e-9  # for rounding


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its data, and the loss as a function of flat parameters."""

    model: MLP
    losses: list[FlatLoss]
    generator: torch.Generator

    @property
    def loss(self) -> FlatLoss:
        return self.losses[0]

    @property
    def theta(self) -> Tensor:
        return flatten(self.model)

    @property
    def options(self):
        """What the bounds are called with, beside the model and the inputs."""
        return {"targets": self.loss.targets, "loss": self.loss.loss}

    def direction(self) -> Tensor:
        v = torch.randn(len(self.theta), generator=self.generator, dtype=torch.float64)
        return v / v.norm()


@st.composite
def cases(draw, *, tasks=1, widest=64, deepest=6, activations=SMOOTH):
    """Depth 1-6, width 2-64 (mostly small), weights 0.1-3 times the usual, all activations, both losses."""
    widths = st.integers(2, draw(st.sampled_from([4] * 11 + [widest])))
    sizes = draw(st.lists(widths, min_size=2, max_size=deepest + 1))
    activation, loss = draw(st.sampled_from(activations)), draw(st.sampled_from(LOSSES))
    scale, spread = (math.exp(draw(st.floats(math.log(0.1), math.log(3)))) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    model = MLP(sizes, activation=activation, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= math.sqrt(3) * scale  # entries of standard deviation scale / √n
    count = draw(st.integers(1, 6))

    def data() -> FlatLoss:
        inputs = spread * torch.randn(count, sizes[0], generator=generator, dtype=torch.float64)
        labels = torch.randint(0, sizes[-1], (count,), generator=generator)
        return flat_loss(model, inputs, labels, loss=loss)

    return Case(model, [data() for _ in range(tasks)], generator)


def gradient(loss, theta: Tensor) -> Tensor:
    return torch.func.grad(loss)(theta)


def hessian(loss, theta: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(loss, theta, vectorize=True)


def extremes(case: Case, theta: Tensor) -> tuple[float, float]:
    """The least and the largest eigenvalue of the Hessian: by a dense solver, or 80 steps of Lanczos."""
    if len(theta) <= DENSE:
        values = torch.linalg.eigvalsh(hessian(case.loss, theta))
        return float(values[0]), float(values[-1])
    return curvature_range(case.loss, theta, steps=80, generator=case.generator)


def norm(case: Case, theta: Tensor) -> float:
    low, high = extremes(case, theta)
    return max(-low, high)
