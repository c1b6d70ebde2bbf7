"""One door to all encoders, each with the preparation that its pretraining used, and a table of them.

No encoder here computes statistics of a batch. `pocket` has group normalisation; in the others the batch
normalisation keeps the statistics of pretraining as constants, so that a merged model needs none computed
anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import DATA_VARIABLE
from taskvec_mini.benchmarks.encoders import clip
from taskvec_mini.benchmarks.encoders.base import Backbone, TextBackbone
from taskvec_mini.benchmarks.encoders.efficientnet import IMAGE_SIZE, WEIGHTS, load_efficientnet
from taskvec_mini.benchmarks.encoders.minilm import PACKAGE, load_minilm, random_minilm
from taskvec_mini.benchmarks.encoders.mobilenet import MOBILENET_WEIGHTS, load_mobilenet
from taskvec_mini.benchmarks.encoders.pocket import load_pocket, random_pocket
from taskvec_mini.benchmarks.encoders.pocket_text import load_pocket_text, random_pocket_text
from taskvec_mini.benchmarks.encoders.torchvision_models import load_torchvision
from taskvec_mini.errors import MissingFileError, UserError


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What there is to know of an encoder before it is loaded.

    Attributes:
        name: what `load_backbone` is asked for.
        kind: what it takes.
        note: what it is, in a few words.
        load: a function of the path of its weights, or of None, that returns it.
        weights: where its weights are by default: "included" in this package, drawn at "random", in the
            folder of the "data", in a "package" of their own, or downloaded from the "network" on first use.
        parameters: how many it has.
        image_size: the side of its images in pixels; None for texts.
        any_size: whether it takes images of another size as well.
        text_side: what can make zero-shot heads for it: its "own" encoder of texts, as CLIP has one, or a
            tower that is "fitted" to a sentence encoder (`heads.sentence_tower`); None for nothing.
        needs: the modules that have to be installed besides those of this package.
        install: what pip has to be given for them; None for nothing.
    """

    name: str
    kind: Literal["images", "texts"] = "images"
    note: str
    load: Callable[..., Backbone | TextBackbone]
    weights: Literal["included", "random", "data", "package", "network"]
    parameters: int
    image_size: int | None
    any_size: bool = False
    text_side: Literal["own", "fitted"] | None = None
    needs: tuple[str, ...] = ()
    install: str | None = None


def _torchvision(name: str, *, parameters: int, any_size: bool) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        note="torchvision's, pretrained on ImageNet",
        load=partial(load_torchvision, name),
        weights="network",
        parameters=parameters,
        image_size=224,
        any_size=any_size,
        needs=("torchvision",),
        install="torchvision",
    )


def _clip(name: str) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        note="CLIP's through open_clip" + (", a tiny one, not pretrained" if name == clip.TINY else ""),
        load=partial(clip.load_visual, name),
        weights="random" if name == clip.TINY else "network",
        parameters=clip.PARAMETERS[name],
        image_size=32 if name == clip.TINY else 224,
        text_side="own",
        needs=("open_clip",),
        install="taskvec-mini[clip]",
    )


BACKBONES = {
    each.name: each
    for each in (
        BackboneInfo(
            name="pocket",
            note="this project's, pretrained on Tiny ImageNet",
            load=load_pocket,
            weights="included",
            parameters=2_225_696,
            image_size=32,
            any_size=True,
        ),
        BackboneInfo(
            name="random-pocket",
            note="the same, not pretrained",
            load=random_pocket,
            weights="random",
            parameters=2_225_696,
            image_size=32,
            any_size=True,
        ),
        BackboneInfo(
            name="mobilenet",
            note="MobileNetV1 of ImageNet without its last block",
            load=load_mobilenet,
            weights="data",
            parameters=2_136_192,
            image_size=64,
            any_size=True,
        ),
        BackboneInfo(
            name="pocket-text",
            kind="texts",
            note="this project's for texts, pretrained on English prose",
            load=load_pocket_text,
            weights="included",
            parameters=1_625_216,
            image_size=None,
            needs=("tokenizers",),
            install="taskvec-mini[text]",
        ),
        BackboneInfo(
            name="random-pocket-text",
            kind="texts",
            note="the same, not pretrained",
            load=random_pocket_text,
            weights="random",
            parameters=1_625_216,
            image_size=None,
            needs=("tokenizers",),
            install="taskvec-mini[text]",
        ),
        BackboneInfo(
            name="efficientnet-lite0",
            note="EfficientNet-Lite0 of ImageNet through timm",
            load=partial(load_efficientnet, "efficientnet-lite0"),
            weights="package",
            parameters=3_371_008,
            image_size=IMAGE_SIZE,
            any_size=True,
            text_side="fitted",
            needs=("timm", WEIGHTS["efficientnet-lite0"][0]),
            install="taskvec-mini[pretrained]",
        ),
        BackboneInfo(
            name="efficientnet-lite2",
            note="its larger sister",
            load=partial(load_efficientnet, "efficientnet-lite2"),
            weights="package",
            parameters=4_811_072,
            image_size=IMAGE_SIZE,
            any_size=True,
            text_side="fitted",
            needs=("timm", WEIGHTS["efficientnet-lite2"][0]),
            install="taskvec-mini[pretrained]",
        ),
        BackboneInfo(
            name="minilm",
            kind="texts",
            note="all-MiniLM-L6-v2, a sentence encoder, from a package or Hugging Face's Hub",
            load=load_minilm,
            weights="package",
            parameters=22_565_376,
            image_size=None,
            needs=("transformers", PACKAGE),
            install="taskvec-mini[pretrained]",
        ),
        BackboneInfo(
            name="random-minilm",
            kind="texts",
            note="the same, not pretrained",
            load=random_minilm,
            weights="random",
            parameters=22_565_376,
            image_size=None,
            needs=("transformers", PACKAGE),  # for the vocabulary
            install="taskvec-mini[pretrained]",
        ),
        _torchvision("resnet18", parameters=11_176_512, any_size=True),
        _torchvision("resnet50", parameters=23_508_032, any_size=True),
        _torchvision("mobilenet_v3_small", parameters=927_008, any_size=True),
        _torchvision("vit_b_16", parameters=85_798_656, any_size=False),
        _torchvision("vit_b_32", parameters=87_455_232, any_size=False),
        *(_clip(name) for name in clip.PARAMETERS),
    )
}


