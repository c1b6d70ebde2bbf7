"""Encoders in transformers' layout: tiny models of both libraries made from one another give one answer."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from taskvec_mini.benchmarks.encoders import (
    _weights,
    clip,
    load_backbone,
    load_transformers_vision,
    state_of,
    trained_parameters,
    write_parameters,
)
from taskvec_mini.vectors import TaskVector

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}


def shaken(model, seed=0):
    """A model of transformers with all parameters at random, so that none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(0.2 * torch.randn(part.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    return shaken(CLIPVisionModel(CLIPVisionConfig(**CONFIG)))


@pytest.fixture(scope="module")
def state(theirs):
    """As `save_pretrained` of the published encoders wrote it: with the prefix."""
    names = {
        re.sub(r"^(vision_model\.)?", "vision_model.", name): p for name, p in theirs.state_dict().items()
    }
    return {name: part.clone() for name, part in names.items()}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny-clip")


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def answers(found, images):
    """Embeddings of our model with these parameters."""
    model = clip.tiny_clip(seed=3).visual
    write_parameters(model, found)
    return model(images)


# --- one function in two libraries -----------------------------------------------------------------------


def test_both_libraries_give_the_same_embeddings(theirs, state, backbone, images):
    found = load_transformers_vision(state, backbone)
    with torch.no_grad():
        expected = theirs(images).pooler_output @ backbone.model.proj
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(answers(found, images), expected, rtol=1e-5, atol=1e-5)


def test_a_projection_in_the_file_is_read(backbone, images):
    model = shaken(CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG)), seed=1)
    found = load_transformers_vision(model.state_dict(), backbone)
    with torch.no_grad():
        expected = model(images).image_embeds
    torch.testing.assert_close(answers(found, images), expected, rtol=1e-5, atol=1e-5)


def test_our_parameters_arrive_where_theirs_come_from(backbone, images):
    """The other way round: our encoder written into theirs by hand, and read back to the same bits."""
    own, width = backbone.model.state_dict(), 32
    state = {
        "embeddings.class_embedding": own["class_embedding"],
        "embeddings.patch_embedding.weight": own["conv1.weight"],
        "embeddings.position_embedding.weight": own["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        state[f"pre_layrnorm.{kind}"] = own[f"ln_pre.{kind}"]
        state[f"post_layernorm.{kind}"] = own[f"ln_post.{kind}"]
        for layer in range(2):
            block, there = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            joint = own[f"{block}.attn.in_proj_{kind}"]
            for part, each in enumerate("qkv"):
                state[f"{there}.self_attn.{each}_proj.{kind}"] = joint[part * width : (part + 1) * width]
            state[f"{there}.self_attn.out_proj.{kind}"] = own[f"{block}.attn.out_proj.{kind}"]
            state[f"{there}.layer_norm1.{kind}"] = own[f"{block}.ln_1.{kind}"]
            state[f"{there}.layer_norm2.{kind}"] = own[f"{block}.ln_2.{kind}"]
            state[f"{there}.mlp.fc1.{kind}"] = own[f"{block}.mlp.c_fc.{kind}"]
            state[f"{there}.mlp.fc2.{kind}"] = own[f"{block}.mlp.c_proj.{kind}"]
    model = CLIPVisionModel(CLIPVisionConfig(**CONFIG)).eval()
    prefix = "" if "embeddings.class_embedding" in model.state_dict() else "vision_model."
    missing, unknown = model.load_state_dict({prefix + n: p for n, p in state.items()}, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    assert not unknown
    with torch.no_grad():
        torch.testing.assert_close(
            model(images).pooler_output @ own["proj"], backbone.model(images), rtol=1e-5, atol=1e-5
        )
    found = load_transformers_vision(model.state_dict(), backbone)
    assert all(torch.equal(part, own[name]) for name, part in found.items())
    assert TaskVector.between(state_of(backbone.model), found).norm() == 0


def test_the_task_vector_of_a_file_without_projection_leaves_the_projection_alone(state, backbone):
    found = load_transformers_vision(state, backbone)
    assert list(found) == list(trained_parameters(backbone.model))
    vector = dict(TaskVector.between(state_of(backbone.model), found).items())
    assert not vector["proj"].any()
    assert all(part.norm() > 0 for name, part in vector.items() if name != "proj")
    before = backbone.model.proj.detach().clone()
    found["proj"].add_(1)  # what is returned shares no memory with the model
    assert torch.equal(backbone.model.proj, before)


# --- where it is read from -------------------------------------------------------------------------------


def test_mapping_file_and_folder_hold_the_same(state, backbone, tmp_path, monkeypatch):
    expected = load_transformers_vision(state, backbone)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    bare = {name.removeprefix("vision_model."): part for name, part in state.items()}
    buffer = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    monkeypatch.setattr(_weights, "hub_file", lambda repository, file, *, what: tmp_path / file)
    for source in (
        tmp_path,
        tmp_path / "model.safetensors",
        str(tmp_path / "old"),
        bare,
        state | buffer,
        "tanganke/clip-vit-base-patch32_mnist",
    ):
        found = load_transformers_vision(source, backbone)
        assert all(torch.equal(part, expected[name]) for name, part in found.items())


def test_half_precision_becomes_single(state, backbone):
    found = load_transformers_vision({name: part.half() for name, part in state.items()}, backbone)
    assert {part.dtype for part in found.values()} == {torch.float32}
    expected = state["vision_model.embeddings.class_embedding"].half().float()
    assert torch.equal(found["class_embedding"], expected)


# --- what is refused -------------------------------------------------------------------------------------


def changed(state, **changes):
    """The state with some tensors replaced; None takes one away. Dots are written as two underscores."""
    new = {f"vision_model.{name.replace('__', '.')}": part for name, part in changes.items()}
    return {name: part for name, part in (state | new).items() if part is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"encoder__layers__1__self_attn__k_proj__bias": None},
            "'encoder.layers.1.self_attn.k_proj.bias', the",
        ),
        ({"pre_layrnorm__weight": None}, "'pre_layrnorm.weight', the mapping has not"),
        (
            {"encoder__layers__2__mlp__fc1__bias": torch.ones(3)},
            "mapping has 'encoder.layers.2.mlp.fc1.bias'",
        ),
        ({"text_model": torch.ones(3)}, "the mapping has 'text_model'"),
        (
            {"encoder__layers__0__self_attn__v_proj__weight": torch.ones(32, 16)},
            r"'encoder.layers.0.self_attn.v_proj.weight': \(32, 32\) against \(32, 16\)",
        ),
        ({"embeddings__position_embedding__weight": torch.ones(50, 32)}, r"\(17, 32\) against \(50, 32\)"),
        ({"post_layernorm__bias": torch.full((32,), float("nan"))}, "post_layernorm.bias holds 32 value"),
    ],
)
def test_a_missing_unknown_or_misshapen_tensor_is_named(state, backbone, change, words):
    with pytest.raises(ValueError, match=words):
        load_transformers_vision(changed(state, **change), backbone)


