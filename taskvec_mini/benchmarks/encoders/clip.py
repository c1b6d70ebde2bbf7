"""CLIP through open_clip: image encoders with OpenAI's weights, and a tiny one for trying things out.

CLIP (Radford et al., ICML 2021, arXiv:2103.00020) embeds images and texts in one space. Finetuning moves the
image encoder alone; the text encoder is needed once, for the zero-shot heads of `clip_heads`.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.benchmarks.encoders.base import Backbone, Channels
from taskvec_mini.errors import FileError, MissingFileError, UserError

Source = str | os.PathLike[str] | None
TINY = "tiny-clip"
PARAMETERS = {  # the models, and how many parameters each image encoder has
    "ViT-B-32-quickgelu": 87_849_216,
    "ViT-B-16-quickgelu": 86_192_640,
    "ViT-L-14-quickgelu": 303_966_208,
    TINY: 33_280,
}
MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
STD: Channels = (0.26862954, 0.26130258, 0.27577711)
_TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
_GELU = "-quickgelu"
_HUB_FILE = "open_clip_model.safetensors"
_TIMEOUT = 5.0  # seconds until an unanswered question to the Hub is an error


# --- models ----------------------------------------------------------------------------------------------


def load_visual(name: str, weights: Source = None) -> Backbone:
    """A CLIP image encoder with CLIP's own preparation, on the CPU in float32.

    Its embeddings are the projected ones, not yet normalised. An image is brought to the size of the model as
    OpenAI did it: the shorter side resized (bicubic, antialiased), then the square in the middle.

    Args:
        name: one of `PARAMETERS`. "tiny-clip" is not pretrained.
        weights: a safetensors or PyTorch file in open_clip's layout, with both encoders or the image encoder
            alone. By default OpenAI's weights from the Hugging Face Hub, downloaded on first use.

    Raises:
        ValueError: if there is no such model, the file does not hold its weights, or open_clip builds a model
            with another number of parameters.
        FileNotFoundError: if there is no such file.
        OSError: if the download fails.
        ImportError: if open_clip is not installed.

    Example:
        >>> backbone = load_visual("tiny-clip")
        >>> backbone.model(backbone.prepare(torch.zeros(2, 40, 30, dtype=torch.uint8))).shape
        torch.Size([2, 32])
    """
    if weights is None and name == TINY:
        return visual_backbone(name, tiny_clip())
    model: Any = without_weights(name)
    path = _downloaded(name) if weights is None else Path(weights)
    state = read_state(path)
    visual = {key.removeprefix("visual."): part for key, part in state.items() if key.startswith("visual.")}
    _check_state(model.visual, visual or state, f"the image encoder of {name}", str(path))
    own = {key: part.to(torch.float32, copy=True) for key, part in (visual or state).items()}
    model.visual.load_state_dict(own, assign=True)
    return visual_backbone(name, model)


def load_clip(name: str, *, weights: Source = None) -> nn.Module:
    """Both encoders of a CLIP model, on the CPU in float32: open_clip's model, in evaluation mode.

    Arguments and errors are those of `load_visual`; a file with the image encoder alone is refused.

    Raises:
        ValueError: if there is no such model, or the file does not hold all its weights.
    """
    if weights is None and name == TINY:
        return tiny_clip()
    config = _config(name)
    path = _downloaded(name) if weights is None else Path(weights)
    state = read_state(path)
    model = _built(config)
    _check_state(model, state, name, f"{path} (both encoders are needed)")
    model.load_state_dict(state)
    return model


def without_weights(name: str) -> nn.Module:
    """Both encoders of a CLIP model on the device "meta": shapes without numbers, made in no time.

    Raises:
        ValueError: if there is no such model, or open_clip builds it with another number of parameters.
        ImportError: if open_clip is not installed.

    Example:
        >>> sum(part.numel() for part in without_weights("ViT-B-32-quickgelu").visual.parameters())
        87849216
    """
    config = _config(name)
    with torch.device("meta"):
        model = _built(config)
    count = sum(part.numel() for part in model.get_submodule("visual").parameters())
    if count != PARAMETERS[name]:
        raise UserError(
            f"this version of open_clip gives the image encoder of {name} {count:,} parameters, expected "
            f'{PARAMETERS[name]:,}; install the tested one: python -m pip install "open_clip_torch==3.3.0"'
        )
    return model


def tiny_clip(*, seed: int = 0) -> nn.Module:
    """A tiny CLIP that knows nothing: two layers of width 32 for images of 32 pixels, two for texts.

    open_clip builds it as it builds the large ones. Its weights are normal numbers from a generator of its
    own, with a variance of one over the number of inputs; the same at every call. The embeddings of tokens
    and of their positions are small, so that attention decides what becomes of a text, and texts differ.

    Raises:
        TypeError: if the seed is not a whole number.
        ValueError: if it is below 0.
        ImportError: if open_clip is not installed.

    Example:
        >>> sum(part.numel() for part in tiny_clip().visual.parameters())
        33280
    """
    generator = torch.Generator().manual_seed(_checks.whole_number("seed", seed, minimum=0))
    model = _built(_TINY_CONFIG)
    for name, part in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(part)
        elif "ln_" not in name and name != "logit_scale":  # these two keep open_clip's initial values
            inputs = part[0].numel() if part.ndim > 1 else part.numel()
            spread = 0.02 if name in ("token_embedding.weight", "positional_embedding") else inputs**-0.5
            nn.init.normal_(part, 0.0, spread, generator=generator)
    return model


def visual_backbone(name: str, model: Any) -> Backbone:
    """The image encoder of open_clip's model with CLIP's own preparation; the text encoder is let go."""
    visual, features = model.visual, model.visual.proj.shape[1]
    size = visual.image_size[0]
    return Backbone(name, visual, size, MEAN, STD, features, resize="crop", interpolation="bicubic")


def refuse_gelu(name: str) -> None:
    """A ValueError for names such as "ViT-B-32", under which open_clip builds another model."""
    if f"{name}{_GELU}" in PARAMETERS:
        raise UserError(
            f"{name!r} has the activation GELU, but OpenAI trained its weights with QuickGELU, and with the "
            f"other one the embeddings are wrong; ask for {name + _GELU!r}"
        )


def _config(name: str) -> dict[str, Any]:
    refuse_gelu(name)
    _checks.named_choice("CLIP model", name, PARAMETERS)
    if name == TINY:
        return _TINY_CONFIG
    config: dict[str, Any] = open_clip().get_model_config(name)
    return config


def _built(config: Mapping[str, Any]) -> nn.Module:
    """The model; its constructor draws from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = open_clip().CLIP(**config)
    return model.eval()


