"""Task vectors of LoRA adapters: what PEFT saves, multiplied out.

A LoRA adapter (Hu et al., ICLR 2022, arXiv:2106.09685) holds two thin factors for each matrix that it
changes; the change is their product, ΔW = s·BA. Two adapters are merged by the sum of their products,
Σ s·BA. Sums of factors are another thing: (ΣB)(ΣA) has cross terms, and -1 times both factors is the same
adapter again. So the products come first; then they are task vectors like others, for every rule.

    >>> vectors = adapter_vectors(["cars-lora", "dtd-lora"], pretrained)  # doctest: +SKIP
    >>> merged = ties(vectors).apply_to(pretrained)  # doctest: +SKIP
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec_mini import _checks, _files, _memory, _states
from taskvec_mini._states import Model
from taskvec_mini.errors import InputTypeError, MissingFileError, UserError
from taskvec_mini.vectors import TaskVector

_PREFIX = "base_model.model."  # what PEFT puts in front of the names of the model
_IN_PEFT = "merge it with peft itself, model.merge_and_unload(), and take the difference of the models"
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<bias>\.bias)?(\.weight)?"
)
_UNDERSTOOD = {  # the settings that `difference` follows, and those that change training and not the product
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
    "fan_in_fan_out", "bias", "modules_to_save", "peft_type", "init_lora_weights", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "task_type", "inference_mode",
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "megatron_core",
    "qalora_group_size", "eva_config", "loftq_config", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_UNTIE = (
    "untie the model first (a copy under each name in its file, and tie_word_embeddings false in its "
    "config.json) and merge the folders"
)
_LANGUAGE_MODEL = re.compile("CausalLM|LMHead|MaskedLM|ConditionalGeneration|PreTraining|DoubleHeads")
_OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts that change the base's weights


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as PEFT saves it: which tensors of its base model it changes, and by how much.

    Attributes:
        folder: where it lies.
        config: what its adapter_config.json says.
        factors: the factors of each changed tensor of the base model, by its name.
        saved: tensors of the base model that were trained whole, by their names: biases, saved modules.
        beneath: those of `saved` that lie beneath factors. PEFT writes them into the base model's own tensor;
            a saved module has a tensor of its own instead, also where the base model's is tied to another.
        sha256: of the file of its weights.
    """

    folder: Path
    config: dict[str, Any]
    factors: dict[str, dict[str, Tensor]]
    saved: dict[str, Tensor] = field(default_factory=dict)
    beneath: frozenset[str] = frozenset()
    sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the base model that it changes."""
        return tuple(dict.fromkeys([*self.saved, *self.factors]))

    def scaling(self, name: str) -> float:
        """What the product of the factors is multiplied by: α/r, or α/√r with rank-stabilised LoRA.

        Raises:
            UserError: if the rank in the configuration is not that of the factors.
        """
        module = name.rpartition(".")[0]
        rank = _by_pattern(self.config.get("rank_pattern"), module, default=self.config["r"])
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, default=self.config["lora_alpha"])
        first = self.factors[name].get("lora_A", self.factors[name].get("lora_embedding_A"))
        if first is not None and len(first) != rank:
            raise UserError(
                f"{self.folder}: adapter_config.json gives {module!r} the rank {rank}, but its factors have "
                f"{len(first)}; copy both files of the adapter again, from one run"
            )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, which it holds in memory."""
        tensors = [tensor for parts in self.factors.values() for tensor in parts.values()]
        return sum(tensor.nbytes for tensor in [*tensors, *self.saved.values()])

    def difference(self, name: str, start: Tensor, *, transposed: bool | None = None) -> Tensor:
        """What the adapter adds to one tensor, in float64 and in its shape.

        Args:
            name: one of `names`.
            start: the tensor of the base model. DoRA and tensors trained whole need its entries, the others
                only its shape.
            transposed: whether the matrix is stored as (in, out), as GPT-2's are. None goes by the shape,
                and where that is square by the configuration.

        Raises:
            UserError: if the factors do not fit the shape.
        """
        shape = tuple(start.shape)
        rows = start.reshape(shape or (1,))
        return self.rows_of_difference(name, rows, shape=shape, transposed=transposed).reshape(shape)

    def rows_of_difference(
        self,
        name: str,
        start: Tensor,
        *,
        shape: tuple[int, ...],
        first: int = 0,
        transposed: bool | None = None,
    ) -> Tensor:
        """Some rows of `difference`, (k, ...) in float64, from the row number `first` on.

        Args:
            name: one of `names`.
            start: these rows (k, ...) of the base model's tensor; all of them where `needs_all_rows`.
            shape: of the whole tensor.
            first: the first of them.
            transposed: as in `difference`.

        Raises:
            UserError: if the factors do not fit the shape.
        """
        turned = self._is_turned(name, shape, transposed=transposed)
        rows = slice(first, first + len(start))
        base = start.detach().double()
        trained = torch.zeros((), dtype=torch.float64)
        if name in self.saved:
            saved = self.saved[name].reshape(shape or (1,))[rows].double()
            trained = saved - base
            base = saved
        factors = self.factors.get(name)
        if factors is None:
            return trained
        if "bias" in factors:
            return factors["bias"][rows].double() * self.scaling(name) + trained
        left, right = self._matrices(name)
        left, right = (left, right[:, rows]) if turned else (left[rows], right)
        product = (left.double() @ right.double()).mul_(self.scaling(name))
        if "lora_magnitude_vector" in factors:  # DoRA learns the length of each row apart from its direction
            lengths = factors["lora_magnitude_vector"].double().reshape(-1, 1)
            matrix = base.T if turned else base.flatten(1)
            product += matrix
            product *= (lengths if turned else lengths[rows]) / product.norm(dim=1, keepdim=True)
            product -= matrix
        return (product.T if turned else product.reshape(start.shape)).add_(trained)

    def needs_all_rows(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a row of `difference` depends on all others: with DoRA on a transposed matrix it does."""
        return "lora_magnitude_vector" in self.factors.get(name, {}) and self._is_turned(name, shape)

    def check_fit(self, name: str, shape: tuple[int, ...]) -> None:
        """An error unless what it has for one of its `names` fits a tensor of this shape."""
        self._is_turned(name, shape)
        if name in self.factors:
            self.scaling(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the base model's tensor, as far as the adapter knows: that of a linear layer."""
        whole = self.saved.get(name, self.factors.get(name, {}).get("bias"))
        if whole is not None:
            return tuple(whole.shape)
        left, right = self._matrices(name)
        shape = (len(left), right.shape[1])
        return shape[::-1] if "lora_embedding_A" in self.factors[name] else shape

    def _matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """B (out, rank) and A (rank, in) of one matrix; a convolution's are flattened."""
        factors = self.factors[name]
        kind = "lora_embedding_" if "lora_embedding_A" in factors else "lora_"
        left, right = (factors[f"{kind}{factor}"].flatten(1) for factor in "BA")
        if left.shape[1] != len(right):
            raise UserError(
                f"{self.folder}: the factors of {name!r} do not fit together; those of a convolution in "
                "groups do not, and peft merges them no more than this library: train the adapter without it"
            )
        return left, right

    def _is_turned(self, name: str, shape: tuple[int, ...], *, transposed: bool | None = None) -> bool:
        """Whether a tensor holds its matrix as (in, out): its shape says it, or else the configuration.

        Raises:
            UserError: if what the adapter has does not fit the shape.
        """
        factors = self.factors.get(name, {})
        for whole in (self.saved.get(name), factors.get("bias")):
            if whole is None:
                continue
            if whole.ndim == len(shape) == 2 and whole.shape != shape and whole.shape[1] == shape[1]:
                raise UserError(
                    f"shapes differ at {name!r}: {shape} in pretrained against {tuple(whole.shape)} in "
                    f"{self.folder}; if a vocabulary grew, give the pretrained model the same new rows "
                    f"(model.resize_token_embeddings({len(whole)}))"
                )
            _checks.check_shapes(f"{name} in {self.folder}", shape, tuple(whole.shape))
        if not factors or "bias" in factors:
            return False
        left, right = self._matrices(name)
        found = (len(left), right.shape[1])
        turned = "lora_embedding_A" in factors or transposed
        if turned is None and len(shape) == 2:
            square = found[0] == found[1]
            turned = bool(self.config.get("fan_in_fan_out")) if square else shape == found[::-1]
        if (shape[::-1] if turned else (*shape[:1], math.prod(shape[1:]))) != found:
            raise UserError(
                f"shapes differ at {name!r}: {shape} in pretrained, but the adapter in "
                f"{self.folder} changes a matrix {found}; give the model that it was trained on"
            )
        return bool(turned)


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The LoRA adapter in a folder that PEFT's `save_pretrained` wrote.

    Raises:
        MissingFileError: if the folder lacks a file.
        UserError: if a file is damaged, or the two do not belong together.
        InputTypeError: if the adapter is of another kind than LoRA, or has a setting that changes more than
            the product of its factors says; the message names it.
    """
    place = Path(folder)
    again = "give a folder that save_pretrained of a PEFT model wrote"
    config = _files.read_json(place / "adapter_config.json", what="configuration of an adapter", remedy=again)
    if config.get("peft_type") != "LORA":
        raise InputTypeError(f"{place} is an adapter of the kind {config.get('peft_type')!r}; {_IN_PEFT}")
    odd = sorted(name for name, value in config.items() if value and name not in _UNDERSTOOD)
    if odd:
        raise InputTypeError(
            f"{place}: the setting {odd[0]}={config[odd[0]]!r} changes the model in a way that is not "
            f"multiplied out here; {_IN_PEFT}"
        )
    begin = str(config.get("init_lora_weights")).lower()
    if begin.startswith(_OF_ANOTHER_BASE):
        raise InputTypeError(
            f"{place}: with init_lora_weights={begin!r} training began from changed weights of the base "
            f"model, so the factors are no difference to the base model itself; {_IN_PEFT}"
        )
    tensors, file = _adapter_tensors(place, remedy=again)
    factors: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    beneath = set()
    for key, tensor in tensors.items():
        if not key.startswith(_PREFIX):
            raise UserError(f"{file} holds {key!r}, which does not begin with {_PREFIX!r}; {again}")
        name = key.removeprefix(_PREFIX)
        found = _FACTOR.fullmatch(name)
        if found and found["bias"]:
            factors.setdefault(f"{found['module']}.bias", {})["bias"] = tensor
        elif found:
            factors.setdefault(f"{found['module']}.weight", {})[found["factor"]] = tensor
        else:
            plain = name.replace(".base_layer.", ".")
            saved[plain] = tensor
            if plain != name:
                beneath.add(plain)
    for name, parts in factors.items():
        pairs = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}, {"bias"})
        if set(parts) - {"lora_magnitude_vector"} not in pairs:
            raise UserError(f"{file} holds only {sorted(parts)} of {name!r}; copy the adapter again")
    return Adapter(place, config, factors, saved, frozenset(beneath), sha256=_files.sha256(file))


def adapter_vectors(folders: Iterable[str | os.PathLike[str]], pretrained: Model) -> list[TaskVector]:
    """The task vectors of T adapters of one model: all of one layout, ready for the merging rules.

    The layout has the tensors that any of the adapters changes, in the order of the model; where an adapter
    leaves one alone, its vector is 0. All other tensors are in `carried`. So TIES and DARE rank and drop the
    entries that adapters change and no others, and `apply_to` still takes the whole model.

    Args:
        folders: T folders that PEFT wrote.
        pretrained: the base model, a module or its state dict.

    Returns:
        T vectors in float32, or in float64 for a model in float64. Products are computed in float64 and
        rounded once. Each has the folder's name and the hash of its weights in `about`.

    Raises:
        UserError: as `read_adapter` does; if an adapter changes what the model does not have; if shapes
            differ; if only the module, not its state dict, tells whether a square matrix is transposed.
    """
    adapters = [read_adapter(folder) for folder in _checks.not_empty("the list of adapters", folders)]
    full = _states.full_state(pretrained)[0]
    whole = {name: part for name, part in full.items() if isinstance(part, Tensor)}  # a module may keep more
    for name, part in whole.items():
        _states.check_supported(name, part)
    state: Mapping[str, Tensor] = whole
    shapes = {name: tuple(part.shape) for name, part in whole.items()}
    plain = [{name: name for name in adapter.names} for adapter in adapters]
    if isinstance(pretrained, nn.Module):
        state = {name: part.detach() for name, part in pretrained.named_parameters()}
        known = {name for name, _ in pretrained.named_parameters(remove_duplicate=False)}
    else:
        plain = [
            without_hidden_names(adapter, own, shapes=shapes, config={})
            for adapter, own in zip(adapters, plain, strict=True)
        ]
        known = set(whole)
    for adapter, own in zip(adapters, plain, strict=True):
        check_names(adapter, own, known)
    tied = _tied_names(adapters, plain, whole=whole)
    for adapter, own in zip(adapters, plain, strict=True):
        check_ties(adapter, tied, own=own)
    first = {name: group[0] for group in tied for name in group}
    owned = [{first.get(name, name): each for name, each in own.items()} for own in plain]
    changed = {name for own in owned for name in own}
    names = [name for name in state if name in changed]
    for name in names:
        if not state[name].is_floating_point():
            raise InputTypeError(
                f"{name!r} is {state[name].dtype} in pretrained; give the base model with floating-point "
                "weights, as it was before quantisation"
            )
    layout = tuple((name, tuple(state[name].shape)) for name in names)
    wide = torch.float64 if any(state[name].dtype == torch.float64 for name in names) else torch.float32
    vectors = []
    for adapter, own in zip(adapters, owned, strict=True):
        orientations: dict[str, bool] = {}  # which matrices are stored as (in, out), where a module tells
        if isinstance(pretrained, nn.Module):
            modules = dict(pretrained.named_modules())
            orientations = {
                name: type(modules[name.rpartition(".")[0]]).__name__ == "Conv1D"
                for name, factors in adapter.factors.items()
                if "lora_A" in factors
            }
        else:
            check_orientations(adapter, {own[name]: shapes[name] for name in own})
        flat = _memory.empty(
            (sum(math.prod(shape) for _, shape in layout),), dtype=wide, device=state[names[0]].device
        )
        flat.zero_()
        place = 0
        for name, shape in layout:
            size = math.prod(shape)
            if name in own:
                turned = orientations.get(own[name])
                part = adapter.difference(own[name], state[name].cpu(), transposed=turned)
                flat[place : place + size] = part.reshape(-1)
            place += size
        _checks.check_finite(f"the difference of the adapter in {adapter.folder}", flat)
        carried = [name for name in state if name not in changed]
        about = {"adapter": adapter.folder.name, "sha256": adapter.sha256}
        vectors.append(TaskVector._made(flat, layout, carried, about=about))
    return vectors


def adapter_vector(folder: str | os.PathLike[str], pretrained: Model) -> TaskVector:
    """The task vector of one adapter: what `apply_to` adds to its base model is what PEFT merges into it.

    Arguments and errors are those of `adapter_vectors`. To merge several adapters, give that one all of them:
    then the vectors share a layout even if the adapters change different tensors.
    """
    return adapter_vectors([folder], pretrained)[0]


def _adapter_tensors(folder: Path, *, remedy: str) -> tuple[dict[str, Tensor], Path]:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        with _files.opened_safetensors(file, what="adapter", remedy=remedy) as stored:
            return {name: stored.get_tensor(name).clone() for name in stored.keys()}, file  # noqa: SIM118
    file = folder / "adapter_model.bin"
    if not file.is_file():
        raise MissingFileError(f"{folder} holds no adapter_model.safetensors; {remedy}")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{file} is damaged or holds more than tensors, and is not loaded; {remedy}"
        ) from error
    _checks.named_tensors(str(file), tensors)
    return tensors, file


def check_names(adapter: Adapter, names: Collection[str], known: Collection[str]) -> None:
    """An error unless the model has the names that an adapter changes; both as the model calls them.

    Raises:
        UserError: it names the first that is missing, and the remedy.
    """
    missing = [name for name in names if name not in known]
    if not missing:
        return
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    found = [
        name
        for name in known
        if "." in name and (name.endswith(f".{missing[0]}") or missing[0].endswith(f".{name}"))
    ]
    remedy = f"give the model that it was trained on, or {_IN_PEFT}"
    if found:
        remedy = (
            f"pretrained calls it {found[0]!r}: give the model of the class that the adapter was trained on, "
            "whose names have the same beginning"
        )
    raise UserError(
        f"the adapter in {adapter.folder} changes {missing[0]!r}{more}, which pretrained does not have; "
        f"{remedy}"
    )


def check_ties(adapter: Adapter, tied: Iterable[Sequence[str]], *, own: Mapping[str, str]) -> None:
    """An error where weights are tied in the model and would come apart with the adapter.

    PEFT adds a product to the one tensor that all tied names stand for, and writes into it what it saved
    beneath the factors. A module that was trained whole it puts in the place of one name alone; and two
    products under two names it adds up.

    Args:
        adapter: the adapter.
        tied: groups of names that stand for one tensor. A name by itself is tied to one that is not there.
        own: from the names in the model to those that the adapter knows.

    Raises:
        UserError: it names the weights, and the remedy.
    """
    for names in tied:
        changed = [name for name in names if name in own]
        whole = [own[name] for name in changed if own[name] in adapter.saved]
        apart = [adapter.saved[name] for name in whole if name not in adapter.beneath]
        alike = len(apart) == max(2, len(names)) and all(torch.equal(each, apart[0]) for each in apart)
        products = [name for name in changed if own[name] in adapter.factors]
        if (apart and not alike) or (apart and products) or len(products) > 1:
            what = f"{' and '.join(map(repr, names))} are one tensor"
            if len(names) == 1:
                what = f"{names[0]!r} is the input embedding and the output head in one"
            raise UserError(
                f"the adapter in {adapter.folder} changes {changed[0]!r} as a tensor of its own, but in "
                f"pretrained {what} (tied weights); {_UNTIE}"
            )


def without_hidden_names(
    adapter: Adapter,
    own: Mapping[str, str],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> dict[str, str]:
    """From a model's names to an adapter's, without those that the model lacks because they are tied.

    A language model's file may hold its table of words once, for the input embedding and for the output head,
    and an adapter may change it under either name. Whether it is so can only be told from the model's class.

    Args:
        adapter: the adapter.
        own: from the model's names, also those that it lacks, to those that the adapter knows.
        shapes: of all tensors that the model holds.
        config: what its config.json says, if there is one.

    Raises:
        UserError: where the two names would come apart with the adapter; see `check_ties`.
    """
    names = dict(own)
    table = _shared_table(adapter, shapes, config=config)
    if table is not None:
        hidden = [name for name in own if name not in shapes and adapter.shape(own[name]) == shapes[table]]
        check_ties(adapter, [[table, *hidden]], own=own)
        for name in hidden:
            names.setdefault(table, names.pop(name))
    for name, known in own.items():
        if name in names and name not in shapes and known in adapter.saved and known not in adapter.factors:
            twins = [each for each in names if each in shapes and own.get(each) in adapter.saved]
            if any(torch.equal(adapter.saved[known], adapter.saved[own[each]]) for each in twins):
                del names[name]
    return names


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether a config.json says that input embedding and output head are one; None where it is silent."""
    said = [
        bool(part["tie_word_embeddings"])
        for part in (config, config.get("text_config") or {})
        if part.get("tie_word_embeddings") is not None
    ]
    return any(said) if said else None


def _shared_table(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], *, config: Mapping[str, Any]
) -> str | None:
    """The one table of words of a language model that holds it once, for both of its ends; else None."""
    trained = (adapter.config.get("auto_mapping") or {}).get("base_model_class")
    kinds = [trained] if trained else config.get("architectures") or []
    task = adapter.config.get("task_type")
    if task in {None, "FEATURE_EXTRACTION"}:
        speaks = any(_LANGUAGE_MODEL.search(kind) for kind in kinds)
    else:
        speaks = task in {"CAUSAL_LM", "SEQ_2_SEQ_LM"}
    if not speaks or is_tied(config) is False:
        return None
    outside = {  # of the stacks of blocks, whose names have numbers
        name: shape for name, shape in shapes.items() if len(shape) == 2 and not re.search(r"\.\d+\.", name)
    }
    words = (config.get("text_config") or {}).get("vocab_size") or config.get("vocab_size")
    if words is None:
        words = max((shape[0] for shape in outside.values()), default=0)
    tables = [name for name, shape in outside.items() if shape[0] == words]
    return tables[0] if len(tables) == 1 else None