def backbone_info(name: str) -> BackboneInfo:
    """The row of an encoder in `BACKBONES`.

    Raises:
        UserError: if the name is unknown; near names are suggested.

    Example:
        >>> backbone_info("tiny-clip").parameters
        33280
    """
    clip.refuse_gelu(name)
    return _checks.named_choice("backbone", name, BACKBONES)


def load_backbone(
    name: str = "pocket",
    *,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Backbone | TextBackbone:
    """A pretrained encoder with its preparation, on the CPU.

    "pocket" is this project's small encoder (32 pixels, 256 features), and "random-pocket" is the same, not
    pretrained, with the same numbers at every call. "mobilenet" is an ImageNet MobileNetV1 without its last
    block (64 pixels, 1024 features). "resnet18", "resnet50", "mobilenet_v3_small", "vit_b_16" and "vit_b_32"
    are torchvision's (224 pixels), without their classifier; the first use downloads them.
    "efficientnet-lite0" and "-lite2" are of ImageNet too (96 pixels, or any other size; 1280 features), and
    come as packages, as does "minilm", a sentence encoder (64 tokens, 384 features); "random-minilm" is the
    same, not pretrained.
    "ViT-B-32-quickgelu", "ViT-B-16-quickgelu" and "ViT-L-14-quickgelu" are CLIP's image encoders, and
    "tiny-clip" is a tiny one, not pretrained; see `clip.load_visual`. "pocket-text" is this project's small
    encoder of texts (48 tokens, 128 features), and "random-pocket-text" is the same, not pretrained.

    Args:
        name: one of the above; `BACKBONES` says more of each.
        weights: the weights file. By default this project's own encoders have theirs; for mobilenet it is
            the one in the folder `weights` of the folder of the data; for torchvision's and CLIP's the
            download.
        image_size: another side of the prepared images, in pixels; vision transformers take one size only.
        max_length: the most tokens of a text, for encoders of texts; by default 48 for pocket-text and 64 for
            minilm, which takes up to 512.
        folder: the folder of the data; by default the one that the environment variable TASKVEC_MINI_DATA
            names.

    Raises:
        UserError: if the name is unknown (near names are suggested), or the checksum of the file does not
            fit.
        MissingPackageError: if the library that a model comes from is not installed.
        MissingFileError: if the weights are not there.
        FileError: if a download fails.

    Example:
        >>> load_backbone("random-pocket").features
        256
    """
    info = backbone_info(name)
    if image_size is not None:
        if info.kind == "texts":
            raise UserError(f"{name} takes texts, which have no image_size; leave it out")
        size = _checks.whole_number("image_size", image_size)
        if size != info.image_size and not info.any_size:
            raise UserError(
                f"{name} takes images of {info.image_size} pixels, not {size}; leave image_size out"
            )
    if max_length is not None and info.kind == "images":
        raise UserError(f"{name} takes images, which have no max_length; leave it out")
    path = None if weights is None else Path(weights)
    if path is None and info.weights == "data":
        folder = folder or os.environ.get(DATA_VARIABLE)
        if folder is None:
            raise MissingFileError(
                f"{name} needs its weights {MOBILENET_WEIGHTS}: pass weights=, or set the environment "
                f"variable {DATA_VARIABLE} to the folder whose folder 'weights' holds them"
            )
        path = Path(folder) / "weights" / MOBILENET_WEIGHTS
    backbone = info.load(path)
    if isinstance(backbone, Backbone):
        return backbone if image_size is None else replace(backbone, image_size=image_size)
    if max_length is None:
        return backbone
    if not 3 <= _checks.whole_number("max_length", max_length) <= backbone.longest:
        raise UserError(f"{name} takes texts of 3 to {backbone.longest} tokens, not {max_length}")
    return replace(backbone, max_length=max_length)


def device_of(name: str | None) -> torch.device:
    """The device of this name, by default a GPU where there is one, else the CPU.

    Raises:
        UserError: if there is no such device here.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"--device {name!r} is no device that torch knows; give cpu or cuda, or leave it out"
        ) from error
    kind = torch.accelerator.current_accelerator()
    there = torch.accelerator.device_count() if kind and kind.type == device.type else 0
    if device.type not in ("cpu", "meta") and (device.index or 0) >= there:
        raise UserError(f"--device {name!r}: torch sees no such GPU here; leave --device out, or give cpu")
    return device
