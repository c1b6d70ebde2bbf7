"""The command line for people with models: `python -m taskvec_mini --help`, or `taskvec --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch

from taskvec_mini import _checks, _files, merging, scores
from taskvec_mini._options import named_values, parser_of, request_of, run
from taskvec_mini.errors import UserError

PROGRAM = "python -m taskvec_mini"
OVERVIEW = f"""examples:
  {PROGRAM} diff base cars mnist
  {PROGRAM} merge base cars mnist --scaling-coef 1.0 --out merged
  {PROGRAM} negate base rude --scaling-coef 0.5 --out polite

A model is a folder that save_pretrained wrote, single or sharded, a safetensors file, or a state dict saved
by torch. The first one is what the others were finetuned from. What comes out is a folder of the same layout,
which loads like the first model. All but analogy take the folder of a LoRA adapter in the place of a
finetuned model. Models of any size stream: they are never whole in memory."""
_PRETRAINED = {"help": "what the others were finetuned from", "metavar": "PRETRAINED"}
_EXCLUDE = {
    "help": "pattern of names of tensors to leave as they are in the pretrained model, such as "
    "'classifier.*'; may be repeated",
    "metavar": "PATTERN",
    "nargs": 1,
    "action": "extend",
}
_MIXED = {"help": "take a tensor that has another dtype in another model, rounding and all"}
_DTYPE = {"help": "what weights are written as (default: as in the pretrained model)"}
_OUT = {"help": "folder to make", "metavar": "FOLDER"}
_COEF = {"help": "how much of the vector is added"}
Dtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """Merge finetuned models into one.

    examples:
      python -m taskvec_mini merge base cars mnist
      python -m taskvec_mini merge base cars mnist svhn --rule ties --option density=0.2 --out merged
      python -m taskvec_mini merge base.safetensors cars.safetensors mnist.safetensors --out merged

    The merged model is PRETRAINED plus the scaling coefficient times what the rule makes of the task vectors
    (FINETUNED minus PRETRAINED). For means 1 is a good coefficient, for sums of eight tasks 0.3. A FINETUNED
    may be the folder of a LoRA adapter of PRETRAINED, which is multiplied out first.
    """

    pretrained: Path = field(metadata=_PRETRAINED)
    finetuned: tuple[Path, ...] = field(metadata={"help": "models to merge", "metavar": "FINETUNED"})
    rule: str = field(
        default="mean", metadata={"help": f"one of {', '.join(merging.RULES)}", "metavar": "NAME"}
    )
    option: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "of the rule; may be repeated",
            "metavar": "NAME=VALUE",
            "nargs": 1,
            "action": "extend",
        },
    )
    scaling_coef: float = field(default=1.0, metadata=_COEF)
    seed: int = field(default=0, metadata={"help": "for rules that draw at random"})
    exclude: tuple[str, ...] = field(default=(), metadata=_EXCLUDE)
    mixed_dtypes: bool = field(default=False, metadata=_MIXED)
    dtype: Dtype | None = field(default=None, metadata=_DTYPE)
    out: Path = field(default=Path("merged"), metadata=_OUT)


@dataclass(frozen=True, kw_only=True)
class DiffRequest:
    """Show what finetuned models have changed: norms and cosines, whole and by layer.

    examples:
      python -m taskvec_mini diff base cars
      python -m taskvec_mini diff base cars mnist svhn --figure diff.png

    A norm far above the others, a cosine near 1, or many entries that are unchanged: look before you merge.
    """

    pretrained: Path = field(metadata=_PRETRAINED)
    finetuned: tuple[Path, ...] = field(metadata={"help": "models to look at", "metavar": "FINETUNED"})
    exclude: tuple[str, ...] = field(default=(), metadata=_EXCLUDE)
    mixed_dtypes: bool = field(default=False, metadata=_MIXED)
    figure: Path | None = field(
        default=None, metadata={"help": "draw it too, as png, svg or pdf", "metavar": "FILE"}
    )


@dataclass(frozen=True, kw_only=True)
class NegateRequest:
    """Forget a task: subtract its vector from the pretrained model.

    examples:
      python -m taskvec_mini negate base rude --out polite
      python -m taskvec_mini negate base rude --scaling-coef 0.5 --out polite

    Choose the largest coefficient at which a control task, one to be kept, hardly suffers.
    """

    pretrained: Path = field(metadata=_PRETRAINED)
    finetuned: Path = field(metadata={"help": "finetuned on what is to be forgotten", "metavar": "FINETUNED"})
    scaling_coef: float = field(default=1.0, metadata={"help": "how much of the vector is subtracted"})
    exclude: tuple[str, ...] = field(default=(), metadata=_EXCLUDE)
    mixed_dtypes: bool = field(default=False, metadata=_MIXED)
    dtype: Dtype | None = field(default=None, metadata=_DTYPE)
    out: Path = field(default=Path("negated"), metadata=_OUT)


@dataclass(frozen=True, kw_only=True)
class AnalogyRequest:
    """A is to B as C is to the result: add B minus A to C.

    examples:
      python -m taskvec_mini analogy sketched_lions lions sketched_tigers --out tigers
      python -m taskvec_mini analogy news_2020 news_2024 reviews_2020 --scaling-coef 0.8 --out reviews_2024

    All three were finetuned from one pretrained model. The result has the layout of C.
    """

    first: Path = field(metadata={"help": "the model to subtract", "metavar": "A"})
    second: Path = field(metadata={"help": "the model to add", "metavar": "B"})
    third: Path = field(metadata={"help": "the model to start from", "metavar": "C"})
    scaling_coef: float = field(default=1.0, metadata={"help": "how much of the difference is added"})
    exclude: tuple[str, ...] = field(default=(), metadata=_EXCLUDE)
    mixed_dtypes: bool = field(default=False, metadata=_MIXED)
    dtype: Dtype | None = field(default=None, metadata=_DTYPE)
    out: Path = field(default=Path("analogy"), metadata=_OUT)


COMMANDS: dict[str, type[Any]] = {
    "merge": MergeRequest,
    "diff": DiffRequest,
    "negate": NegateRequest,
    "analogy": AnalogyRequest,
}


def merge(request: MergeRequest) -> dict[str, Any]:
    """Write a merged model.

    Returns:
        The record beside it.

    Raises:
        UserError: as `merging.merge_models` does.
    """
    rule = _checks.named_choice("merging rule", request.rule, merging.RULES)
    options = named_values(request.option, rule.options, what=rule.name)
    seed = _checks.seed("seed", request.seed)
    if rule.draws:
        options["generator"] = torch.Generator().manual_seed(seed)
    return merging.merge_models(
        request.pretrained,
        request.finetuned,
        out=request.out,
        rule=rule.name,
        scaling_coef=request.scaling_coef,
        dtype=_dtype(request.dtype),
        exclude=request.exclude,
        mixed_dtypes=request.mixed_dtypes,
        **options,
    )


def negate(request: NegateRequest) -> dict[str, Any]:
    """Write a model that has forgotten a task.

    Raises:
        UserError: as `merging.negate_model` does.
    """
    return merging.negate_model(
        request.pretrained,
        request.finetuned,
        out=request.out,
        scaling_coef=request.scaling_coef,
        dtype=_dtype(request.dtype),
        exclude=request.exclude,
        mixed_dtypes=request.mixed_dtypes,
    )


def analogy(request: AnalogyRequest) -> dict[str, Any]:
    """Write the model that completes an analogy.

    Raises:
        UserError: as `merging.complete_analogy` does.
    """
    return merging.complete_analogy(
        request.first,
        request.second,
        third=request.third,
        out=request.out,
        scaling_coef=request.scaling_coef,
        dtype=_dtype(request.dtype),
        exclude=request.exclude,
        mixed_dtypes=request.mixed_dtypes,
    )


def diff(request: DiffRequest) -> merging.Differences:
    """Print, and draw if asked to, what finetuned models have changed.

    Raises:
        UserError: as `merging.compare_models` does, or if the figure cannot be written.
    """
    if request.figure is not None and request.figure.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--figure {request.figure} must end in .png, .svg or .pdf")
    found = merging.compare_models(
        request.pretrained,
        request.finetuned,
        exclude=request.exclude,
        mixed_dtypes=request.mixed_dtypes,
    )
    size = sum(found.entries.values())
    start = sum(found.squares.values()) ** 0.5
    unchanged = torch.stack(list(found.unchanged.values())).sum(0).tolist()
    print(f"pretrained model: {size:,} entries, norm {start:.4g}\n")
    rows = {
        model: {
            "norm": norm,
            "% of pretrained": 100 * norm / start if start else float("nan"),
            "% unchanged": 100 * zeros / size,
        }
        for model, norm, zeros in zip(found.models, found.norms().tolist(), unchanged, strict=True)
    }
    print(scores.table(rows, index="task vector"))
    pairs = list(combinations(range(len(found.models)), 2))
    if pairs:
        cosines = found.cosines().tolist()
        print("\ncosines")
        by_name = {
            model: dict(zip(found.models, row, strict=True))
            for model, row in zip(found.models, cosines, strict=True)
        }
        print(scores.table(by_name))
    print("\nby layer: norms" + (", and the mean cosine of all pairs" if pairs else ""))
    layers: dict[str, dict[str, object]] = {}
    for number, (layer, entries) in enumerate(found.entries.items()):
        norms = dict(zip(found.models, found.norms(layer).tolist(), strict=True))
        layers[layer] = {"number": number, "entries": entries, **norms}
        if pairs:
            apart = found.cosines(layer)
            layers[layer]["cosine"] = sum(float(apart[a, b]) for a, b in pairs) / len(pairs)
    print(scores.table(layers, index="layer"))
    if request.figure is not None:
        # a panel with the norm of each vector by layer, and one with the cosine of each pair
        from taskvec_mini import figures  # matplotlib is slow to load

        figures.use_book_style()
        panels = {
            "norm of the task vector": {
                model: [[float(found.norms(layer)[number])] for layer in layers]
                for number, model in enumerate(found.models)
            }
        }
        if pairs:
            panels["cosine"] = {}
            for a, b in pairs:
                name = f"{found.models[a]} · {found.models[b]}"
                panels["cosine"][name] = [[float(found.cosines(layer)[a, b])] for layer in layers]
        figure = figures.draw_bands(range(len(layers)), panels, xlabel="layer, by its number in the table")
        with _files.replacing(request.figure) as place:
            figure.savefig(place)
        print(f"\nfigure: {request.figure}")
    return found


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


FUNCTIONS: dict[type, Callable[[Any], object]] = {
    MergeRequest: merge,
    DiffRequest: diff,
    NegateRequest: negate,
    AnalogyRequest: analogy,
}


def parse(arguments: Sequence[str]) -> Any:
    """The request of a command line.

    Raises:
        SystemExit: for `--help`, and where a command or option is unknown or a value of the wrong kind.

    Example:
        >>> [path.name for path in parse(["merge", "base", "cars", "mnist"]).finetuned]
        ['cars', 'mnist']
    """
    does = "Merge finetuned models, look at what they changed, forget tasks, complete analogies."
    parser = parser_of(COMMANDS, program=PROGRAM, does=does, overview=OVERVIEW)
    given = vars(parser.parse_args(arguments))
    return request_of(COMMANDS[given["command"]], given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0, or 2 after an error that a user can put right: one line.

    Any other error is a bug, and comes through with its traceback.

    Args:
        arguments: what follows the program's name; by default what this process was called with.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return run(arguments, parse=parse, functions=FUNCTIONS, stopped="stopped; nothing is left behind")