def _tied_names(
    adapters: list[Adapter], owned: list[dict[str, str]], *, whole: Mapping[str, Tensor]
) -> list[list[str]]:
    """Groups of names that stand for one table, in the order of the model, where an adapter changes it."""
    tables = {  # ties begin at one; to look for copies of every matrix would take long
        name: None
        for adapter, own in zip(adapters, owned, strict=True)
        for name, known in own.items()
        if whole[name].ndim > 1 and (known in adapter.saved or "lora_embedding_A" in adapter.factors[known])
    }
    groups: list[set[str]] = []
    for pair in _states.copies(whole, tables, others=whole).items():
        group = next((each for each in groups if not each.isdisjoint(pair)), None)
        if group is None:
            groups.append(set(pair))
        else:
            group.update(pair)
    return [[name for name in whole if name in group] for group in groups]


def check_orientations(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """An error where nothing tells which square matrices a state dict holds as (in, out).

    Args:
        adapter: the adapter.
        shapes: of the tensors that it changes, by the names that it knows.

    Raises:
        UserError: it names the matrices, and the remedy.
    """
    configured = bool(adapter.config.get("fan_in_fan_out"))
    matrices = [
        name
        for name, parts in adapter.factors.items()
        if "lora_A" in parts and len(shapes.get(name, ())) == 2
    ]
    square = [name for name in matrices if shapes[name][0] == shapes[name][1]]
    others = [name for name in matrices if name not in square]
    for name in others:
        factors = adapter.factors[name]
        shape = (len(factors["lora_B"]), factors["lora_A"].shape[1])
        if square and shapes[name] in {shape, shape[::-1]} and (shapes[name] == shape) == configured:
            raise UserError(
                f"{adapter.folder}: fan_in_fan_out={configured} does not hold for {name!r}, so it may not "
                f"hold for the square {square[0]!r} either; give the module instead of its state dict, in "
                "Python, or merge the adapter with peft itself"
            )


def _by_pattern(patterns: Mapping[str, float] | None, module: str, *, default: float) -> float:
    """The value of the first pattern that fits the end of a module's name, as PEFT looks them up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
