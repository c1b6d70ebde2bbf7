"""Networks on which a bound is nearly reached: shrink a constant by a fifth and it is crossed."""

import math

import torch

from random_networks import SLACK, gradient, hessian
from taskvec_mini.bounds import network_bounds
from taskvec_mini.networks import MLP, flat_loss, flatten


class Tight:
    """A network of single units whose gradient or Hessian is nearly as large as the bound says."""

    def __init__(self, sizes, theta, *, of, x, y, activation="identity", radius=0.0, moved=None):
        self.model = MLP(sizes, activation=activation)
        torch.nn.utils.vector_to_parameters(torch.tensor(theta).double(), self.model.parameters())
        self.inputs, self.of, self.radius = torch.tensor(x).double().reshape(-1, 1), of, radius
        self.loss = "cross_entropy" if isinstance(y, int) else "squared_error"
        self.targets = torch.tensor([y]) if isinstance(y, int) else torch.tensor(y).double().reshape(-1, 1)
        self.theta = flatten(self.model) if moved is None else torch.tensor(moved).double()

    def bound(self, bounds=network_bounds):
        found = bounds(self.model, self.inputs, targets=self.targets, loss=self.loss, radius=self.radius)
        return getattr(found, self.of)

    def truth(self):
        loss = flat_loss(self.model, self.inputs, self.targets, loss=self.loss)
        if self.of == "gradient":
            return float(gradient(loss, self.theta).norm())
        return float(torch.linalg.matrix_norm(hessian(loss, self.theta), 2))

    def is_crossed(self, bounds=network_bounds):
        return self.truth() > self.bound(bounds) * SLACK


BEND = math.atanh(1 / math.sqrt(3))  # where tanh bends most
SURE = [40.0, 0.0]  # biases of the last layer that make a network sure of class 0; label 1 is then a mistake
TIGHT = {
    "a confident mistake": Tight((1, 2), [0, 0, *SURE], x=3.0, y=1, of="gradient"),
    "an even bet": Tight((1, 2), [0, 0, 0, 0], x=3.0, y=0, of="hessian"),
    # h = 2x, or h = b, and the gradient in the last layer is the residual times (h, 1)
    "a linear unit": Tight((1, 1, 1), [2, 0, 0.01, 0], x=30.0, y=100.0, of="gradient"),
    "a biased unit": Tight((1, 1, 1), [0, 30, 0.01, 0], x=0.0, y=100.0, of="gradient"),
    "saturated units": Tight(
        (1, 9, 1), [0.0] * 9 + [20.0] * 9 + [0.0] * 10, activation="tanh", x=0.0, y=1.0, of="gradient"
    ),
    "units half on": Tight((1, 9, 1), [0.0] * 28, activation="sigmoid", x=0.0, y=1.0, of="gradient"),
    # tanh at 0, where it is steepest: the gradient in the first layer is the residual times 50 (x, 1)
    "a steep unit": Tight((1, 1, 1), [0, 0, 50, 0], activation="tanh", x=3.0, y=1.0, of="gradient"),
    "a curved loss": Tight((1, 1, 1), [0, 0, 50, 0], activation="tanh", x=3.0, y=0.0, of="hessian"),
    # all weights zero and far from the target: two layers' parameters matter together, not alone
    "two linear layers": Tight((1, 1, 1), [0, 0, 0, 0], x=9.0, y=1e4, of="hessian"),
    "three linear layers": Tight((1, 1, 1, 1), [0, 0, 0, 0, 7, 0], x=3.0, y=1e6, of="hessian"),
    # a large input, through a unit where tanh bends most, seen through a small weight
    "a bent unit": Tight((1, 1, 1), [0, BEND, 0.01, 0], activation="tanh", x=1e3, y=1e4, of="hessian"),
    # one layer moved as far as its radius allows
    "a first layer that moved": Tight(
        (1, 1, 2),
        [0, 0, 0, 0, *SURE],
        x=90.0,
        y=1,
        of="gradient",
        radius=[3.0, 0.0],
        moved=[3, 0, 0, 0, *SURE],
    ),
    "a last layer that moved": Tight(
        (1, 1, 2),
        [0, 0, 0, 0, *SURE],
        x=90.0,
        y=1,
        of="gradient",
        radius=[0.0, 3.0],
        moved=[0, 0, 3 / math.sqrt(2), -3 / math.sqrt(2), *SURE],
    ),
}
