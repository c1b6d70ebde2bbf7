"""What a task vector remembers of its inputs: against per-example gradients, algebra, and transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskvec_mini import TaskVector
from taskvec_mini.errors import UserError
from taskvec_mini.networks import MLP
from taskvec_mini.trajectories import input_memory, input_moments


def network(sizes=(5, 4, 3)):
    generator = torch.Generator().manual_seed(0)
    model = MLP(sizes, generator=generator)
    inputs = torch.randn(7, sizes[0], generator=generator, dtype=torch.float64)
    labels = torch.randint(sizes[-1], (7,), generator=generator)
    return model, inputs, labels


def cosine(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


def test_moments_of_one_layer_are_those_of_single_examples():
    """Example by example: g_W = δxᵀ, so ‖g_W‖² = ‖δ‖²‖x‖², and its rows are multiples of x."""
    model, inputs, labels = network()
    moments = input_moments(model, lambda: F.cross_entropy(model(inputs), labels, reduction="sum"))
    for name, layer in {"layers.0.weight": model.layers[0], "layers.1.weight": model.layers[1]}.items():
        plain, weighted = 0, 0
        for x, y in zip(inputs, labels, strict=True):
            slope = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), layer.weight)[0]
            hidden = x if name.startswith("layers.0") else torch.tanh(model.layers[0](x)).detach()
            plain = plain + torch.outer(hidden, hidden)
            weighted = weighted + slope.T @ slope
        torch.testing.assert_close(moments[name].plain, plain)
        torch.testing.assert_close(moments[name].weighted, weighted)


def test_one_example_is_remembered_wholly():
    model, inputs, labels = network()

    def loss():
        return F.cross_entropy(model(inputs[:1]), labels[:1])

    slopes = torch.autograd.grad(loss(), model.parameters())
    vector = {name: -0.1 * slope for (name, _), slope in zip(model.named_parameters(), slopes, strict=True)}
    for found in input_memory(vector, input_moments(model, loss)).values():
        assert found.plain == pytest.approx(1, abs=1e-12)
        assert found.weighted == pytest.approx(1, abs=1e-12)


def test_cosines_are_those_of_the_matrices():
    model, inputs, labels = network()
    moments = input_moments(model, lambda: F.cross_entropy(model(inputs), labels))
    slopes = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(F.cross_entropy(model(inputs), labels), model.parameters()),
            strict=True,
        )
    )
    layout = [(name, part.shape) for name, part in slopes.items()]
    vector = TaskVector(torch.cat([part.reshape(-1) for part in slopes.values()]), layout)
    found = input_memory(vector, moments)
    assert list(found) == ["layers.0.weight", "layers.1.weight"]
    for name, memory in found.items():
        square = slopes[name].T @ slopes[name]
        assert memory.plain == pytest.approx(cosine(square, moments[name].plain))
        assert memory.weighted == pytest.approx(cosine(square, moments[name].weighted))
        assert memory.identity == pytest.approx(cosine(torch.eye(len(square)).double(), moments[name].plain))
        assert memory.weighted != pytest.approx(memory.plain, abs=1e-4)


def test_orthogonal_deltas_make_the_weighted_moment():
    """As many outputs as examples, and a loss that gives each example a δ of its own direction."""
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer, scales = nn.Linear(3, 4).double(), torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)

    def loss():
        return (layer(inputs).diagonal() * scales).sum()

    slope = torch.autograd.grad(loss(), layer.weight)[0]
    found = input_memory({"weight": slope}, input_moments(layer, loss))["weight"]
    assert found.weighted == pytest.approx(1, abs=1e-12)
    assert found.plain < 0.999


def test_tokens_count_as_inputs_and_shared_layers_add_up():
    layer = nn.Linear(3, 3).double()
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = input_moments(layer, lambda: layer(tokens).square().sum())["weight"]
    rows = tokens.reshape(-1, 3)
    torch.testing.assert_close(once.plain, rows.T @ rows)
    flat = input_moments(layer, lambda: layer(rows).square().sum())["weight"]
    torch.testing.assert_close(once.weighted, flat.weighted)
    twice = input_moments(layer, lambda: layer(tokens).square().sum() + layer(2 * tokens).sum())["weight"]
    torch.testing.assert_close(twice.plain, 5 * once.plain)


def test_a_transformer_is_watched_and_left_as_it_was():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)).eval()
    tokens = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
    moments = input_moments(model, lambda: model(input_ids=tokens).last_hidden_state.square().sum())
    query = moments["encoder.layer.0.attention.self.query.weight"]
    value = moments["encoder.layer.0.attention.self.value.weight"]
    torch.testing.assert_close(query.plain, value.plain)  # they have the same inputs
    assert moments["encoder.layer.0.output.dense.weight"].plain.shape == (16, 16)
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(part.grad is None for part in model.parameters())


def test_what_does_not_fit_is_named():
    model, inputs, labels = network()
    moments = input_moments(model, lambda: F.cross_entropy(model(inputs), labels))
    with pytest.raises(UserError, match=r"has no 'layers\.0\.weight'"):
        input_memory({"weight": torch.ones(4, 5)}, moments)
    with pytest.raises(UserError, match=r"'layers.0.weight' has shape \(4, 6\).* 5 inputs"):
        input_memory({"layers.0.weight": torch.ones(4, 6)}, moments)
    with pytest.raises(UserError, match="was the layer trained"):
        input_memory({"layers.0.weight": torch.zeros(4, 5)}, moments)
    with pytest.raises(UserError, match="no linear layer"):
        input_moments(nn.Conv2d(1, 1, 1), lambda: torch.zeros(()))
