"""The figures of the bounds show all of their data, with labels, and leave nothing behind."""

import math

import numpy as np
import pytest

from drawings import curves
from taskvec_mini import figures
from taskvec_mini.figures import GREY

PANELS = {
    "learning rate": ([0.125, 0.25, 0.5], {"ball": [3.0, math.inf, math.inf], "gap": [1.0, 2.0, 3.0]}),
    "epochs": ([1, 2, 4], {"gap": [1.0, 2.0, 3.0], "path": [5.0, 6.0, 7.0]}),
}
TIGHT = {
    "layers": {"2": {"norms": 50.0, "examples": 1.7}, "3": {"norms": 140.0, "examples": 1.9}},
    "activation": {"tanh": {"norms": 140.0, "examples": 1.9}, "gelu": {"norms": 90.0}},
}
DRAWINGS = {
    "bounds": lambda: figures.draw_bounds(PANELS, truth="gap", ylabel="size"),
    "tightness": lambda: figures.draw_tightness(TIGHT),
}
WORDS = {
    "bounds": {"learning rate", "epochs", "size", "ball", "path", "gap", "1", "2", "4"},
    "tightness": {"layers", "activation", "2", "3", "tanh", "gelu", "norms", "examples", "×100"},
}
every_drawing = pytest.mark.parametrize("name", DRAWINGS)


@every_drawing
def test_one_legend_names_each_label_once(name):
    figure = DRAWINGS[name]()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert sorted(labels) == sorted({label for axes in figure.axes for label in curves(axes)})
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_bounds_show_every_finite_value_and_end_where_a_bound_says_nothing():
    for axes, (places, expected) in zip(DRAWINGS["bounds"]().axes, PANELS.values(), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        lines = curves(axes)
        assert set(lines) == set(expected)
        for label, values in expected.items():
            assert list(lines[label].get_xdata()) == places
            known = [value if math.isfinite(value) else np.nan for value in values]
            np.testing.assert_array_equal(lines[label].get_ydata(), known)


def test_the_truth_is_broad_and_grey_and_other_labels_have_one_look_each():
    left, right = (curves(axes) for axes in DRAWINGS["bounds"]().axes)
    for lines in (left, right):
        assert lines["gap"].get_color() == GREY
        assert lines["gap"].get_linewidth() >= 4
    assert left["ball"].get_color() != right["path"].get_color()
    assert left["ball"].get_marker() != right["path"].get_marker()


def test_tightness_has_a_point_for_every_value_and_a_line_at_the_truth():
    for axes, networks in zip(DRAWINGS["tightness"]().axes, TIGHT.values(), strict=True):
        points = curves(axes)
        for label in ("norms", "examples"):
            values = [bounds.get(label, np.nan) for bounds in networks.values()]
            np.testing.assert_array_equal(points[label].get_ydata(), values)
            assert points[label].get_linestyle() == "None"
        (truth,) = [line for line in axes.lines if line.get_label().startswith("_")]
        assert list(truth.get_ydata()) == [1, 1]
        assert axes.get_yscale() == "log"
