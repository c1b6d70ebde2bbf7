"""The scripts behind the commands: what they promise when all is well, and what they say when it is not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from conftest import CHAPTERS, ROOT, extension
from scripts import build, check, execute, get_chromium, home, install, vendor_js

ADDRESS = "https://github.com/somebody/somewhere"


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i:02d}") for i, source in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


# --- running chapters


def test_running_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = (
        "import sys, uuid\nprint('a', flush=True)\nprint('b')\nprint('c', file=sys.stderr)\nstr(uuid.uuid4())"
    )
    path = write_notebook(tmp_path / "01_a.ipynb", source, "1 + 1")
    results = []
    for _ in range(2):
        assert execute.run_chapters([path]) == 0
        results.append(path.read_bytes())
    assert results[0] == results[1]
    cells = nbformat.read(path, as_version=4).cells
    assert [output["text"] for output in cells[0].outputs[:2]] == ["a\nb\n", "c\n"]
    assert cells[1].outputs[0]["data"]["text/plain"] == "2"


def test_chapters_side_by_side_are_the_same_as_in_turn(tmp_path: Path) -> None:
    sources = {
        "01_a": "import os\nprint(os.getcwd().rsplit(os.sep, 1)[-1])",
        "02_b": "sum(range(5))",
        "03_c": "print(3)",
    }
    kept = []
    for workers in (1, 3):
        folder = tmp_path / f"{workers}" / "book"
        folder.mkdir(parents=True)
        paths = [write_notebook(folder / f"{name}.ipynb", source) for name, source in sources.items()]
        record = folder / "recorded" / "execution.json"
        assert execute.run_chapters(paths, record=record, workers=workers) == 0
        kept.append([path.read_bytes() for path in paths])
        written = json.loads(record.read_text(encoding="utf-8"))
        assert list(written["chapters"]) == list(sources)
        assert ("side by side" in written["machine"]) == (workers > 1)
    assert kept[0] == kept[1]


def test_a_failing_chapter_is_named_with_its_cell_and_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_notebook(tmp_path / "02_good.ipynb", "print('fine')")
    bad = write_notebook(tmp_path / "01_bad.ipynb", "x = 1", "x / 0")
    before = bad.read_bytes()
    assert execute.run_chapters([bad, good]) == 1
    said = capsys.readouterr()
    assert "01_bad.ipynb failed in cell 1 (of 2): ZeroDivisionError: division by zero" in said.err
    assert re.search(r"\[2/2\] 02_good.ipynb \.\.\. \d+\.\d s", said.out)
    assert bad.read_bytes() == before, "a failed run must not replace the stored outputs"


def test_a_cell_that_kills_its_kernel_is_a_failure_too(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "01_dead.ipynb", "import os\nos._exit(1)")
    with pytest.raises(execute.ChapterError, match=r"01_dead\.ipynb failed in cell 0 .*(?s:.)*_exit"):
        execute.execute(path)


def test_the_record_and_the_promised_seconds(tmp_path: Path) -> None:
    book = tmp_path / "book"
    book.mkdir()
    path = book / "01_a.ipynb"
    text = nbformat.v4.new_markdown_cell("# A\n\nruns on a CPU in 999 s · needs no other chapter")
    nbformat.write(nbformat.v4.new_notebook(cells=[text, nbformat.v4.new_code_cell("print(1)")]), path)
    record = book / "recorded" / "execution.json"
    execute.write_record(record, {"01_gone": 3.0})
    assert execute.run_chapters([path], record=record) == 0
    written = json.loads(record.read_text(encoding="utf-8"))
    assert list(written["chapters"]) == ["01_a"], "a chapter that is gone leaves the record"
    stated = execute.stated_seconds(written["chapters"]["01_a"])
    assert f"runs on a CPU in {stated} s ·" in nbformat.read(path, as_version=4).cells[0].source


@pytest.mark.parametrize(("seconds", "stated"), [(0.2, 5), (5.0, 5), (5.1, 10), (14.9, 15), (60.0, 60)])
def test_stated_seconds(seconds: float, stated: int) -> None:
    assert execute.stated_seconds(seconds) == stated


def test_the_title_of_a_folded_cell_names_its_drawer() -> None:
    figure = {"figure": {"name": "fig-a"}}
    cells = [
        nbformat.v4.new_code_cell("# @title Solution\n1", metadata={"tags": ["hide-cell"], "mystnb": figure}),
        nbformat.v4.new_code_cell("# @title Open\n1"),
    ]
    folded, shown = json.loads(execute.tidy(nbformat.v4.new_notebook(cells=cells), "a"))["cells"]
    prompts = {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"}
    assert folded["metadata"]["mystnb"] == figure | prompts
    assert shown["metadata"] == {}


def test_tidy_drops_state_and_folds(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell(
        "1",
        metadata={"tags": ["hide-cell"], "execution": {"iopub.execute_input": "2026-01-01"}},
        execution_count=9,
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"widgets": {"x": 1}, "taskvec_mini": {"quoted": {}}}
    )
    tidied = json.loads(execute.tidy(notebook, "a"))
    assert set(tidied["metadata"]) == {"kernelspec", "language_info", "taskvec_mini"}
    assert tidied["cells"][0]["execution_count"] == 1
    assert tidied["cells"][0]["metadata"] == {
        "tags": ["hide-cell"], "jupyter": {"source_hidden": True}, "cellView": "form"
    }  # fmt: skip


# --- the environment


@pytest.mark.parametrize(
    ("failing", "expected"), [("nothing", "uv"), ("--only-binary", "pip"), ("--compile-bytecode", "pip")]
)
def test_the_environment_is_filled_by_uv_or_else_by_pip(
    failing: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether uv cannot be had or fails: pip does it then, with the same pins."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, int(failing in command))

    monkeypatch.setattr(subprocess, "run", run)
    assert install.install() == expected
    assert commands[-1][-6:] == ["-r", "requirements.txt", "-c", "constraints.txt", "-e", "."]
    assert all("constraints.txt" in command for command in commands)
    assert commands[-1][2] == expected


# --- the address


def copy_of_the_book(folder: Path) -> Path:
    for path in home.files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


def test_a_new_address_reaches_every_place(tmp_path: Path) -> None:
    root = copy_of_the_book(tmp_path)
    old = home.current(root)
    changed = {path.relative_to(root).as_posix() for path in home.rewrite(old, ADDRESS, root)}
    assert {"_config.yml", "README.md", "CITATION.cff"} <= changed
    assert {f"book/{path.name}" for path in CHAPTERS} <= changed
    assert home.current(root) == ADDRESS
    owner = old.removeprefix("https://github.com/")
    assert [path for path in home.files(root) if owner in path.read_text(encoding="utf-8")] == []
    home.rewrite(ADDRESS, old, root)
    assert all(path.read_bytes() == (ROOT / path.relative_to(root)).read_bytes() for path in home.files(root))


def test_the_address_stands_nowhere_else() -> None:
    """Otherwise `make home` would leave an old one behind."""
    owner = home.current().removeprefix("https://github.com/")
    known = set(home.files())
    kinds = (
        "*.py",
        "*.md",
        "*.ipynb",
        "*.toml",
        "*.yml",
        "*.cff",
        "*.txt",
        "*.bib",
        "*.json",
        "*.svg",
        "*.css",
    )
    folders = ("book", "taskvec_mini", "tests", "scripts", ".ci")
    everything = [path for kind in kinds for path in [*ROOT.glob(kind)]]
    everything += [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    naming = {path for path in everything if owner in path.read_text(encoding="utf-8")}
    assert {ROOT / "_config.yml", *CHAPTERS} <= naming <= known


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "words",
    ['x";touch pwned;"', "$(shell touch pwned)", "`touch pwned`", "$$(touch pwned)", "'; touch pwned; '"],
)
def test_make_home_runs_nothing_of_what_it_is_given(words: str, tmp_path: Path) -> None:
    root = copy_of_the_book(tmp_path)
    shutil.copy2(ROOT / "Makefile", root)
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=build.LITTER)
    stamp = root / ".venv" / ".installed-with-constraints"
    stamp.parent.mkdir()
    for name in ("requirements.txt", "constraints.txt"):
        shutil.copy2(ROOT / name, root)
    stamp.touch()  # as if the environment had been filled
    before = home.current(root)
    done = subprocess.run(
        ["make", "home", f"URL={words}", f"PY={sys.executable}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no address of the form" in done.stderr
    assert not list(root.rglob("pwned"))
    assert home.current(root) == before


@pytest.mark.parametrize("wrong", [[], ["https://example.org/a/b"], ["github.com/a/b"], [ADDRESS, ADDRESS]])
def test_a_wrong_address_is_refused(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["home.py", *wrong])
    before = home.current()
    assert home.main() == 2
    assert "https://github.com/OWNER/NAME" in capsys.readouterr().err
    assert home.current() == before


# --- the site


def test_vendored_files_are_the_recorded_ones() -> None:
    versions = json.loads(vendor_js.VERSIONS.read_text(encoding="utf-8"))
    recorded = {name: file["sha256"] for entry in versions.values() for name, file in entry["files"].items()}
    present = {
        path.name: path.read_bytes() for path in vendor_js.VENDOR.iterdir() if path != vendor_js.VERSIONS
    }
    assert {name: hashlib.sha256(content).hexdigest() for name, content in present.items()} == recorded
    assert vendor_js.differences(versions, present) == []
    assert vendor_js.differences(versions, present | {"vega.min.js": b"other"}) == ["vega.min.js"]


def test_the_charts_name_the_vendored_versions() -> None:
    """The addresses in the stored outputs and the files that the site serves instead are of one version."""
    from taskvec_mini.explore import VEGA_URLS

    versions = json.loads(vendor_js.VERSIONS.read_text(encoding="utf-8"))
    for url in VEGA_URLS:
        match = re.search(r"/npm/([a-z-]+)@([\d.]+)/", url)
        assert match is not None
        assert versions[match.group(1)]["version"] == match.group(2)
        assert (
            extension("selfhost").localise(url, "../_static") == f"../_static/vendor/{match.group(1)}.min.js"
        )


def test_the_badge_becomes_a_picture_of_the_site() -> None:
    selfhost = extension("selfhost")
    page = (
        f'<a href="https://colab.research.google.com/x"><img alt="Open in Colab" src="{selfhost.BADGE}"/></a>'
    )
    assert 'src="../_static/colab-badge.svg"' in selfhost.localise(page, "../_static")
    assert (ROOT / "book" / "_static" / "colab-badge.svg").exists()


def test_a_warning_fails_the_build_and_is_shown(tmp_path: Path) -> None:
    staged = tmp_path / "stage"
    shutil.copytree(ROOT / "book" / "_ext", staged / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "_static", staged / "book" / "_static")
    shutil.copy2(ROOT / "_config.yml", staged)
    (staged / "book" / "references.bib").write_text("", encoding="utf-8")
    (staged / "_toc.yml").write_text(
        yaml.safe_dump({"format": "jb-book", "root": "book/index"}), encoding="utf-8"
    )
    (staged / "book" / "index.md").write_text("# A\n\n[b](nowhere.md)\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match=r"book.index\.md:3: WARNING: .*nowhere\.md"):
        build.build_pages(staged, tmp_path)


def test_the_stage_leaves_litter_behind(tmp_path: Path) -> None:
    staged = build.stage(tmp_path / "stage")
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*")}
    assert {"_config.yml", "_toc.yml", "book/index.md", "book/references.bib"} <= names
    assert not [name for name in names if "__pycache__" in name or ".ipynb_checkpoints" in name]


# --- checks


def test_check_refuses_an_unknown_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "tset"])
    assert check.main() == 2
    assert "tests" in capsys.readouterr().err


@pytest.mark.parametrize("beside", [(), ("bad",), ("later", "good")])
def test_check_fails_if_one_step_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], beside: tuple[str, ...]
) -> None:
    steps: dict[str, Any] = {
        "good": [sys.executable, "-c", "pass"],
        "bad": [sys.executable, "-c", "print('this is why'); raise SystemExit(3)"],
        "later": [sys.executable, "-c", "pass"],
    }
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(check, "BESIDE", beside)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    said = capfd.readouterr().out
    whole = "--- bad\nthis is why\n--- bad: FAILED"  # nothing of another step in between
    assert whole in said if "bad" in beside else "this is why" in said
    assert "Failed: bad" in said
    assert "--- later: ok" in said
    monkeypatch.setattr(sys, "argv", ["check.py", "good", "later"])
    assert check.main() == 0


def test_every_chapter_is_checked_against_its_outputs() -> None:
    command = check.command_of("chapters")
    assert [Path(word).name for word in command[-len(CHAPTERS) :]] == [path.name for path in CHAPTERS]
    assert "--nbval" in command
    assert "loadfile" in command
    assert command[command.index("-n") + 1] == "2", "alone they may have both processors"


def test_a_named_chromium_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/somewhere/chrome")
    assert get_chromium.find() == "/somewhere/chrome"


# --- what a reader installs


def test_constraints_hold_one_exact_version_of_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[<>=~!\[;]", line)[0].strip().lower() for line in wanted if line and line[0] != "#"]
    assert len(names) >= 20
    assert [name for name in names if name not in pinned] == []


def test_the_example_of_the_readme_runs_and_is_true() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    gap = names["merge_gap"](names["losses"], names["start"], learning_rate=0.1, epochs=1, scaling_coef=0.5)
    assert names["tau"].shape == (2, len(names["start"]))
    assert gap.norm() < 1e-14


def test_the_citation_names_both_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["repository-code"] == home.current()
    identifiers = [entry["identifiers"][0]["value"] for entry in cited["references"]]
    assert identifiers == ["arXiv:2508.16082", "arXiv:2411.03055"]
