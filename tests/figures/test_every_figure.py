"""What holds for every drawing of `taskvec_mini.figures`, whatever it shows."""

from importlib import import_module

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from drawings import faults, gaps, picture
from taskvec_mini import figures
from taskvec_mini.figures import shown

TESTS = [import_module("test_figures")]
TESTS += [
    import_module(f"test_figures_{name}")
    for name in ("bounds", "gap", "reported", "rounds", "strips", "vision")
]
DRAWINGS = {name: (draw, tests.WORDS[name]) for tests in TESTS for name, draw in tests.DRAWINGS.items()}


def test_every_drawing_is_tested():
    promised = {name.removeprefix("draw_") for name in figures.__all__ if name.startswith("draw_")}
    assert promised == DRAWINGS.keys() - {"plain paths", "linear bars"}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_has_its_words_and_comes_out_the_same_again(name):
    """A transparent figure with these words on it; none is left open, and no default changes."""
    draw, words = DRAWINGS[name]
    with mpl.rc_context():
        figures.use_book_style()
        defaults = dict(mpl.rcParams)
        figure = draw()
        assert isinstance(figure, Figure)
        assert plt.get_fignums() == []
        shown = picture(figure)
        assert {text.get_text() for text in figure.findobj(mpl.text.Text)} >= words
        assert shown[0, 0, 3] == 0
        assert len(np.unique(shown.reshape(-1, 4), axis=0)) > 10
        assert np.array_equal(shown, picture(draw()))
        assert dict(mpl.rcParams) == defaults


def test_those_whose_panels_do_not_stack_are_drawn_anew_for_a_phone():
    anew = {name for name, (draw, _) in DRAWINGS.items() if draw().narrow is not None}
    assert anew == {"examples", "accuracies", "strips", "multiples", "interference"}


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_is_cut_struck_through_or_blank_on_a_desk_and_on_a_phone(name):
    with mpl.rc_context():
        figures.use_book_style()
        figure = DRAWINGS[name][0]()
        assert faults(figure) == []
        panels = shown._row_of_panels(figure)
        if figure.narrow is not None:
            data, _ = figure._repr_mimebundle_()
            if "image/svg+xml" in data:
                assert data[shown.NARROW] == shown._svg(figure.narrow())
            again = figure.narrow()
            assert again.get_figwidth() == shown.NARROW_WIDTH
            assert faults(again) == []
        elif figure.stacks and panels:
            with shown._stacked(figure, panels):
                assert faults(figure) == []
                assert all(gap > 0.2 for gap in gaps(panels))
