"""What holds for every drawing of the modules `figures_*`, whatever it shows."""

from importlib import import_module

import pytest

from conftest import ROOT
from drawings import assert_figure_with, assert_same_again

MODULES = sorted(path.stem for path in (ROOT / "taskvec_mini").glob("figures_*.py"))
TESTS = {name: import_module(f"test_{name}") for name in MODULES}
every_drawing = pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, tests in TESTS.items() for name in tests.DRAWINGS]
)


@pytest.mark.parametrize("module", MODULES)
def test_every_drawing_is_tested(module):
    expected = set(import_module(f"taskvec_mini.{module}").__all__)
    assert {f"draw_{name}" for name in TESTS[module].DRAWINGS} == expected


@every_drawing
def test_it_returns_a_figure_with_words_and_leaves_none_open(module, name):
    assert_figure_with(TESTS[module].WORDS[name], TESTS[module].DRAWINGS[name])


@every_drawing
def test_it_is_drawn_the_same_again_and_changes_no_defaults(module, name):
    assert_same_again(TESTS[module].DRAWINGS[name])
