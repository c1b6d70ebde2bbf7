"""The table of encoders against the encoders themselves, and what is refused before one is loaded."""

import pytest
import torch

from taskvec_mini.benchmarks.encoders import (
    BACKBONES,
    TextBackbone,
    backbone_info,
    clip,
    device_of,
    embed,
    load_backbone,
)
from taskvec_mini.benchmarks.encoders.mobilenet import MobileNet
from taskvec_mini.errors import UserError


@pytest.mark.parametrize("name", ["pocket", "random-pocket", "pocket-text", "random-pocket-text", clip.TINY])
def test_the_table_says_what_an_encoder_is(name):
    info, loaded = BACKBONES[name], load_backbone(name)
    assert loaded.name == name
    assert sum(part.numel() for part in loaded.model.parameters()) == info.parameters
    assert isinstance(loaded, TextBackbone) == (info.kind == "texts")
    assert getattr(loaded, "image_size", None) == info.image_size


def test_the_table_knows_the_parameters_of_mobilenet_and_of_open_clips_models():
    with torch.device("meta"):
        model = MobileNet()
    assert sum(part.numel() for part in model.parameters()) == BACKBONES["mobilenet"].parameters
    for name in clip.PARAMETERS:
        visual = clip.without_weights(name).get_submodule("visual")
        assert sum(part.numel() for part in visual.parameters()) == BACKBONES[name].parameters
        assert visual.image_size[0] == BACKBONES[name].image_size


@pytest.mark.parametrize("load", [load_backbone, backbone_info])
def test_an_unknown_name_brings_the_near_ones(load):
    with pytest.raises(UserError, match="unknown backbone 'pokcet': did you mean 'pocket'"):
        load("pokcet")
    with pytest.raises(UserError, match=r"unknown backbone 'ViT-B-32-quikgelu': .*'ViT-B-32-quickgelu'"):
        load("ViT-B-32-quikgelu")
    with pytest.raises(UserError, match=r"'ViT-B-32' has the activation GELU.*'ViT-B-32-quickgelu'"):
        load("ViT-B-32")


def test_another_image_size_is_taken_where_the_model_can():
    larger = load_backbone("random-pocket", image_size=48)
    images = torch.zeros(2, 32, 32, dtype=torch.uint8)
    assert larger.prepare(images).shape == (2, 3, 48, 48)
    assert embed(larger, images).shape == (2, 256)
    assert load_backbone("tiny-clip", image_size=32).image_size == 32
    with pytest.raises(UserError, match="image_size must be at least 1"):
        load_backbone("random-pocket", image_size=0)


@pytest.mark.parametrize(("name", "pixels"), [("tiny-clip", 32), ("vit_b_16", 224)])
def test_a_vision_transformer_keeps_its_image_size_and_is_not_loaded_for_another(name, pixels):
    with pytest.raises(UserError, match=f"{name} takes images of {pixels} pixels, not 64; leave image_size"):
        load_backbone(name, image_size=64)


# --- devices ---------------------------------------------------------------------------------------------


def test_a_device_is_looked_for_before_anything_is_loaded(monkeypatch):
    assert device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(None) == torch.device("cuda")
    with pytest.raises(UserError, match="'gpu' is no device that torch knows; give cpu or cuda"):
        device_of("gpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "mps"):
        with pytest.raises(UserError, match=f"'{name}': torch sees no such GPU here"):
            device_of(name)
