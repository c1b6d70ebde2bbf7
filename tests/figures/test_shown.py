"""How a figure is shown: its SVG, and a second one with stacked panels, held against its parts."""

import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from drawings import faults, gaps
from scripts import execute
from taskvec_mini import figures
from taskvec_mini.figures import shown

CURVES = {"start": {"a": ([1, 2], [1, 2]), "b": ([1, 2], [2, 1])}, "end": {"a": ([1, 2], [5, 9])}}
SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
LETTERS = re.compile(r"scale\(([\d.]+) -")  # text is drawn as paths, a hundredth of a point to a unit


def two_panels(**settings):
    return figures.draw_curves(CURVES, xlabel="step", ylabel="height", **settings)


@pytest.fixture(autouse=True)
def book_style():
    with mpl.rc_context():
        figures.use_book_style()
        yield


def size(svg):
    """Width and height in inches."""
    return [float(number) / 72 for number in SIZE.search(svg).groups()]


def test_both_drawings_come_out_the_same_again_and_are_what_they_say():
    (data, metadata), (again, _) = (two_panels()._repr_mimebundle_() for _ in range(2))
    assert data["image/svg+xml"] == again["image/svg+xml"]
    assert data[shown.NARROW] == again[shown.NARROW]
    assert size(data["image/svg+xml"]) == pytest.approx([7.4, 3.4], abs=0.02)
    width, height = size(data[shown.NARROW])
    assert width == pytest.approx(shown.NARROW_WIDTH, abs=0.02)
    assert height > 2 * 2.5
    assert metadata["image/svg+xml"] == {"width": 888}
    assert "<dc:date>" not in data["image/svg+xml"]


def test_no_letter_is_smaller_than_nine_points():
    data, _ = two_panels()._repr_mimebundle_()
    for kind in ("image/svg+xml", shown.NARROW):
        assert min(map(float, LETTERS.findall(data[kind]))) >= 0.09


def test_stacking_puts_one_panel_below_the_other_names_every_axis_and_leaves_no_trace():
    figure = two_panels(sharey=True)
    figure.draw_without_rendering()
    left, right = panels = figure.axes
    before = [axes.get_subplotspec() for axes in panels], tuple(figure.get_size_inches()), right.get_ylabel()
    with shown._stacked(figure, panels):
        figure.draw_without_rendering()
        upper, lower = (axes.get_window_extent() for axes in panels)
        assert upper.y0 > lower.y1
        assert upper.x0 == pytest.approx(lower.x0, abs=2)
        assert right.get_ylabel() == "height"
        assert any(label.get_visible() for label in right.get_yticklabels())
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.y1 <= lower.y0
        assert (box.x0, box.x1) == pytest.approx(np.clip((box.x0, box.x1), 0, figure.bbox.width))
        assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    after = [axes.get_subplotspec() for axes in panels], tuple(figure.get_size_inches()), right.get_ylabel()
    assert after == before
    figure.draw_without_rendering()
    assert left.get_window_extent().x1 < right.get_window_extent().x0


LONG = {f"a label of many words, number {i}": [10.0**-i, 0.1 * i] for i in range(1, 5)}


def test_a_legend_has_as_many_columns_as_fit_and_no_curve_goes_through_it():
    figure = figures.draw_slopes([1e-3, 1.0], LONG)
    (axes,), (legend,) = figure.axes, figure.legends
    assert faults(figure) == []
    assert legend._ncols == 2
    with shown._stacked(figure, [axes]):
        assert faults(figure) == []
        assert legend._ncols == 1
    assert legend._ncols == 2
    axes.legend(loc="center")  # what the two lines above would find
    assert faults(figure)


@pytest.mark.parametrize("words", ["a label nearly as wide as its figure", "word " * 15 + "end"])
def test_long_titles_and_labels_are_moved_or_broken_and_come_back(words):
    figure, (left, right) = figures.new_figure(1, 2, figsize=(14, 3.4))
    left.set(yticks=[0, 1], yticklabels=["0", "a long name of a row"], title=words)
    right.set(ylabel=words, xlabel=words)
    texts = [left.title, right.yaxis.label, right.xaxis.label]
    before = [text.get_position()[0] for text in (texts[0], texts[2])]
    with shown._stacked(figure, [left, right]):
        assert faults(figure) == []
        assert all(gap > 0.2 for gap in gaps([left, right]))
    assert [text.get_text() for text in texts] == [words] * 3
    assert [text.get_position()[0] for text in (texts[0], texts[2])] == before


