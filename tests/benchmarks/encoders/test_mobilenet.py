"""MobileNet: the published network written a second way, step by step, with nothing folded."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_images import images_of
from taskvec_mini import networks
from taskvec_mini.benchmarks.encoders import embed, load_backbone, mobilenet
from taskvec_mini.benchmarks.encoders.mobilenet import MOBILENET_WEIGHTS, read_keras


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=source(seed), dtype=torch.uint8)


def keras_arrays(seed=0):
    """Random weights in Keras' names and order of axes, in float64 so that two ways can be told apart."""
    random, arrays, inputs = np.random.default_rng(seed), {}, 32

    def add(name, kind, shape, outputs):
        fan_in = shape[0] * shape[1] * (1 if kind == "depthwise_kernel" else shape[2])
        arrays[f"{name}.{kind}"] = random.standard_normal(shape) * (2 / fan_in) ** 0.5
        for part, low, high in (("gamma", 0.5, 1.5), ("beta", -0.2, 0.4), ("moving_mean", -0.2, 0.2)):
            arrays[f"{name}_bn.{part}"] = random.uniform(low, high, outputs)
        arrays[f"{name}_bn.moving_variance"] = random.uniform(0.01, 1.0, outputs)

    add("conv1", "kernel", (3, 3, 3, 32), 32)
    for i, outputs in enumerate((64, 128, 128, 256, 256, *[512] * 6, 1024), 1):
        add(f"conv_dw_{i}", "depthwise_kernel", (3, 3, inputs, 1), inputs)
        add(f"conv_pw_{i}", "kernel", (1, 1, inputs, outputs), outputs)
        inputs = outputs
    return arrays


def unfolded(arrays, images):
    """The published network step by step: convolution, batch normalisation, ReLU6; nothing is folded."""

    def step(hidden, name, kernel, stride, groups):
        if stride == 2:
            hidden = torch.cat([hidden, torch.zeros_like(hidden[..., :1])], 3)  # a column right
            hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :, :1])], 2)  # a row below
        around = 1 if stride == 1 and kernel.shape[2] == 3 else 0
        hidden = F.conv2d(hidden, kernel, None, stride, around, 1, groups)
        gamma, beta, mean, variance = (
            torch.tensor(arrays[f"{name}_bn.{part}"])
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return F.batch_norm(hidden, mean, variance, gamma, beta, eps=0.001).clamp(0, 6)

    hidden = step(images, "conv1", torch.tensor(arrays["conv1.kernel"]).permute(3, 2, 0, 1), 2, 1)
    for i in range(1, 13):
        each = torch.tensor(arrays[f"conv_dw_{i}.depthwise_kernel"]).permute(2, 3, 0, 1)
        across = torch.tensor(arrays[f"conv_pw_{i}.kernel"]).permute(3, 2, 0, 1)
        hidden = step(hidden, f"conv_dw_{i}", each, 2 if i in (2, 4, 6, 12) else 1, len(each))
        hidden = step(hidden, f"conv_pw_{i}", across, 1, 1)
    return hidden.flatten(2).mean(2)


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "mobilenet.npz"
    arrays = keras_arrays()
    np.savez(path, **arrays)
    return path, arrays


@pytest.mark.parametrize("size", [64, 96, 50])
def test_folding_the_batch_normalisation_leaves_the_function_as_it_is(keras, size):
    path, arrays = keras
    images = torch.rand(2, 3, size, size, generator=source(), dtype=torch.float64) * 2 - 1
    expected = unfolded(arrays, images)
    assert float(expected.std()) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(read_keras(path)(images), expected)


def test_folding_leaves_only_kernels_and_biases(keras):
    model = read_keras(keras[0])
    kernels = sum(value.size for name, value in keras[1].items() if name.endswith("kernel"))
    biases = sum(value.size for name, value in keras[1].items() if name.endswith("beta"))
    assert len(networks.flatten(model)) == kernels + biases == 2_136_192
    assert not list(model.buffers())
    assert all(each.requires_grad and each.is_contiguous() for each in model.parameters())


def test_a_file_without_an_array_or_with_another_shape_is_refused(keras, tmp_path):
    arrays = dict(keras[1])
    lost = arrays.pop("conv_dw_3_bn.gamma")
    np.savez(tmp_path / "lost.npz", **arrays)
    with pytest.raises(ValueError, match=r"has no array 'conv_dw_3_bn\.gamma'"):
        read_keras(tmp_path / "lost.npz")
    arrays |= {"conv_dw_3_bn.gamma": lost, "conv1.kernel": arrays["conv1.kernel"][:2]}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"layers\.0\.weight the shape \(32, 3, 2, 3\), not \(32, 3, 3, 3\)"):
        read_keras(tmp_path / "other.npz")


def test_mobilenet_is_found_by_argument_or_by_the_folder_of_the_data(keras, tmp_path, monkeypatch):
    monkeypatch.setattr(mobilenet, "_SHA256", hashlib.sha256(keras[0].read_bytes()).hexdigest())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / MOBILENET_WEIGHTS).write_bytes(keras[0].read_bytes())
    monkeypatch.setenv("TASKVEC_MINI_DATA", str(tmp_path))
    for loaded in (load_backbone("mobilenet"), load_backbone("mobilenet", weights=keras[0])):
        assert (loaded.image_size, loaded.features) == (64, 1024)
    prepared = loaded.prepare(noise(1, 64, 64))
    torch.testing.assert_close(prepared, noise(1, 64, 64).expand(3, -1, -1)[None] / 127.5 - 1)


def test_without_mobilenets_weights_the_error_says_where_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKVEC_MINI_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"pass weights=.*TASKVEC_MINI_DATA"):
        load_backbone("mobilenet")
    monkeypatch.setenv("TASKVEC_MINI_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"weights.mobilenet_v1.*npz; .*TASKVEC_MINI_DATA"):
        load_backbone("mobilenet")


def test_other_bytes_than_the_published_ones_are_refused(keras):
    with pytest.raises(ValueError, match=r"sha256 should be 9b2fdb\w* and is \w{64}; copy it again"):
        load_backbone("mobilenet", weights=keras[0])


REAL = Path(os.environ.get("TASKVEC_MINI_DATA", "")) / "weights" / MOBILENET_WEIGHTS


@pytest.mark.skipif(not REAL.is_file(), reason="TASKVEC_MINI_DATA names no folder with MobileNet's weights")
def test_the_published_weights_give_the_published_function():
    loaded = load_backbone("mobilenet", weights=REAL)
    with np.load(REAL) as stored:
        arrays = {name: stored[name].astype(np.float64) for name in stored.files}
    images = images_of(torch.arange(4), seed=0)
    expected = unfolded(arrays, loaded.prepare(images).double())
    torch.testing.assert_close(embed(loaded, images).double(), expected, rtol=1e-3, atol=1e-3)
