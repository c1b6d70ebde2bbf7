"""What the table says of each rule, against what the rule does."""

import inspect
import re

import pytest
import torch
from safetensors.torch import save_file

from small_vectors import noise, rotation, source
from taskvec_mini import TaskVector, merging
from taskvec_mini.merging import RULES, from_files, merge_files

KEEPING_ALL = {  # options under which a rule leaves nothing out
    "ties": {"density": 1.0},
    "dare": {"drop_rate": 0.0, "generator": source()},
    "breadcrumbs": {"smallest": 0.0, "largest": 0.0},
    "consensus": {"threshold": 0.0},
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def test_no_rule_is_missing():
    functions = [function for function in vars(merging).values() if inspect.isfunction(function)]
    signatures = {each: inspect.signature(each) for each in functions}
    rules = {
        each
        for each, signature in signatures.items()
        if "task_vectors" in signature.parameters and signature.return_annotation == "TaskVector"
    }
    assert {rule.function for rule in RULES.values()} == rules


@every_rule
def test_the_form_says_what_equal_vectors_give(rule):
    """Of rank 1, so that TSV-M cuts nothing either, or with equal singular values where a rule makes them."""
    isotropic = 2 * rotation(6, 1)[:4]
    matrix = isotropic if rule.name.startswith("iso") else noise(4, 1) @ noise(1, 6, seed=1)
    vector = TaskVector(matrix.reshape(-1), [("w", (4, 6))])
    merged = rule.function([vector] * 3, **KEEPING_ALL.get(rule.name, {}))
    times = {"sum": 3, "mean": 1}[rule.form]
    torch.testing.assert_close(merged.flat, times * vector.flat, rtol=1e-9, atol=1e-9)


@every_rule
def test_what_is_no_matrix_has_the_form_too_except_where_matrices_are_isotropic(rule):
    vector = TaskVector(noise(3), [("b", (3,))])
    merged = rule.function([vector] * 3, **KEEPING_ALL.get(rule.name, {}))
    times = 3 if rule.form == "sum" and not rule.name.startswith("iso") else 1
    torch.testing.assert_close(merged.flat, times * vector.flat, rtol=1e-9, atol=1e-9)


@every_rule
def test_what_streams_is_summed_while_it_is_read(rule, tmp_path, monkeypatch):
    files = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for place, file in enumerate(files):
        save_file({"w": noise(4, 4, seed=place)}, file)
    summed = []
    sums = from_files.sum_vectors
    monkeypatch.setattr(
        from_files, "sum_vectors", lambda *given, **options: summed.append(1) or sums(*given, **options)
    )
    merge_files(files[0], files[1:], rule=rule.name, **({"generator": source()} if rule.draws else {}))
    assert bool(summed) is rule.streams


def test_options_have_the_published_defaults():
    assert RULES["mean"].options == {}
    assert RULES["dare"].options == {"drop_rate": 0.9}
    assert RULES["breadcrumbs"].options == {"smallest": 0.85, "largest": 0.01}
    assert RULES["consensus"].options == {"threshold": 0.4, "agreeing": 2}
    assert RULES["iso_cts"].options["common_share"] == 0.8
    assert RULES["wudi"].options["step_size"] == 1e-5
    assert [name for name, rule in RULES.items() if rule.draws] == ["dare"]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ties", {"densty": 0.3}, ValueError, "unknown option of ties 'densty': did you mean 'density'?"),
        ("mean", {"density": 0.3}, ValueError, "mean has no options, but 'density' is given; leave it out"),
        ("tsv", {"generator": source()}, ValueError, "unknown option of tsv 'generator'"),
        ("dare", {"drop_rate": 0.3}, TypeError, "generator must be a torch.Generator, got None"),
        ("dare", {"generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
    ],
)
def test_options_that_a_rule_does_not_take_are_refused(name, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        RULES[name].check_options(options)


def test_options_that_a_rule_takes_pass():
    RULES["ties"].check_options({"density": 0.3, "elect": "count"})
    RULES["dare"].check_options({"generator": source()})
    RULES["mean"].check_options({})
