"""The pocket encoder: a second, plain computation of its function, and what it must not depend on."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from taskvec_mini import networks
from taskvec_mini.benchmarks.encoders import load_backbone
from taskvec_mini.benchmarks.encoders.pocket import EMBEDDING, POCKET_WEIGHTS, Pocket


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


def test_the_untrained_pocket_is_the_same_each_time_and_draws_from_no_global_source():
    before = torch.get_rng_state()
    first, second = (load_backbone("random-pocket").model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(networks.flatten(first), networks.flatten(second))
    kernel = first.blocks[3].conv2.weight.detach()
    assert kernel.std().item() == pytest.approx((2 / (9 * kernel.shape[1])) ** 0.5, rel=0.01)
    assert not first.project.bias.any()
    with pytest.raises(ValueError, match="reads no weights"):
        load_backbone("random-pocket", weights="some.safetensors")


def test_the_backbone_named_pocket_is_this_network():
    model = load_backbone("random-pocket").model
    assert isinstance(model, Pocket)
    assert model.project.out_features == EMBEDDING


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random-pocket")


# --- its file ---------------------------------------------------------------------------------------


def write_pocket(folder, state):
    """Weights in float16 and a record, as the pretraining script writes them."""
    path = folder / "pocket.safetensors"
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)
    fields = {"command": "python make.py", "commit": "0" * 40, "date": "2026-01-02", "device": "a CPU"}
    fields |= {"versions": {"python": "3"}, "seeds": [0], "seconds": 1.0, "data": {}, "settings": {}}
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(fields | {"results": {"sha256": checksum}}))
    return path


def test_pocket_is_read_from_half_precision_into_single(tmp_path, backbone):
    path = write_pocket(tmp_path, backbone.model.state_dict())
    loaded = load_backbone("pocket", weights=path)
    assert (loaded.name, loaded.image_size, loaded.features) == ("pocket", 32, 256)
    assert all(each.requires_grad for each in loaded.model.parameters())
    assert {each.dtype for each in loaded.model.parameters()} == {torch.float32}
    expected = networks.flatten(backbone.model).numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(networks.flatten(loaded.model).numpy(), expected)


@pytest.mark.parametrize("lost", [".safetensors", ".json"])
def test_without_weights_or_record_the_error_names_the_script_that_makes_them(tmp_path, backbone, lost):
    path = write_pocket(tmp_path, backbone.model.state_dict())
    path.with_suffix(lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file .*pocket{lost}.*scripts/pretrain_pocket.py"):
        load_backbone("pocket", weights=path)


def test_one_flipped_bit_in_pockets_file_is_noticed(tmp_path, backbone):
    path = write_pocket(tmp_path, backbone.model.state_dict())
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        ValueError,
        match=r"pocket.safetensors is truncated .* should be \w{64} and is \w{64}; .*pre",
    ):
        load_backbone("pocket", weights=path)


def test_the_weights_of_another_network_are_refused(tmp_path):
    path = write_pocket(tmp_path, Pocket(widths=(8, 8, 8, 8)).state_dict())
    with pytest.raises(ValueError, match="does not hold the weights of pocket"):
        load_backbone("pocket", weights=path)


@pytest.mark.skipif(not POCKET_WEIGHTS.exists(), reason="pocket is not pretrained yet")
def test_the_shipped_pocket_is_what_its_record_says():
    record = json.loads(POCKET_WEIGHTS.with_suffix(".json").read_text())
    theta = networks.flatten(load_backbone().model)
    assert len(theta) == record["results"]["parameters"]
    assert bool(torch.isfinite(theta).all())
    assert POCKET_WEIGHTS.stat().st_size <= 8e6
