"""The command line: commands and options, with what `--help` says about each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from taskvec_mini.benchmarks.cli import words as _cli_words
from taskvec_mini.benchmarks.cli.throughput import add_engine, add_micro_batch, add_speed, add_throughput

SETTINGS = (  # of numbers; the defaults are those of `finetuning.Settings`, but for the learning rate
    ("learning-rate", float, "step size (default: 1e-4)"),
    ("batch-size", int, "images, or texts, in a step (default: 128)"),
    ("weight-decay", float, "decoupled for adamw, added to the gradient for the others (default: 0)"),
    ("momentum", float, "of sgd and gd (default: 0)"),
    ("warmup-steps", int, "steps until the learning rate is full (default: 0)"),
    ("clip-norm", float, "gradients longer than this are scaled down to it (default: none)"),
)
SCALING_COEFS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
_LOOK: dict[str, Any] = {
    "allow_abbrev": False,  # so that a recorded command means the same when options are added
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    does = "Finetune encoders on real tasks, merge what they learnt, and measure the result."
    main = argparse.ArgumentParser(
        prog=_cli_words.PROGRAM, description=does, epilog=_cli_words.OVERVIEW, **_LOOK
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, does, epilog) in COMMANDS.items():
        sentence = f"{does[0].upper()}{does[1:]}."
        command = commands.add_parser(name, help=does, description=sentence, epilog=epilog, **_LOOK)
        add(command)
        command.add_argument("--debug", action="store_true", help="show where in the code an error came from")
    return main


def _add_finetune(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--suite",
        default="bundle",
        choices=["bundle", "torchvision", "hub", "digits", "text", "text-hub"],
        help="bundle: real images in the folder --data; torchvision: downloaded into it; "
        "hub: the benchmarks of CLIP merging, downloaded into its folder `hub`; "
        "digits: small digits, no files needed; text: texts in the folder `text` of --data; "
        "text-hub: downloaded from Hugging Face (default: bundle)",
    )
    command.add_argument(
        "--backbone",
        metavar="NAME",
        help="the encoder; see `list` (default: pocket, for texts pocket-text)",
    )
    command.add_argument(
        "--heads",
        choices=["zero-shot", "prototypes"],
        help="what turns embeddings into classes, and stays frozen; zero-shot: CLIP's own, from texts about "
        "the classes; prototypes: the mean training image, or text, of each class "
        "(default: zero-shot for CLIP, prototypes for all other encoders)",
    )
    _add_tasks(command, "all of the suite")
    command.add_argument(
        "--epochs", type=int, default=1, metavar="N", help="passes over the training part (default: 1)"
    )
    _add_runs(command, "--out", "folder of the runs, made if need be")
    _add_data(command)
    _add_device(command)
    command.add_argument(
        "--limit", type=int, metavar="N", help="at most N training images, or texts, of each task"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of splits and of the order in training (default: 0)"
    )
    _add_settings(command.add_argument_group("settings of finetuning"))
    add_speed(command.add_argument_group("speed; with another rounding a run is another run"))
    add_engine(command.add_argument_group("where it runs"))


def _add_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--optimizer",
        choices=["adamw", "sgd", "gd"],
        default="adamw",
        help="gd: one full-batch step an epoch (default: adamw)",
    )
    for name, kind, words in SETTINGS:
        group.add_argument(f"--{name}", type=kind, metavar="X", help=words)
    group.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default="constant",
        help="of the learning rate (default: constant)",
    )
    group.add_argument(
        "--centre",
        choices=["frozen", "batch"],
        default="frozen",
        help="of the heads; batch: judge with `evaluate --recentre` (default: frozen)",
    )
    group.set_defaults(learning_rate=1e-4)


def _add_merge(command: argparse.ArgumentParser) -> None:
    _add_runs(command, "--runs", "folder that `finetune` wrote")
    _add_tasks(command, "all that have runs")
    _add_epoch(command, "whose weights are merged")
    command.add_argument(
        "--rule", default="task_arithmetic", metavar="NAME", help="see `list` (default: task_arithmetic)"
    )
    command.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the rule; may be repeated"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for rules that draw at random (default: 0)"
    )
    _add_vector(command, "--out", "where the merged task vector goes")
    _add_data(command)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_runs(command, "--runs", "folder that `finetune` wrote")
    _add_vector(command, "--vector", "the file that `merge` wrote")
    scale = command.add_mutually_exclusive_group(required=True)
    scale.add_argument("--scaling-coef", type=float, metavar="X", help="how much of the vector is added")
    scale.add_argument(
        "--tune",
        type=float,
        nargs="*",
        metavar="X",
        help="find that on the validation part: the best of these or, without numbers, of "
        f"{len(SCALING_COEFS)} from {SCALING_COEFS[0]} to {SCALING_COEFS[-1]:g}",
    )
    _add_tasks(command, "all that have runs")
    _add_epoch(command, "of the individually finetuned encoders beside it")
    command.add_argument(
        "--split",
        choices=["test", "val"],
        default="test",
        help="the part that the table is about (default: test)",
    )
    command.add_argument(
        "--recentre",
        type=int,
        default=0,
        metavar="N",
        help="centre the heads anew on N training images, or texts, without labels "
        "(default: 0, frozen heads)",
    )
    _add_data(command)
    _add_device(command)


def _add_record(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="STUDY", help="its name; see `list`")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="the record (default: book/recorded/STUDY.json)"
    )
    _add_data(command)
    _add_clip(command.add_argument_group("options of the study `clip` alone"))


def _add_clip(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--budget-minutes", type=float, metavar="X", help="do what fits into so many (default: 60)"
    )
    group.add_argument(
        "--gpu", action="store_true", help="on an NVIDIA GPU, one a worker; in bfloat16 where it has that"
    )
    group.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="checkpoints; the same command goes on from there (default: local/studies/BACKBONE)",
    )
    group.add_argument(
        "--backbone", metavar="NAME", help="a CLIP model; see `list` (default: ViT-B-32-quickgelu)"
    )
    group.add_argument(
        "--suite", choices=["hub", "bundle", "digits"], help="where the images come from (default: hub)"
    )
    _add_tasks(group, "the first eight of the suite")
    group.add_argument(
        "--joint",
        action="store_true",
        help="also train one encoder on all tasks, for about as much training again",
    )
    add_micro_batch(group, "as many as fit the device")
    add_engine(group)
    group.set_defaults(engine=None)  # only what was asked for stands in the record's command


def _add_throughput(command: argparse.ArgumentParser) -> None:
    add_throughput(command)
    _add_device(command)


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of the data (default: the environment variable TASKVEC_MINI_DATA)",
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", metavar="NAME", help="cpu, cuda ... (default: cuda where there is one, else cpu)"
    )


def _add_vector(command: argparse.ArgumentParser, name: str, words: str) -> None:
    command.add_argument(
        name,
        type=Path,
        default=Path("local/merged.safetensors"),
        metavar="FILE",
        help=f"{words} (default: local/merged.safetensors)",
    )


def _add_runs(command: argparse.ArgumentParser, name: str, words: str) -> None:
    command.add_argument(
        name, type=Path, default=Path("local/runs"), metavar="FOLDER", help=f"{words} (default: local/runs)"
    )


def _add_tasks(command: argparse._ActionsContainer, default: str) -> None:
    command.add_argument("--tasks", nargs="+", metavar="TASK", help=f"their names (default: {default})")


def _add_epoch(command: argparse.ArgumentParser, words: str) -> None:
    command.add_argument(
        "--epoch", type=int, metavar="N", help=f"the epoch {words} (default: the last that all tasks have)"
    )


COMMANDS = {
    "list": (_add_data, "show suites, tasks, backbones, merging rules and studies", None),
    "finetune": (_add_finetune, "finetune an encoder on each of some tasks", _cli_words.FINETUNE),
    "merge": (_add_merge, "merge the task vectors of some runs into one", _cli_words.MERGE),
    "evaluate": (_add_evaluate, "measure a merged task vector on its tasks", _cli_words.EVALUATE),
    "record": (_add_record, "run a study of the book and record it", _cli_words.RECORD),
    "throughput": (_add_throughput, "measure how fast finetuning is on this machine", _cli_words.THROUGHPUT),
}
