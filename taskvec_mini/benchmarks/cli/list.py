"""`list`: what there is to work with, and where the data was found or how to get at it."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from pathlib import Path

from taskvec_mini import scores
from taskvec_mini.benchmarks.cli.requests import ListRequest
from taskvec_mini.benchmarks.data import DATA_VARIABLE, SUITES
from taskvec_mini.benchmarks.encoders import BACKBONES, load_backbone
from taskvec_mini.benchmarks.studies import STUDIES
from taskvec_mini.errors import UserError
from taskvec_mini.merging import RULES


def show(request: ListRequest) -> None:
    """Print suites with their tasks, backbones, rules and studies."""
    given = request.data or os.environ.get(DATA_VARIABLE)
    folder = Path(given).expanduser() if given else None
    for suite in SUITES.values():
        where = ""
        if suite.needs_folder and folder:
            where = f", in {folder / suite.subfolder}"
        elif suite.needs_folder:
            what = f"the folder {suite.subfolder!r} of a folder" if suite.subfolder else "a folder"
            where = f", in {what} that --data or the environment variable {DATA_VARIABLE} names (not set)"
        print(f"suite {suite.name}: {suite.description}{where}")
        print(_table(suite.overview(folder)))
    print("backbones (--backbone)")
    backbones: list[dict[str, object]] = []
    for name, info in BACKBONES.items():
        takes = "texts" if info.image_size is None else f"images of {info.image_size} pixels"
        note = info.note
        missing = [module for module in info.needs if importlib.util.find_spec(module) is None]
        if missing:
            note += f'; NOT INSTALLED: {", ".join(missing)} (python -m pip install "{info.install}")'
        elif info.weights == "network":
            note += ", weights downloaded on first use"
        elif info.weights in ("included", "data"):
            try:
                load_backbone(name, folder=folder)
            except UserError as error:
                note += f"; NOT AVAILABLE: {error}"
        backbones.append(
            {"name": name, "parameters": f"{info.parameters:,}", "takes": takes, "what it is": note}
        )
    print(_table(backbones))
    print("merging rules (--rule) and their options (--option)")
    rules: list[dict[str, object]] = []
    for name, rule in RULES.items():
        options = [f"{option}={default}" for option, default in rule.options.items()]
        if rule.draws:
            options.append("(draws: --seed)")
        rules.append({"name": name, "what it does": rule.summary, "options": "  ".join(options) or "-"})
    print(_table(rules))
    print("studies of the book (record STUDY)")
    print(_table([{"name": name, "what it measures": study.description} for name, study in STUDIES.items()]))


def _table(rows: list[dict[str, object]]) -> str:
    return textwrap.indent(scores.table(rows), "  ") + "\n"
