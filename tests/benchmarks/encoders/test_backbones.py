"""Encoders and their preparation: against Pillow, a lookup table, and a MobileNet written a second way."""

import hashlib
import json
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from small_images import images_of
from taskvec_mini import networks
from taskvec_mini.benchmarks.encoders import Backbone, embed, load_backbone, mobilenet
from taskvec_mini.benchmarks.encoders import load as backbones
from taskvec_mini.benchmarks.encoders.pocket import Pocket


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=source(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random-pocket")


def resizer(size):
    """A backbone whose preparation only resizes: channels from 0 to 1."""
    return Backbone(
        "none", nn.Linear(1, 1), image_size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), features=1
    )


# --- preparation -----------------------------------------------------------------------------------------


def test_images_of_the_right_size_are_looked_up_value_by_value(backbone):
    images = noise(5, 32, 32, 3)
    values = torch.arange(256, dtype=torch.float32) / 255
    prepared = backbone.prepare(images)
    for channel in range(3):
        table = (values - backbones.IMAGENET_MEAN[channel]) / backbones.IMAGENET_STD[channel]
        assert torch.equal(prepared[:, channel], table[images[..., channel].long()])


@pytest.mark.parametrize(("old", "new"), [(28, 32), (32, 64), (64, 32), (100, 32), (33, 32)])
def test_other_sizes_are_resized_as_pillow_does(old, new):
    image = noise(old, old)
    expected = Image.fromarray(image.numpy().astype(np.float32)).resize((new, new), Image.Resampling.BILINEAR)
    found = resizer(new).prepare(image[None])[0] * 255
    torch.testing.assert_close(found, torch.tensor(np.array(expected)).expand(3, -1, -1), rtol=0, atol=2e-3)


def test_fine_stripes_become_grey_when_they_shrink_and_not_stripes_of_another_width():
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(1, 96, 96)
    inside = resizer(30).prepare(stripes)[..., 2:-2]
    assert float((inside - 0.5).abs().max()) < 0.06


def test_an_image_that_is_not_square_is_stretched():
    image = torch.zeros(1, 10, 40, dtype=torch.uint8)
    image[:, :, 20:] = 255
    prepared = resizer(20).prepare(image)
    assert prepared.shape == (1, 3, 20, 20)
    assert float(prepared[..., :9].max()) == 0
    assert float(prepared[..., 11:].min()) == 1


@pytest.mark.parametrize("size", [32, 20])
def test_grey_is_colour_with_three_equal_channels(backbone, size):
    grey = noise(4, size, size)
    assert torch.equal(backbone.prepare(grey), backbone.prepare(grey[..., None].expand(-1, -1, -1, 3)))


def test_an_image_is_prepared_alike_alone_and_in_a_batch(backbone):
    images = noise(4, 40, 40, 3)
    assert torch.equal(backbone.prepare(images)[2:3], backbone.prepare(images[2:3]))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_is_the_one_the_model_wants(order):
    wants = Backbone(
        "none",
        nn.Linear(1, 1),
        image_size=32,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        features=1,
        memory_format=order,
    )
    for images in (noise(2, 32, 32, 3), noise(2, 32, 32), noise(2, 20, 20, 3)):
        prepared = wants.prepare(images)
        assert prepared.is_contiguous(memory_format=order)
        assert prepared.dtype == torch.float32


def test_preparation_happens_where_the_model_is(backbone):
    elsewhere = Backbone(
        "none", Pocket().to("meta"), image_size=32, mean=backbone.mean, std=backbone.std, features=256
    )
    assert elsewhere.device.type == "meta"
    assert elsewhere.prepare(noise(2, 32, 32)).device.type == "meta"


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(2, 32, 32), TypeError, "uint8.*float32"),
        ([[1]], TypeError, "uint8.*list"),
        (noise(32, 32), ValueError, r"\(32, 32\)"),
        (noise(2, 3, 32, 32), ValueError, r"\(N, H, W, 3\).*\(2, 3, 32, 32\)"),
        (noise(0, 32, 32), ValueError, "at least one"),
        (noise(2, 0, 32), ValueError, r"\(2, 0, 32\)"),
    ],
)
def test_other_images_are_refused(backbone, images, error, words):
    with pytest.raises(error, match=words):
        backbone.prepare(images)
    with pytest.raises(error, match=words):
        embed(backbone, images)


# --- embeddings ------------------------------------------------------------------------------------------


def test_embeddings_are_the_models_answers_to_prepared_images_in_order(backbone):
    images = images_of(torch.arange(7) % 4, seed=0)
    expected = backbone.model(backbone.prepare(images)).detach()
    for batch_size in (1, 3, 7, 100):
        found = embed(backbone, images, batch_size=batch_size)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (7, backbone.features)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embed(backbone, images, batch_size=0)


# --- which backbone --------------------------------------------------------------------------------------


def test_an_unknown_name_brings_the_near_ones():
    with pytest.raises(ValueError, match="unknown backbone 'pokcet': did you mean 'pocket'"):
        load_backbone("pokcet")


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


def test_another_image_size_is_taken_where_the_model_can(backbone):
    larger = load_backbone("random-pocket", image_size=48)
    assert larger.prepare(noise(2, 32, 32)).shape == (2, 3, 48, 48)
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        load_backbone("random-pocket", image_size=0)


# --- pocket's file ---------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"pocket.safetensors has the sha256 \w{64}, expected \w{64}; .*pre"):
        load_backbone("pocket", weights=path)


def test_the_weights_of_another_network_are_refused(tmp_path):
    path = write_pocket(tmp_path, Pocket(widths=(8, 8, 8, 8)).state_dict())
    with pytest.raises(ValueError, match="does not hold the weights of pocket"):
        load_backbone("pocket", weights=path)


