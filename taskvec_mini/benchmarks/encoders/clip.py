"""CLIP through open_clip: image encoders with OpenAI's weights, and a tiny one for trying things out.

CLIP (Radford et al., ICML 2021, arXiv:2103.00020) embeds images and texts in one space. Finetuning moves the
image encoder alone; the text encoder is needed once, for zero-shot heads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks, _imports
from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import Backbone, Channels
from taskvec_mini.errors import UserError

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


def load_visual(name: str, weights: str | os.PathLike[str] | None = None) -> Backbone:
    """A CLIP image encoder with CLIP's own preparation, on the CPU in float32.

    Its embeddings are the projected ones, not yet normalised. An image is brought to the size of the model as
    OpenAI did it: the shorter side resized (bicubic, antialiased), then the square in the middle.

    Args:
        name: one of `PARAMETERS`. "tiny-clip" is not pretrained.
        weights: a safetensors or PyTorch file in open_clip's layout, with both encoders or the image encoder
            alone. By default OpenAI's weights from the Hugging Face Hub, downloaded on first use.

    Raises:
        UserError: if there is no such model, the file does not hold its weights, or open_clip builds a model
            with another number of parameters.
        MissingFileError: if there is no such file.
        FileError: if the download fails.
        MissingPackageError: if open_clip is not installed.

    Example:
        >>> backbone = load_visual("tiny-clip")
        >>> backbone.model(backbone.prepare(torch.zeros(2, 40, 30, dtype=torch.uint8))).shape
        torch.Size([2, 32])
    """
    if weights is None and name == TINY:
        return visual_backbone(name, tiny_clip())
    model: Any = without_weights(name)
    path, state = _read(name, weights)
    visual = {key.removeprefix("visual."): part for key, part in state.items() if key.startswith("visual.")}
    state = visual or state
    _check_state(model.visual, state, what=f"the image encoder of {name}", path=str(path))
    own = {key: part.to(torch.float32, copy=True) for key, part in state.items()}
    model.visual.load_state_dict(own, assign=True)
    return visual_backbone(name, model)


def load_clip(name: str, *, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Both encoders of a CLIP model, on the CPU in float32: open_clip's model, in evaluation mode.

    Arguments and errors are those of `load_visual`; a file with the image encoder alone is refused.

    Raises:
        UserError: if there is no such model, or the file does not hold all its weights.
    """
    if weights is None and name == TINY:
        return tiny_clip()
    config = _config(name)
    path, state = _read(name, weights)
    model = _built(config)
    _check_state(model, state, what=name, path=f"{path} (both encoders are needed)")
    model.load_state_dict(state)
    return model


def without_weights(name: str) -> nn.Module:
    """Both encoders of a CLIP model on the device "meta": shapes without numbers, made in no time.

    Raises:
        UserError: if there is no such model, or open_clip builds it with another number of parameters.
        MissingPackageError: if open_clip is not installed.

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
        InputTypeError: if the seed is not a whole number.
        UserError: if it is below 0.
        MissingPackageError: if open_clip is not installed.

    Example:
        >>> sum(part.numel() for part in tiny_clip().visual.parameters())
        33280
    """
    generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
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
    return Backbone(
        name,
        model.visual,
        image_size=model.visual.image_size[0],
        mean=MEAN,
        std=STD,
        features=model.visual.proj.shape[1],
        resize="crop",
        interpolation="bicubic",
    )


def refuse_gelu(name: str) -> None:
    """A UserError for names such as "ViT-B-32", under which open_clip builds another model."""
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
        MissingPackageError: if it is not installed.
    """
    return _imports.load("open_clip", needed_for="CLIP", install="taskvec-mini[clip]")


def _read(name: str, weights: str | os.PathLike[str] | None) -> tuple[Path, dict[str, Tensor]]:
    """A file of weights and its tensors; by default OpenAI's in open_clip's layout, from the Hub."""
    if weights is None:
        published: Mapping[str, Any] = open_clip().get_pretrained_cfg(name, "openai")
        repository = published["hf_hub"].strip("/")
        path = _weights.hub_file(
            repository, "open_clip_model.safetensors", what=f"OpenAI's weights of {name}"
        )
    else:
        path = Path(weights)
    return path, _weights.read_state(path, remedy="fetch it again, as safetensors if there is a choice")


def _check_state(model: nn.Module, state: Mapping[str, Tensor], *, what: str, path: str) -> None:
    """A UserError that names the first tensor which the file lacks, has too much, or in another shape."""
    own = model.state_dict()
    _checks.check_keys(own, state, name=what, other=path)
    for name, part in own.items():
        if part.shape != state[name].shape:
            raise UserError(
                f"{path} has {name!r} with the shape {tuple(state[name].shape)}, but {what} has "
                f"{tuple(part.shape)}; give the weights of this very model"
            )