@pytest.mark.parametrize("height", [0.2, 1.0, 4.0])
def test_panels_of_a_fixed_aspect_leave_no_bands_and_keep_their_width(height):
    figure, axes = figures.new_figure(figsize=(6.4, 4.2))
    axes.plot([0, 2], [0, height], label="a line")
    axes.set(aspect="equal", xlabel="across", ylabel="up")
    figure.legend(loc="outside lower center")
    with shown._stacked(figure, [axes]):
        assert faults(figure) == []
        if height <= 1:  # a steep one is as high as it may be
            assert axes.get_window_extent().width > 0.75 * figure.bbox.width


def test_the_names_of_epochs_stand_clear_of_lines_where_a_path_turns_back():
    """The paths of chapter 10: below the last merge there is no room."""
    merged = torch.tensor([[2.0, 1.5], [0.81, 1.97], [0.45, 2.2], [0.32, 2.35], [0.26, 2.48]])
    multitask = torch.tensor([[2.0, 1.5], [0.81, 1.97], [0.46, 2.2], [0.36, 2.33], [0.34, 2.44]])
    tasks = {
        "task 1": torch.tensor([[2.0, 1.5], [0.81, 1.97], [0.48, 2.4], [0.39, 2.8], [0.36, 3.16]]),
        "task 2": torch.tensor([[2.0, 1.5], [0.81, 1.97], [0.42, 1.99], [0.25, 1.9], [0.16, 1.79]]),
    }
    figure = figures.draw_parting(tasks, merged, multitask, surface=lambda x, y: x**2 + y**2)
    assert faults(figure) == []
    with shown._stacked(figure, figure.axes):
        assert faults(figure) == []


def test_captions_name_no_side_where_panels_are_stacked_on_a_phone():
    sides = re.compile(r"(?<!is )\b(left|right)\b(?! out)", re.IGNORECASE)
    found = []
    for path in execute.chapters(execute.ROOT / "book"):
        for cell in nbformat.read(path, as_version=4).cells:
            if any(shown.NARROW in output.get("data", {}) for output in cell.get("outputs", ())):
                caption = cell.metadata["mystnb"]["figure"]["caption"]
                found += [f"{path.name}: {caption}"] if sides.search(caption) else []
    assert found == []


def test_what_cannot_be_stacked_has_no_second_drawing():
    grid, _ = figures.new_figure(2, 2)
    wide, _ = figures.new_figure(1, 2)
    wide.stacks = False
    for figure in (grid, wide):
        data, _ = figure._repr_mimebundle_()
        assert shown.NARROW not in data
        assert "image/svg+xml" in data


def test_a_heavy_figure_is_pixels_alone_and_twice_as_fine():
    figure, axes = figures.new_figure(figsize=(5, 3))
    axes.plot(np.random.default_rng(0).random((8000, 1)), ".")
    data, metadata = figure._repr_mimebundle_()
    assert "image/svg+xml" not in data
    picture = plt.imread(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.shape[:2] == (720, 1200)
    assert metadata["image/png"] == {"width": 600}


def test_a_figure_too_heavy_for_a_desk_has_no_drawing_for_a_phone_either():
    """The page finds a phone's drawing by the sum of the desk's bytes."""
    heavy, axes = figures.new_figure(figsize=(5, 3))
    axes.plot(np.random.default_rng(0).random((8000, 1)), ".")
    heavy.narrow = lambda: two_panels()
    assert shown.NARROW not in heavy._repr_mimebundle_()[0]


def test_ipython_takes_the_figures_own_pictures():
    formatter = DisplayFormatter()
    formatter.formatters["image/png"].for_type(mpl.figure.Figure, lambda figure: "the backend's")
    shown.show_book_figures(formatter)
    data, _ = formatter.format(two_panels())
    assert data.keys() == {"text/plain", "image/png", "image/svg+xml", shown.NARROW}
    assert data["image/png"] != "the backend's"
    assert formatter.format(plt.figure())[0]["image/png"] == "the backend's"
    plt.close("all")


def test_panels_that_stand_in_one_column_keep_it_on_a_phone():
    figure, panels = figures.common.new_figure(3, 1, figsize=(7.4, 5.4), sharex=True)
    for axes in panels:
        axes.plot([0, 1], [1, 2])
    data, _ = figure._repr_mimebundle_()
    width, height = size(data[shown.NARROW])
    assert width == pytest.approx(shown.NARROW_WIDTH, abs=0.02)
    assert 3 * 1.5 < height < 3 * 2.3, "as high as on a desk, and not three times so"
    square, _ = figures.common.new_figure(2, 2)
    assert shown.NARROW not in square._repr_mimebundle_()[0]


def test_thousands_of_dots_are_pixels_in_a_drawing_that_stays_small():
    entries = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    figure = figures.draw_scatter(entries, {"a": entries, "b": 2 * entries}, xlabel="x", ylabel="y")
    data, _ = figure._repr_mimebundle_()
    assert "<image" in data["image/svg+xml"]
    assert len(data[shown.NARROW]) < shown.LARGEST_SVG
