"""Finetuned CLIP image encoders in the layout of the library transformers, read into open_clip's names.

Both libraries compute the same function from the same numbers, under other names. transformers keeps the
matrices of queries, keys and values apart, open_clip one above the other in this order. Public finetuned
encoders, such as `tanganke/clip-vit-base-patch32_mnist` on the Hugging Face Hub, are in this layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskvec_mini import _checks
from taskvec_mini.benchmarks.encoders import _weights
from taskvec_mini.benchmarks.encoders.base import Backbone
from taskvec_mini.benchmarks.encoders.parameters import trained_parameters
from taskvec_mini.errors import InputTypeError, MissingFileError

Weights = str | os.PathLike[str] | Mapping[str, Tensor]
_FILES = ("model.safetensors", "pytorch_model.bin")
_PREFIX = "vision_model."  # some versions of transformers write it
_PROJECTION = "visual_projection.weight"
_OUTSIDE = {  # our names outside the layers, and theirs
    "class_embedding": "embeddings.class_embedding",
    "conv1": "embeddings.patch_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",  # their spelling
    "ln_post": "post_layernorm",
    "proj": _PROJECTION,
}
_INSIDE = {  # and within a layer
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def load_transformers_vision(source: Weights, backbone: Backbone) -> dict[str, Tensor]:
    """The named parameters of a finetuned encoder, as those of `backbone`: float32, on the CPU.

    `TaskVector.between(state_of(backbone.model), found)` is then its task vector, and `write_parameters`
    writes it into the model. transformers' `CLIPVisionModel` ends before the projection into the space of the
    texts. Where the projection is absent it is taken from `backbone`, and its part of the task vector is
    zero.

    Args:
        source: a mapping with names and tensors, a file of one (safetensors or PyTorch), a folder that holds
            model.safetensors or pytorch_model.bin, or the name of a repository of the Hugging Face Hub.
        backbone: the pretrained encoder of the same kind, from `load_backbone`.

    Raises:
        UserError: if a tensor is missing, unknown, not finite or of another shape; it is named.
        InputTypeError: if the backbone is no CLIP image encoder, or the mapping holds something else than
            tensors.
        MissingFileError: if there is no such file.
        FileError: if a download fails.
    """
    own = trained_parameters(backbone.model)
    if not {"class_embedding", "proj"} <= own.keys():
        raise InputTypeError(
            f"{backbone.name!r} is no CLIP image encoder of open_clip; load one, such as "
            "load_backbone('ViT-B-32-quickgelu')"
        )
    if isinstance(source, Mapping):
        _checks.named_tensors("source", source)
        state: Mapping[str, Tensor] = source
    else:
        path = Path(source)
        if path.is_dir():
            files = [path / file for file in _FILES if (path / file).is_file()]
            if not files:
                raise MissingFileError(
                    f"the folder {path} holds none of {', '.join(_FILES)}; give another one"
                )
            path = files[0]
        elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.suffix:
            # the name of a repository of the Hub
            path = _weights.hub_file(
                str(source), _FILES[0], what=f"{source}, which is no file or folder here,"
            )
        state = _weights.read_state(path, remedy="fetch it again, as safetensors if there is a choice")
    theirs = {name.removeprefix(_PREFIX): part for name, part in state.items()}
    theirs.pop("embeddings.position_ids", None)  # 0, 1, 2, ...
    if _PROJECTION not in theirs:
        theirs[_PROJECTION] = own["proj"].detach().T
    sources = {name: _their_names(name) for name in own}
    expected = dict.fromkeys(each for names in sources.values() for each in names)
    where = "the mapping" if isinstance(source, Mapping) else str(source)
    _checks.check_keys(expected, theirs, name=f"{backbone.name} in transformers' layout", other=where)
    found = {}
    for name, part in own.items():
        turned = (
            part.T if name == "proj" else part
        )  # their projection is a layer, ours a matrix to multiply with
        shape = (turned.shape[0] // len(sources[name]), *turned.shape[1:])
        for each in sources[name]:
            _checks.check_shapes(each, shape, tuple(theirs[each].shape))
            _checks.check_finite(each, theirs[each])
        whole = torch.cat([theirs[each].detach().to("cpu", torch.float32) for each in sources[name]])
        found[name] = (whole.T if name == "proj" else whole).contiguous()
    return found


def _their_names(name: str) -> tuple[str, ...]:
    """Their names of what makes up one of our parameters, in the order in which it is put together."""
    inside = _LAYER.fullmatch(name)
    if inside is None:
        stem, _, kind = name.partition(".")
        start, stem = "", _OUTSIDE[stem]
    else:
        layer, part = inside.groups()
        start = f"encoder.layers.{layer}."
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            return tuple(f"{start}self_attn.{each}_proj.{kind}" for each in "qkv")
        stem, _, kind = part.rpartition(".")
        stem = _INSIDE[stem]
    return (f"{start}{stem}.{kind}" if kind else f"{start}{stem}",)
