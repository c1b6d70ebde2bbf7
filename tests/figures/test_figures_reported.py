"""The figures of reported results show all of their data, with labels, and leave nothing behind."""

import numpy as np
import pytest

from drawings import curves
from taskvec_mini import figures

DIFFERENCES = {"AdamW": [-1.2, -0.6, -0.1, 0.0, 0.3], "SGD": [-3.4, -2.6, -2.7]}
DOTS = {"epoch": {"MNIST": 0.5, "DTD": 0.3}, "gradient": {"DTD": 0.1, "MNIST": 0.04, "SVHN": 0.05}}
CURVES = {"once": {1: 0.70, 2: 0.72}, "every epoch": {1: 0.70, 2: 0.78, 3: 0.81}}
REFERENCES = {"pretrained": 0.55, "individual": 0.93}
DRAWINGS = {
    "differences": lambda: figures.draw_differences(DIFFERENCES, xlabel="points"),
    "dots": lambda: figures.draw_dots(DOTS, xlabel="cosine", marks=[0.2]),
    "budgets": lambda: figures.draw_budgets(
        CURVES, references=REFERENCES, xlabel="epochs", ylabel="accuracy"
    ),
}
WORDS = {
    "differences": {"AdamW (5)", "SGD (3)", "points", "count"},
    "dots": {"epoch", "gradient", "MNIST", "DTD", "SVHN", "cosine"},
    "budgets": {"once", "every epoch", "pretrained", "individual", "epochs", "accuracy"},
}


def test_differences_are_counted_in_bins_that_do_not_lie_across_zero():
    figure = DRAWINGS["differences"]()
    for axes, values in zip(figure.axes, DIFFERENCES.values(), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        edges = np.arange(-7, 2) / 2  # -3.5 ... 0.5, steps of a half
        assert heights == list(np.histogram(values, bins=edges)[0])
        assert sum(heights) == len(values)
        assert [line.get_xdata()[0] for line in axes.lines] == [0, pytest.approx(np.mean(values))]
    colours = {axes.patches[0].get_facecolor() for axes in figure.axes}
    assert len(colours) == len(DIFFERENCES)


def test_the_width_of_the_bins_can_be_chosen():
    axes = figures.draw_differences(DIFFERENCES, xlabel="points", width=1).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0, 0, 1, 2, 2]


def test_dots_stand_at_their_row_in_the_order_of_the_first_series():
    axes = DRAWINGS["dots"]().axes[0]
    rows = {tick.get_text(): place for place, tick in enumerate(axes.get_yticklabels())}
    assert rows == {"MNIST": 2, "DTD": 1, "SVHN": 0}  # from below, so MNIST is on top
    for label, series in DOTS.items():
        line = curves(axes)[label]
        assert list(line.get_xdata()) == list(series.values())
        assert list(line.get_ydata()) == [rows[row] for row in series]
        assert line.get_linestyle() == "None"
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")]
    assert marks == [0.2]
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 2


def test_budgets_show_every_point_and_name_the_references_at_their_height():
    axes = DRAWINGS["budgets"]().axes[0]
    for label, curve in CURVES.items():
        line = curves(axes)[label]
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == curve
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_label().startswith("_")]
    assert heights == list(REFERENCES.values())
    assert {text.get_text(): text.xy for text in axes.texts} == {
        name: (3, height) for name, height in REFERENCES.items()
    }


def test_on_a_phone_long_names_stand_above_their_lines_and_short_ones_beside():
    assert figures.draw_dots(DOTS, xlabel="cosine").narrow is None
    names = ["an encoder of images, 3 M", "one of texts, 23 M"]
    values = {"early": dict(zip(names, (0.5, 0.9), strict=True)), "late": {names[1]: 0.8}}
    (axes,) = figures.draw_dots(values, xlabel="share", marks=[0]).narrow().axes
    assert not any(label.get_text() for label in axes.get_yticklabels())
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert list(heights) == names[::-1]
    for line, series in zip(axes.lines, values.values(), strict=False):
        drawn = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert drawn == {heights[name]: value for name, value in series.items()}
