"""CLIP's image encoders: against closed forms, open_clip's own transform and model, files of all kinds."""

import sys
import time

import open_clip
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from taskvec_mini.benchmarks.encoders import clip, embed, load_backbone, trained_parameters

LARGE = [name for name in clip.PARAMETERS if name != clip.TINY]


@pytest.fixture(scope="module")
def tiny():
    """open_clip's tiny model, both encoders."""
    return clip.tiny_clip(seed=1)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# --- shapes and counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "layers", "patch", "size", "features"),
    [
        ("ViT-B-32-quickgelu", 768, 12, 32, 224, 512),
        ("ViT-B-16-quickgelu", 768, 12, 16, 224, 512),
        ("ViT-L-14-quickgelu", 1024, 24, 14, 224, 768),
        ("tiny-clip", 32, 2, 8, 32, 32),
    ],
)
def test_every_encoder_has_the_parameters_of_its_drawing(name, width, layers, patch, size, features):
    embeddings = 3 * patch**2 * width + width + ((size // patch) ** 2 + 1) * width
    attention, perceptron = 4 * width**2 + 4 * width, 8 * width**2 + 5 * width
    expected = embeddings + layers * (attention + perceptron + 4 * width) + 4 * width + width * features
    model = clip.without_weights(name)
    own = trained_parameters(model.visual)
    assert sum(part.numel() for part in own.values()) == expected == clip.PARAMETERS[name]
    assert {part.device.type for part in own.values()} == {"meta"}
    assert not list(model.visual.buffers())
    assert own["proj"].shape == (width, features)
    assert own[f"transformer.resblocks.{layers - 1}.attn.in_proj_weight"].shape == (3 * width, width)
    assert len(own) == 8 + 12 * layers
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    backbone = clip.visual_backbone(name, model)
    assert (backbone.image_size, backbone.features) == (size, features)
    prepared = backbone.prepare(noise(2, size, size))
    assert backbone.model(prepared).shape == (2, features)


def test_another_number_of_parameters_is_refused(monkeypatch):
    monkeypatch.setitem(clip.PARAMETERS, "tiny-clip", 33_281)
    with pytest.raises(
        ValueError, match=r"tiny-clip 33,280 parameters, expected 33,281; .*open_clip_torch=="
    ):
        clip.without_weights("tiny-clip")


def test_mean_and_spread_are_openais():
    for name in LARGE:
        published = open_clip.get_pretrained_cfg(name, "openai")
        assert (published["mean"], published["std"]) == (clip.MEAN, clip.STD)
        assert (published["interpolation"], published["resize_mode"]) == ("bicubic", "shortest")
        assert published["quick_gelu"]


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_names_of_gelu_models_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"'{name}' has the activation GELU.*QuickGELU.*'{name}-quickgelu'"):
        clip.load_clip(name)


def test_an_unknown_name_brings_the_near_ones():
    with pytest.raises(ValueError, match="unknown CLIP model 'tiny_clip': did you mean 'tiny-clip'"):
        clip.load_clip("tiny_clip")


def test_without_open_clip_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for load in (clip.tiny_clip, lambda: load_backbone("ViT-B-32-quickgelu")):
        with pytest.raises(ImportError, match=r'python -m pip install "taskvec-mini\[clip\]"'):
            load()


# --- the tiny model --------------------------------------------------------------------------------------


def test_the_tiny_model_is_the_same_each_time_and_draws_from_no_global_source():
    before = torch.get_rng_state()
    first, second, other = clip.tiny_clip(), clip.tiny_clip(), clip.tiny_clip(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, one), two, three in zip(
        first.named_parameters(), second.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
        assert torch.equal(one, three) == (name.endswith("bias") or "ln_" in name or name == "logit_scale")
    assert float(first.token_embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert float(first.visual.conv1.weight.detach().std()) == pytest.approx((3 * 64) ** -0.5, rel=0.03)
    assert float(first.transformer.resblocks[1].mlp.c_proj.weight.detach().std()) == pytest.approx(
        128**-0.5, rel=0.03
    )
    assert float(first.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)
    assert torch.equal(load_backbone("tiny-clip").model.proj, first.visual.proj)


def test_the_encoder_is_open_clips_own_without_the_texts(tiny):
    backbone = clip.visual_backbone("tiny-clip", tiny)
    images = noise(5, 32, 32, 3)
    with torch.no_grad():
        expected = tiny.encode_image(backbone.prepare(images))
    torch.testing.assert_close(embed(backbone, images, batch_size=2), expected)
    assert set(trained_parameters(backbone.model)) == {
        name.removeprefix("visual.") for name in tiny.state_dict() if name.startswith("visual.")
    }
    assert not backbone.model.training
    assert float((expected[0] - expected[1]).abs().max()) > 0.01  # it tells images apart


# --- files -----------------------------------------------------------------------------------------------


def contiguous(state):
    return {name: part.contiguous() for name, part in state.items()}


@pytest.mark.parametrize("layout", ["whole", "visual", "prefixed", "bin", "checkpoint", "half"])
def test_weights_are_read_from_files_of_every_layout(tiny, tmp_path, layout):
    whole, visual, path = contiguous(tiny.state_dict()), contiguous(tiny.visual.state_dict()), tmp_path / "w"
    states = {"visual": visual, "prefixed": {f"visual.{name}": part for name, part in visual.items()}}
    if layout in ("bin", "checkpoint"):
        path = path.with_suffix(".bin")
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": part for name, part in whole.items()}}
        torch.save(whole if layout == "bin" else wrapped, path)
    else:
        path, state = path.with_suffix(".safetensors"), states.get(layout, whole)
        save_file({n: p.half() if layout == "half" else p for n, p in state.items()}, path)
    loaded = load_backbone("tiny-clip", weights=path)
    with path.open("r+b") as file:  # what was read shares no memory with the file
        file.write(bytes(path.stat().st_size))
    for name, part in trained_parameters(loaded.model).items():
        expected = visual[name].half().float() if layout == "half" else visual[name]
        assert part.dtype == torch.float32
        assert torch.equal(part, expected), name
    assert not loaded.model.training
    assert loaded.model(loaded.prepare(noise(2, 32, 32))).shape == (2, 32)


def test_both_encoders_are_read_and_a_file_with_one_is_refused(tiny, tmp_path):
    save_file(contiguous(tiny.state_dict()), tmp_path / "both.safetensors")
    loaded = clip.load_clip("tiny-clip", weights=tmp_path / "both.safetensors")
    assert all(torch.equal(part, tiny.state_dict()[name]) for name, part in loaded.state_dict().items())
    save_file(contiguous(tiny.visual.state_dict()), tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors \(both encoders are needed\) has not"):
        clip.load_clip("tiny-clip", weights=tmp_path / "one.safetensors")


def test_files_that_do_not_fit_are_refused_and_what_does_not_fit_is_named(tiny, tmp_path):
    visual = contiguous(tiny.visual.state_dict())
    lacking = {name: part for name, part in visual.items() if name != "ln_post.bias"}
    other = visual | {"proj": visual["proj"][:, :16].contiguous()}
    more = visual | {"ln_more.bias": torch.zeros(32)}
    for state, words in (
        (lacking, "'ln_post.bias', .*w.safetensors has not"),
        (more, "w.safetensors has 'ln_more.bias'"),
        (other, r"w.safetensors has 'proj' with the shape \(32, 16\), but .* tiny-clip has \(32, 32\)"),
    ):
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=words):
            load_backbone("tiny-clip", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
        load_backbone("tiny-clip", weights=path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights .*; fetch it again"):
        load_backbone("tiny-clip", weights=path)


def test_a_file_whose_pickle_would_have_to_be_run_is_refused(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "w.bin")
    with pytest.raises(ValueError, match=r"w\.bin cannot be read as weights"):
        load_backbone("tiny-clip", weights=tmp_path / "w.bin")


# --- downloads -------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_a_network_the_error_comes_at_once_with_cause_and_remedy(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    begin = time.monotonic()
    words = (
        r"OpenAI's weights of ViT-B-32-quickgelu could not be downloaded \(OfflineModeIsEnabled: .*; try "
        r"again with a network, or give the same command on a machine that has one and copy its cache of "
        r"Hugging Face to this one \(~/.cache/huggingface, or what HF_HOME names\); in Python you can also "
        r"fetch https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/"
        r"open_clip_model.safetensors and pass its path"
    )
    for load in (load_backbone, clip.load_clip):
        with pytest.raises(OSError, match=words):
            load("ViT-B-32-quickgelu")
    assert time.monotonic() - begin < 10


def test_an_unreachable_hub_is_asked_once_and_the_download_is_not_begun(monkeypatch, empty_cache):
    asked = []

    def unreachable(url, *, timeout):
        asked.append((url, timeout))
        raise ConnectionError("cannot connect") from OSError(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(OSError, match=r"ViT-L-14-quickgelu .*\(OSError: .*Name or service not known\); try"):
        load_backbone("ViT-L-14-quickgelu")
    [(url, timeout)] = asked
    assert url.endswith("timm/vit_large_patch14_clip_224.openai/resolve/main/open_clip_model.safetensors")
    assert timeout <= 5


def test_a_download_that_breaks_off_is_explained_too(monkeypatch, empty_cache):
    def broken(*_, **__):
        raise LocalEntryNotFoundError("please check your connection") from TimeoutError("timed out")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(OSError, match=r"could not be downloaded \(TimeoutError: timed out\)"):
        load_backbone("ViT-B-16-quickgelu")


def test_what_lies_in_the_cache_is_taken_without_a_question(tiny, tmp_path, monkeypatch):
    save_file(contiguous(tiny.state_dict()), tmp_path / "cached.safetensors")
    asked = []

    def cached(repository, file, **_):
        asked.append((repository, file))
        return str(tmp_path / "cached.safetensors")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match=r"cached\.safetensors"):  # too small a model, but it was read
        load_backbone("ViT-B-16-quickgelu")
    assert asked == [("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors")]
