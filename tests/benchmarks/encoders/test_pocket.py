"""The pocket encoder: a second, plain computation of its function, and what it must not depend on."""

import pytest
import torch
from torch import nn

from taskvec_mini import networks
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.encoders.pocket import EMBEDDING, Pocket


def seeded(model, seed=0):
    """Every parameter drawn anew, so that no scale is 1 and no shift is 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2, generator=generator)
    return model.double()


def small(seed=0):
    return seeded(Pocket(widths=(8, 16, 16, 24), embedding=5), seed)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the function, computed a second way -----------------------------------------------------------------


def convolved(images, kernel, stride):
    """A convolution as a matrix product of unfolded patches."""
    outputs, _, side, _ = kernel.shape
    patches = nn.functional.unfold(images, side, padding=side // 2, stride=stride)
    height = (images.shape[2] - 1) // stride + 1
    return (kernel.reshape(outputs, -1) @ patches).unflatten(2, (height, -1))


def normed(hidden, norm):
    """Group normalisation, one image and one group at a time."""
    result = torch.empty_like(hidden)
    share = hidden.shape[1] // 8
    for i in range(len(hidden)):
        for channels in torch.arange(hidden.shape[1]).split(share):
            group = hidden[i, channels]
            result[i, channels] = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
    return result * norm.weight[:, None, None] + norm.bias[:, None, None]


def embedded(model, images, strides=(1, 2, 2, 2)):
    hidden = convolved(images, model.stem.weight, 2)
    for block, stride in zip(model.blocks, strides, strict=True):
        first = normed(hidden, block.norm1).clamp(min=0)
        second = normed(convolved(first, block.conv1.weight, stride), block.norm2).clamp(min=0)
        if hidden.shape[1] != second.shape[1] or stride != 1:
            hidden = convolved(first, block.shortcut.weight, stride)
        hidden = hidden + convolved(second, block.conv2.weight, 1)
    last = normed(hidden, model.norm).clamp(min=0).mean((2, 3))
    return last @ model.project.weight.T + model.project.bias


def test_its_function_agrees_with_a_second_plain_computation():
    model, images = small(), noise(3, 3, 32, 32)
    torch.testing.assert_close(model(images), embedded(model, images))


def test_the_first_block_keeps_its_input_as_it_is():
    assert Pocket().blocks[0].shortcut is None
    assert all(block.shortcut is not None for block in Pocket().blocks[1:])


@pytest.mark.parametrize("side", [24, 32, 40])
def test_it_takes_images_of_other_sizes(side):
    assert small()(noise(2, 3, side, side)).shape == (2, 5)


# --- what it is for --------------------------------------------------------------------------------------


def test_an_embedding_does_not_depend_on_the_other_images_of_the_batch_nor_on_training():
    model, images = small(), noise(6, 3, 32, 32)
    together, alone = model.train()(images), torch.cat([model.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


def test_it_has_no_buffers_so_a_task_vector_is_all_there_is():
    model = Pocket()
    assert not list(model.buffers())
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


def test_two_million_parameters_fit_into_eight_megabytes_at_half_precision():
    count = len(networks.flatten(Pocket()))
    assert 1.5e6 < count < 2.5e6
    assert 2 * count < 8e6


def test_gradients_reach_every_parameter():
    model = small()
    model(noise(2, 3, 32, 32)).square().sum().backward()
    assert all(float(parameter.grad.norm()) > 0 for parameter in model.parameters())


def test_its_gradient_agrees_with_finite_differences():
    model, images = small(), noise(2, 3, 32, 32)
    theta = networks.flatten(model).requires_grad_()
    direction = noise(len(theta), seed=2)

    def loss(at):
        return networks.outputs_at(model, at, images).square().sum()

    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step = 1e-6
    measured = (loss(theta + step * direction) - loss(theta - step * direction)) / (2 * step)
    torch.testing.assert_close(gradient @ direction, measured, rtol=1e-6, atol=0)


def test_the_backbone_named_pocket_is_this_network():
    model = load_backbone("random-pocket").model
    assert isinstance(model, Pocket)
    assert model.project.out_features == EMBEDDING
