"""The words of the command line: commands, options, and what `--help` says about them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

PROGRAM = "python -m taskvec_mini.benchmarks"
OVERVIEW = f"""examples:
  {PROGRAM} list
  {PROGRAM} finetune --tasks mnist gtsrb --epochs 3
  {PROGRAM} merge --tasks mnist gtsrb --epoch 1 --rule task_arithmetic
  {PROGRAM} evaluate --tune

These four lines are a whole experiment: what there is; one encoder finetuned on each of two tasks; their
task vectors after one epoch, added up; the merged model beside the pretrained and the finetuned ones.

No data on this machine? Add --suite digits to finetune: small real digits, which need no download."""
FINETUNE = f"""examples:
  {PROGRAM} finetune --tasks mnist gtsrb --epochs 3
  {PROGRAM} finetune --suite digits --tasks digits mirrored --out local/digits
  {PROGRAM} finetune --epochs 10 --learning-rate 1e-5 --schedule cosine --clip-norm 1

Each task gets a folder under --out, with a checkpoint for each epoch. Only the encoder is trained; the head
(class prototypes under the pretrained encoder) is made first and stays frozen. A run that was stopped, at
any moment, is taken up again by the same command and ends in the same weights. Other settings need another
--out."""
MERGE = f"""examples:
  {PROGRAM} merge --tasks mnist gtsrb --epoch 1
  {PROGRAM} merge --rule ties --option density=0.3 --out local/ties.safetensors

The file holds one task vector; taskvec_mini.TaskVector.load(path) reads it. It is not scaled: `evaluate`
chooses the scaling coefficient. `list` shows the rules with their options."""
EVALUATE = f"""examples:
  {PROGRAM} evaluate --tune
  {PROGRAM} evaluate --vector local/ties.safetensors --scaling-coef 0.3

The table has a row for each task: the accuracy of the pretrained encoder (zero-shot), of the one finetuned
on this task (individual), of the merged one, and merged / individual (normalised). --tune tries a range of
scaling coefficients and keeps the best mean accuracy on validation images; test images decide nothing."""
RECORD = f"""examples:
  {PROGRAM} list
  {PROGRAM} record STUDY

A study is a long experiment behind a chapter. Its record is one JSON file with the results and all that is
needed to make them again: this command, the commit, versions, seeds, seconds, checksums of the data."""


SETTINGS = (  # of numbers; the defaults are those of `finetuning.Settings`, but for the learning rate
    ("learning-rate", float, "step size (default: 1e-4)"),
    ("batch-size", int, "images in a step (default: 128)"),
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
    words = "Finetune image encoders on real tasks, merge what they learnt, and measure the result."
    main = argparse.ArgumentParser(prog=PROGRAM, description=words, epilog=OVERVIEW, **_LOOK)
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
        choices=["bundle", "torchvision", "digits"],
        help="bundle: real images in the folder --data; torchvision: downloaded into it; "
        "digits: small digits, no files needed (default: bundle)",
    )
    command.add_argument(
        "--backbone", default="pocket", metavar="NAME", help="the encoder; see `list` (default: pocket)"
    )
    _add_tasks(command, "all of the suite")
    command.add_argument(
        "--epochs", type=int, default=1, metavar="N", help="passes over the images (default: 1)"
    )
    _add_runs(command, "--out", "folder of the runs, made if need be")
    _add_data(command)
    _add_device(command)
    command.add_argument("--limit", type=int, metavar="N", help="at most N training images of each task")
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of splits and the order of images (default: 0)"
    )
    _add_settings(command.add_argument_group("settings of finetuning"))


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
        help="find that on validation images: the best of these or, without numbers, of "
        f"{len(SCALING_COEFS)} from {SCALING_COEFS[0]} to {SCALING_COEFS[-1]:g}",
    )
    _add_tasks(command, "all that have runs")
    _add_epoch(command, "of the individually finetuned encoders beside it")
    command.add_argument(
        "--split", choices=["test", "val"], default="test", help="the images of the table (default: test)"
    )
    command.add_argument(
        "--recentre",
        type=int,
        default=0,
        metavar="N",
        help="centre the heads anew on N training images, without labels (default: 0, frozen heads)",
    )
    _add_data(command)
    _add_device(command)


def _add_record(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="STUDY", help="its name; see `list`")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="the record (default: book/recorded/STUDY.json)"
    )
    _add_data(command)


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


def _add_tasks(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--tasks", nargs="+", metavar="TASK", help=f"their names (default: {default})")


def _add_epoch(command: argparse.ArgumentParser, words: str) -> None:
    command.add_argument(
        "--epoch", type=int, metavar="N", help=f"the epoch {words} (default: the last that all tasks have)"
    )


COMMANDS = {
    "list": (_add_data, "show suites, tasks, backbones, merging rules and studies", None),
    "finetune": (_add_finetune, "finetune an encoder on each of some tasks", FINETUNE),
    "merge": (_add_merge, "merge the task vectors of some runs into one", MERGE),
    "evaluate": (_add_evaluate, "measure a merged task vector on its tasks", EVALUATE),
    "record": (_add_record, "run a study of the book and record it", RECORD),
}