@pytest.mark.skipif(not backbones.POCKET_WEIGHTS.exists(), reason="pocket is not pretrained yet")
def test_the_shipped_pocket_is_what_its_record_says():
    record = json.loads(backbones.POCKET_WEIGHTS.with_suffix(".json").read_text())
    theta = networks.flatten(load_backbone().model)
    assert len(theta) == record["results"]["parameters"]
    assert bool(torch.isfinite(theta).all())
    assert backbones.POCKET_WEIGHTS.stat().st_size <= 8e6


# --- mobilenet -------------------------------------------------------------------------------------------


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
        torch.testing.assert_close(mobilenet.load_mobilenet(path)(images), expected)


def test_folding_leaves_only_kernels_and_biases(keras):
    model = mobilenet.load_mobilenet(keras[0])
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
        mobilenet.load_mobilenet(tmp_path / "lost.npz")
    arrays |= {"conv_dw_3_bn.gamma": lost, "conv1.kernel": arrays["conv1.kernel"][:2]}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"layers\.0\.weight the shape \(32, 3, 2, 3\), not \(32, 3, 3, 3\)"):
        mobilenet.load_mobilenet(tmp_path / "other.npz")


def test_mobilenet_is_found_by_argument_or_by_the_folder_of_the_data(keras, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "_MOBILENET_SHA256", hashlib.sha256(keras[0].read_bytes()).hexdigest())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / backbones.MOBILENET_WEIGHTS).write_bytes(keras[0].read_bytes())
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
    with pytest.raises(ValueError, match=r"sha256 \w{64}, expected 9b2fdb.*copy it again"):
        load_backbone("mobilenet", weights=keras[0])


REAL = Path(os.environ.get("TASKVEC_MINI_DATA", "")) / "weights" / backbones.MOBILENET_WEIGHTS


@pytest.mark.skipif(not REAL.is_file(), reason="TASKVEC_MINI_DATA names no folder with MobileNet's weights")
def test_the_published_weights_give_the_published_function():
    loaded = load_backbone("mobilenet", weights=REAL)
    with np.load(REAL) as stored:
        arrays = {name: stored[name].astype(np.float64) for name in stored.files}
    images = images_of(torch.arange(4), seed=0)
    expected = unfolded(arrays, loaded.prepare(images).double())
    torch.testing.assert_close(embed(loaded, images).double(), expected, rtol=1e-3, atol=1e-3)


# --- torchvision's ---------------------------------------------------------------------------------------


def with_statistics(model, seed=0):
    """Batch statistics as after a training, drawn at random."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=source(seed))
            layer.running_var.uniform_(0.5, 2, generator=source(seed))
    return model


@pytest.fixture(scope="module")
def small_model():
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_statistics(models.mobilenet_v3_small(weights=None)).eval()


@pytest.fixture(scope="module")
def published(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "mobilenet_v3_small.pth"
    torch.save(small_model.state_dict(), path)
    return path


def test_a_torchvision_model_answers_with_what_its_classifier_saw(small_model, published):
    loaded = load_backbone("mobilenet_v3_small", weights=published, image_size=64)
    prepared = loaded.prepare(images_of(torch.arange(3), seed=0))
    with torch.no_grad():
        expected = small_model.avgpool(small_model.features(prepared)).flatten(1)
        for mode in (True, False):  # training must not change the statistics, nor use those of the batch
            loaded.model.train(mode)
            torch.testing.assert_close(loaded.model(prepared), expected)
    assert expected.shape == (3, loaded.features)


def test_batch_statistics_are_no_part_of_a_torchvision_models_state(published):
    model = load_backbone("mobilenet_v3_small", weights=published).model
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", backbones.TORCHVISION)
def test_every_listed_model_of_torchvision_gives_as_many_features_as_listed(name, monkeypatch):
    from torchvision import models

    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    monkeypatch.setattr(backbones, "_torchvision_model", lambda *_: model)
    loaded = load_backbone(name)
    assert (loaded.image_size, loaded.name) == (224, name)
    own = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    assert (list(loaded.mean), list(loaded.std)) == (own.mean, own.std)
    assert loaded.model(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, loaded.features)


def test_a_vision_transformer_keeps_its_image_size(monkeypatch):
    monkeypatch.setattr(backbones, "_torchvision_model", lambda *_: nn.ModuleDict({"heads": nn.Linear(1, 1)}))
    assert load_backbone("vit_b_16", image_size=224).image_size == 224
    with pytest.raises(ValueError, match="vit_b_16 takes images of 224 pixels, not 64"):
        load_backbone("vit_b_16", image_size=64)


def test_without_network_the_error_says_what_to_fetch(monkeypatch):
    from torchvision.models import _api

    asked = []

    def offline(*_, **more):
        asked.append(more)
        raise URLError("no network")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"resnet18 could not be downloaded .*no network.*https://.*weights="):
        load_backbone("resnet18")
    assert asked[0]["check_hash"] is True


def test_files_that_are_no_weights_of_the_model_are_refused(published, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*fetch https://.*resnet18"):
        load_backbone("resnet18", weights=tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(published.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as the weights of resnet18.*fetch https"):
        load_backbone("resnet18", weights=tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="does not hold the weights of resnet18"):
        load_backbone("resnet18", weights=published)
    torch.save({"fc.weight": Pocket}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth cannot be read"):
        load_backbone("resnet18", weights=tmp_path / "code.pth")


def test_without_torchvision_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="python -m pip install torchvision"):
        load_backbone("resnet18")
