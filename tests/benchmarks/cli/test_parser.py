"""From the command line to requests, and back to the command of a record."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import ROOT
from taskvec_mini._options import changed_options
from taskvec_mini.benchmarks.cli import parser
from taskvec_mini.benchmarks.cli.parser import PROGRAM, command_of, parse
from taskvec_mini.benchmarks.cli.requests import FinetuneRequest, ListRequest, MergeRequest, ThroughputRequest
from taskvec_mini.benchmarks.engines import EngineOptions
from taskvec_mini.benchmarks.training import Settings, Speed
from taskvec_mini.errors import UserError


def arguments_of(line):
    return shlex.split(line.removeprefix(PROGRAM))


def help_of(*words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], *([name] for name in parser.COMMANDS)])
def test_the_examples_in_the_help_are_lines_that_parse(words, capsys):
    examples = re.findall(rf"^  {PROGRAM} (.*)$", help_of(*words, capsys=capsys), re.MULTILINE)
    assert words == ["list"] or len(examples) >= 2
    for example in examples:
        parse(shlex.split(example))


def test_the_help_says_of_an_option_what_it_is_and_its_default(capsys):
    text = " ".join(help_of("finetune", capsys=capsys).split())
    assert "--out FOLDER folder of the runs, made if need be (default: local/runs)" in text
    assert "--suite {bundle,large,torchvision,hub,digits,text,text-hub,folder,csv}" in text
    assert re.search(r"--learning-rate X [^-]*\(default: 0\.0001\)", text)
    assert "where it runs: --engine {local,ray}" in text
    assert "(default: None)" not in text


def test_options_left_out_are_those_left_out_in_python():
    assert parse(["list"]) == ListRequest()
    assert parse(["finetune"]) == FinetuneRequest()
    assert parse(["merge"]) == MergeRequest()
    assert parse(["throughput"]) == ThroughputRequest()


def test_words_become_settings_speed_and_engine():
    line = (
        "finetune --epochs 7 --seed 5 --optimizer sgd --learning-rate 0.5 --batch-size 9 --weight-decay 0.1 "
        "--momentum 0.9 --warmup-steps 3 --clip-norm 2 --schedule cosine --centre batch "
        "--precision bfloat16 --compile --channels-last --engine ray --address 10.0.0.1:6379 --workers 3 "
        "--tasks digits mirrored --limit 8 --data here"
    )
    assert parse(shlex.split(line)) == FinetuneRequest(
        tasks=("digits", "mirrored"),
        limit=8,
        data=Path("here"),
        settings=Settings(
            learning_rate=0.5, epochs=7, optimizer="sgd", batch_size=9, weight_decay=0.1, momentum=0.9,
            schedule="cosine", warmup_steps=3, clip_norm=2.0, centre="batch", seed=5,
        ),
        speed=Speed(precision="bfloat16", compile=True, channels_last=True),
        engine=EngineOptions(engine="ray", address="10.0.0.1:6379", workers=3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("merge --option density=0.3 --option elect=count", "option", ("density=0.3", "elect=count")),
        ("finetune --tasks a b --tasks c", "tasks", ("c",)),
        ("evaluate --tune", "tune", ()),
        ("evaluate --tune 0.5 1", "tune", (0.5, 1.0)),
        ("record clip --data here", "data", Path("here")),
        ("record clip --tasks dtd cars", "study", "clip"),
    ],
)
def test_lists_are_tuples(line, name, value):
    assert getattr(parse(line.split()), name) == value


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["finetune", "--epoch", "2"],
        ["finetune", "--epochs", "two"],
        ["finetune", "--suite", "digit"],
        ["record"],
    ],
)
def test_words_that_are_not_understood_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("finetune --epochs 0", "epochs must be at least 1, got 0"),
        ("finetune --workers 2", "workers=2 is for engine='ray'"),
        ("evaluate", "give either --scaling-coef X"),
        ("evaluate --tune --scaling-coef 1", "give either --scaling-coef X"),
    ],
)
def test_values_that_make_no_sense_are_refused(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(line.split())


# --- any dataclass ---------------------------------------------------------------------------------------


def option(default, **metadata):
    return field(default=default, metadata={"help": "what it is", **metadata})


@dataclass(frozen=True, kw_only=True)
class Colour:
    name: str = option("red", choices=("red", "green"))
    bright: bool = option(False)
    machine: int = option(1, recorded=False)


@dataclass(frozen=True, kw_only=True)
class PaintRequest:
    """Paint."""

    wall: str = field(metadata={"help": "what it is"})
    litres: float | None = option(None)
    layers: tuple[int, ...] = option(())
    colour: Colour = field(default_factory=lambda: Colour(name="green"), metadata={"help": "of the paint"})


def test_any_dataclass_is_a_command(monkeypatch):
    monkeypatch.setattr(parser, "COMMANDS", {"paint": PaintRequest})
    plain = parse(["paint", "north"])
    assert plain == PaintRequest(wall="north")
    assert plain.colour.name == "green", "the default of the request, not that of the group's class"
    line = "paint north --litres 2.5 --layers 1 2 --name red --bright --machine 7"
    painted = parse(line.split())
    colour = Colour(name="red", bright=True, machine=7)
    assert painted == PaintRequest(wall="north", litres=2.5, layers=(1, 2), colour=colour)
    assert command_of(painted) == f"{PROGRAM} {line.removesuffix(' --machine 7')}"
    assert changed_options(parse(["paint", "north", "--machine", "7"])) == {"wall": "north", "--machine": 7}


# --- the commands of records -----------------------------------------------------------------------------


def recorded_commands():
    paths = sorted((ROOT / "book" / "recorded").glob("*.json"))
    commands = {path.stem: json.loads(path.read_text(encoding="utf-8")).get("command", "") for path in paths}
    return {name: command for name, command in commands.items() if command.startswith(PROGRAM)}


@pytest.mark.parametrize("name", recorded_commands())
def test_the_command_of_every_record_of_the_book_parses(name):
    request = parse(arguments_of(recorded_commands()[name]))
    assert parse(arguments_of(command_of(request))) == request


def test_there_are_records_whose_commands_are_tested():
    assert len(recorded_commands()) >= 12


def test_a_recorded_command_names_no_machine():
    line = (
        "record clip --budget-minutes 7.5 --gpu --backbone tiny-clip --suite digits --tasks digits mirrored "
        "--joint --micro-batch-size 16 --engine ray"
    )
    here = "--runs /there --address 10.0.0.1:6379 --workers 3 --data /data --out /else.json"
    assert command_of(parse(f"{line} {here}".split())) == f"{PROGRAM} {line}"
    assert command_of(parse(["throughput", "--images", "9", "--out", "x"])).endswith("throughput --images 9")