def open_clip() -> Any:
    """The library open_clip, imported on use: it takes seconds, and most readers do not need it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise ImportError(
            f'CLIP needs open_clip ({error}); install it with: python -m pip install "taskvec-mini[clip]"'
        ) from error


# --- files -----------------------------------------------------------------------------------------------


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a safetensors or PyTorch file; of open_clip's training checkpoints the model's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or as a pickle that would have to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}; give the path of a file of weights")
    try:
        found = _read(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({_first_line(error)}); fetch it again, as safetensors if "
            "there is a choice"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    _checks.named_tensors(str(path), state)
    return {name.removeprefix("module."): part for name, part in state.items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_state(model: nn.Module, state: Mapping[str, Tensor], what: str, path: str) -> None:
    """A ValueError that names the first tensor which the file lacks, has too much, or in another shape."""
    own = model.state_dict()
    _checks.check_keys(own, state, what, path)
    for name, part in own.items():
        if part.shape != state[name].shape:
            raise UserError(
                f"{path} has {name!r} with the shape {tuple(state[name].shape)}, but {what} has "
                f"{tuple(part.shape)}; give the weights of this very model"
            )


def _downloaded(name: str) -> Path:
    """OpenAI's weights in open_clip's layout."""
    published: Mapping[str, Any] = open_clip().get_pretrained_cfg(name, "openai")
    return hub_file(published["hf_hub"].strip("/"), _HUB_FILE, f"OpenAI's weights of {name}")


def hub_file(repository: str, file: str, what: str) -> Path:
    """A file of a model repository of the Hugging Face Hub: from the cache, or downloaded into it.

    Raises:
        OSError: if it is not in the cache and cannot be downloaded; the message says why, and where it is.
        ImportError: if `huggingface_hub`, which comes with open_clip, is not installed.
    """
    open_clip()
    hub = importlib.import_module("huggingface_hub")
    cached = hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:  # one question first: without a network the download itself would be tried for half a minute
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file), timeout=_TIMEOUT)
        return Path(hub.hf_hub_download(repository, file))
    except Exception as error:  # of one of several network libraries
        raise FileError(
            f"{what} could not be downloaded ({_cause(error)}); try again with a network, or give the same "
            "command on a machine that has one and copy its cache of Hugging Face to this one "
            "(~/.cache/huggingface, or what HF_HOME names); in Python you can also fetch "
            f"https://huggingface.co/{repository}/resolve/main/{file} and pass its path"
        ) from error


def _cause(error: BaseException) -> str:
    """What was behind an error in the end: the Hub's own message does not say what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
