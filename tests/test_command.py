"""The command for people with models: its words, its one-line errors, and what it prints."""

import json

import pytest
import safetensors.torch
import torch

from small_vectors import source
from taskvec_mini import command
from taskvec_mini.merging import RULES


@pytest.fixture
def models(tmp_path):
    """Three files; the two models differ from the first one in different entries."""
    steps = {"base": torch.zeros(4, 4), "cars": torch.zeros(4, 4), "mnist": torch.zeros(4, 4)}
    steps["cars"][0] = 3.0
    steps["mnist"][1] = 4.0
    start = torch.randn(4, 4, generator=source(0))
    for name, step in steps.items():
        safetensors.torch.save_file({"block.0.weight": start + step}, tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in steps]


def error_of(words, capsys):
    """The one line that a refused command prints."""
    assert command.main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rule", "tie"], "did you mean 'ties'?"),
        (["--rule", "ties", "--option", "densty=0.2"], "did you mean 'density'?"),
        (["--rule", "ties", "--option", "density"], "must be NAME=VALUE"),
        (["--rule", "ties", "--option", "density=much"], "density=much"),
        (["--rule", "mean", "--option", "density=0.2"], "mean has no options"),
        (["--rule", "dare", "--seed", "-1"], "seed"),
        (["--scaling-coef", "nan"], "scaling_coef"),
        (["--exclude", "head.*"], "fits no tensor of any model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(models, tmp_path, capsys, words, message):
    assert message in error_of(["merge", *models, *words, "--out", tmp_path / "merged"], capsys)
    assert not (tmp_path / "merged").exists()


def test_words_that_no_parser_knows_end_with_status_two(models):
    with pytest.raises(SystemExit) as stopped:
        command.main(["merge", *models, "--sclaing-coef", "1"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_writes_a_folder_with_a_record(models, tmp_path, rule, capsys):
    words = ["merge", *models, "--rule", rule, "--out", str(tmp_path / "merged")]
    extra = ["--option", "agreeing=1"] if rule == "consensus" else []
    extra = ["--option", "drop_rate=0.5", "--seed", "3"] if rule == "dare" else extra
    assert command.main([*words, *extra]) == 0
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["rule"] == rule
    assert record["options"].get("seed") == (3 if rule == "dare" else None)
    assert "memory: about" in capsys.readouterr().err


def test_repeated_options_and_a_dtype_arrive(models, tmp_path):
    out = tmp_path / "merged"
    words = ["--rule", "breadcrumbs", "--option", "smallest=0.5", "--option", "largest=0.0"]
    assert command.main(["merge", *models, *words, "--dtype", "bfloat16", "--out", str(out)]) == 0
    assert json.loads((out / "merge.json").read_text())["options"] == {"smallest": 0.5, "largest": 0.0}
    (merged,) = safetensors.torch.load_file(out / "base.safetensors").values()
    assert merged.dtype == torch.bfloat16


def test_diff_prints_norms_cosines_and_layers_and_draws_them(models, tmp_path, capsys):
    figure = tmp_path / "diff.svg"
    assert command.main(["diff", *models, "--figure", str(figure)]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert float(rows["block.0"][2]) == pytest.approx(6.0, abs=0.01)  # four entries of 3
    assert float(rows["block.0"][3]) == pytest.approx(8.0, abs=0.01)
    assert float(rows["block.0"][4]) == pytest.approx(0.0, abs=1e-3), "they share no entry"
    assert "75.000" in said, "of the entries of each vector three quarters stayed as they were"
    assert figure.read_text().startswith("<?xml")
    assert "must end in" in error_of(["diff", *models, "--figure", tmp_path / "diff.bmp"], capsys)


def test_negate_and_analogy_subtract_and_add(models, tmp_path):
    base, cars, mnist = (safetensors.torch.load_file(path)["block.0.weight"] for path in models)
    words = ["negate", *models[:2], "--scaling-coef", "0.5", "--out", str(tmp_path / "negated")]
    assert command.main(words) == 0
    (found,) = safetensors.torch.load_file(tmp_path / "negated" / "base.safetensors").values()
    torch.testing.assert_close(found, base - 0.5 * (cars - base))
    assert command.main(["analogy", *models, "--out", str(tmp_path / "fourth")]) == 0
    (found,) = safetensors.torch.load_file(tmp_path / "fourth" / "mnist.safetensors").values()
    torch.testing.assert_close(found, mnist + cars - base)
