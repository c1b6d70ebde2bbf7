"""Zero-shot heads: class vectors that an encoder of texts makes of words, before any image is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.benchmarks.encoders import BACKBONES, backbone_info, clip
from taskvec_mini.benchmarks.heads.base import PrototypeHead
from taskvec_mini.benchmarks.heads.fitted import LOGIT_SCALE
from taskvec_mini.benchmarks.heads.sentences import SentenceTower, sentence_tower
from taskvec_mini.benchmarks.heads.templates import templates_for, words_for
from taskvec_mini.errors import InputTypeError, UserError

KINDS = ("zero-shot", "prototypes")


def kind_of(backbone: str, wanted: str | None = None) -> str:
    """The kind of head an encoder gets: the one wanted, else zero-shot for CLIP's, prototypes for others.

    Raises:
        UserError: if there is no such kind, or zero-shot is wanted of an encoder that has no text side.

    Example:
        >>> kind_of("tiny-clip"), kind_of("tiny-clip", "prototypes"), kind_of("pocket")
        ('zero-shot', 'prototypes', 'prototypes')
    """
    info = backbone_info(backbone)
    if wanted is None:
        return "zero-shot" if info.text_side == "own" else "prototypes"
    _checks.named_choice("kind of heads", wanted, dict.fromkeys(KINDS))
    if wanted == "zero-shot" and not info.text_side:
        able = ", ".join(name for name, each in BACKBONES.items() if each.text_side)
        raise UserError(
            f"{backbone} has no text encoder, which zero-shot heads are made with; take --heads prototypes, "
            f"or an encoder that has one: {able}"
        )
    return wanted


def zero_shot_head(
    model: str | nn.Module | SentenceTower,
    task: Task,
    *,
    templates: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> PrototypeHead:
    """The frozen head of a task from texts alone (Radford et al. 2021, arXiv:2103.00020, section 3.1).

    Each class fills every template; the texts are embedded and brought to length one; the direction of their
    mean is the class vector. The factor of the logits is CLIP's own, or that of `prototype_head` for a
    sentence tower; the centre is zero. No image and no label plays a part.

    Args:
        model: the name of a CLIP model, or the model itself with both encoders, from `clip.load_clip`; or a
            sentence tower, or the name of an encoder that can have one. By name it is loaded and dropped
            again: for several tasks, load it once. `save_head` keeps a head for machines that shall not load
            the text encoder.
        task: the names of its classes are read, and with its own name our templates are looked up.
        templates: texts with one `{}`, where the class goes; by default ours.
        device: where a model that is loaded by name embeds the texts.

    Raises:
        UserError: if there is no such model, there are no templates for the task, one has not exactly one
            `{}`, or a filled one is too long for the model.
        InputTypeError: if the model has no text encoder.
        FileError: if the weights cannot be read or downloaded.
        MissingPackageError: if open_clip is not installed.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> task = load_tasks(["digits"], suite="digits", limit=9)["digits"]
        >>> zero_shot_head("tiny-clip", task).prototypes.shape
        torch.Size([10, 32])
    """
    texts = templates_for(task, templates)  # before a model is loaded, which takes time
    if isinstance(model, str) and backbone_info(model).text_side == "fitted":
        model = sentence_tower(model)
    if isinstance(model, SentenceTower):
        prototypes = model.directions(words_for(task), templates=texts)
        return PrototypeHead(prototypes, torch.zeros_like(prototypes[0]), LOGIT_SCALE)
    both: Any = clip.load_clip(model).to(device) if isinstance(model, str) else model
    if not hasattr(both, "encode_text"):
        raise InputTypeError(
            f"a zero-shot head needs both encoders of a CLIP model, got {type(both).__name__}; "
            "clip.load_clip(name) loads them"
        )
    length: int = both.context_length

    def tokens_of(texts: list[str]) -> Tensor:
        """CLIP's own tokenizer would cut texts of more tokens than this without a word."""
        tokens: Tensor = clip.open_clip().tokenize(texts, length)
        full = tokens[:, -1].nonzero()
        if len(full):
            raise UserError(
                f"the text {texts[int(full[0])]!r} does not fit into the {length} tokens of the model; "
                "shorten the template or the name of the class"
            )
        return tokens

    columns: Tensor = clip.open_clip().build_zero_shot_classifier(
        both, tokens_of, words_for(task), texts, device=next(both.parameters()).device
    )
    prototypes = columns.T.float().contiguous()
    return PrototypeHead(prototypes, torch.zeros_like(prototypes[0]), float(both.logit_scale.detach().exp()))
