"""Small networks and random examples which the tests of networks and of losses share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taskvec_mini.networks import MLP


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp(sizes=(3, 5, 4), seed: int = 0, **settings) -> MLP:
    return MLP(sizes, generator=seeded(seed), **settings)


def data(count: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (count, 3) and labels (count,)."""
    generator = seeded(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order in which a matrix product may add."""
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


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

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.batch(self.conv(inputs.unsqueeze(1))).flatten(1)
        return self.second(torch.tanh(self.first(hidden)))


def drawn(model: nn.Module) -> nn.Module:
    """The model with weights from a seed, ready to be evaluated."""
    generator = seeded(7)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.7, 0.7, generator=generator)
    return model.eval()


MODELS = {
    "mlp": mlp,
    "odd": lambda: drawn(Odd()),
    "linear": lambda: drawn(nn.Linear(3, 4, dtype=torch.float64)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