def test_swapped_queries_and_keys_would_be_noticed(theirs, state, backbone, images):
    """The comparison of both libraries has teeth."""
    swapped = {
        re.sub("([qk])_proj", lambda m: f"{'kq'['qk'.index(m[1])]}_proj", n): p for n, p in state.items()
    }
    with torch.no_grad():
        expected = theirs(images).pooler_output @ backbone.model.proj
    found = answers(load_transformers_vision(swapped, backbone), images)
    assert float((F.normalize(found) - F.normalize(expected)).abs().max()) > 1e-3


def test_other_sources_and_encoders_are_refused(state, backbone, tmp_path):
    with pytest.raises(TypeError, match="'random-pocket' is no CLIP image encoder"):
        load_transformers_vision(state, load_backbone("random-pocket"))
    with pytest.raises(FileNotFoundError, match=r"holds none of model.safetensors, pytorch_model.bin"):
        load_transformers_vision(tmp_path, backbone)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.safetensors"):
        load_transformers_vision("folder/nowhere.safetensors", backbone)
    with pytest.raises(TypeError, match="source holds 'a', which is no tensor"):
        load_transformers_vision({"a": 1}, backbone)


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu"])
def test_every_tensor_of_the_large_encoders_has_its_counterpart(name):
    """Names and shapes only: both models are built without weights."""
    visual = clip.without_weights(name).visual
    width, patch = visual.conv1.out_channels, visual.conv1.kernel_size[0]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=width // 64,
        image_size=224,
        patch_size=patch,
    )
    with torch.device("meta"):
        theirs = CLIPVisionModel(config)
    count = sum(part.numel() for part in theirs.parameters())
    assert count + visual.proj.numel() == clip.PARAMETERS[name]
    zeros = {part: torch.zeros(1).expand(shape.shape) for part, shape in theirs.state_dict().items()}
    zeros["visual_projection.weight"] = torch.zeros(512, width)
    found = load_transformers_vision(zeros, clip.visual_backbone(name, clip.without_weights(name)))
    shapes = {part: tuple(tensor.shape) for part, tensor in found.items()}
    assert shapes == {part: tuple(own.shape) for part, own in trained_parameters(visual).items()}
