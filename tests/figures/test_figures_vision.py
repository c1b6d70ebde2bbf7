"""The figures of the studies on real images show all of their data, with labels, and leave nothing behind."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from drawings import curves
from taskvec_mini import figures
from taskvec_mini.figures import GREY

EPOCHS = [1, 2, 4]
BANDS = {
    "accuracy": {"sum": [[0.5, 0.7], [0.6, 0.6], [0.4, 0.9, 0.8]], "ties": [[0.3], [0.4], [0.2]]},
    "normalised": {"ties": [[0.8], [0.9]]},
}
REFERENCES = {"accuracy": {"zero-shot": 0.25, "individual": [0.8, 0.9, 0.95]}}
SHARES = {"DTD": {"gradient": 0.12, "distance": 0.05}, "SVHN": {"gradient": 0.4, "distance": 0.3}}
TASKS = {
    "mnist": {"much": [[0.3, 0.4], [0.2, 0.1]]},
    "cars": {"little": [[0.5], [0.6]], "much": [[0.1, 0.2], [0.7, 0.8]]},
    "dtd": {"little": [[0.0, 0.1, 0.2], [0.9, 0.8, 0.7]]},
}
CHANGES = {"mnist": {"mnist": 0.4, "cars": -0.2}, "cars": {"mnist": -0.001, "cars": 0.004}}
DRAWINGS = {
    "bands": lambda: figures.draw_bands(EPOCHS, BANDS, xlabel="epochs", references=REFERENCES, log=True),
    "leads": lambda: figures.draw_leads(SHARES, equal={"DTD": 1 / 76, "SVHN": 1 / 4}),
    "multiples": lambda: figures.draw_multiples(
        [1, 2],
        TASKS,
        xlabel="epoch",
        ylabel="share",
        references={"equal": 0.5},
        order=["little", "much"],
        columns=2,
    ),
    "interference": lambda: figures.draw_interference(CHANGES, ylabel="added", xlabel="tested"),
}
WORDS = {
    "bands": {"accuracy", "normalised", "sum", "ties", "zero-shot", "individual", "epochs", "1", "2", "4"},
    "leads": {"DTD", "SVHN", "gradient", "distance", "equal shares", "share of the first epoch"},
    "points": {"share", "cosine", "SGD", "AdamW", "Bη"},
    "multiples": {"mnist", "cars", "dtd", "little", "much", "equal", "epoch", "share", "1", "2"},
    "interference": {"mnist", "cars", "added", "tested", "+40", "-20", "0"},
}


@pytest.mark.parametrize("name", ["bands", "leads", "multiples"])
def test_one_legend_names_each_label_once(name):
    figure = DRAWINGS[name]()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(set(labels)) == len(labels)
    assert set(labels) >= {label for axes in figure.axes for label in curves(axes)}
    assert all(axes.get_legend() is None for axes in figure.axes)


def corners(band):
    """The lowest and the highest value of a band at each of its places."""
    (path,) = band.get_paths()
    return {
        place: (min(ys), max(ys))
        for place in sorted(set(path.vertices[:, 0]))
        for ys in [path.vertices[path.vertices[:, 0] == place, 1]]
    }


def test_a_line_goes_through_the_means_and_a_band_spans_all_runs():
    axes = DRAWINGS["bands"]().axes[0]
    for number, (label, runs) in enumerate(BANDS["accuracy"].items()):
        line, band = curves(axes)[label], axes.collections[number]
        np.testing.assert_array_equal(line.get_xdata(), EPOCHS)
        np.testing.assert_allclose(line.get_ydata(), [sum(values) / len(values) for values in runs])
        for place, values in zip(EPOCHS, runs, strict=True):
            assert corners(band)[place] == pytest.approx((min(values), max(values)))
        assert tuple(band.get_facecolor()[0][:3]) == pytest.approx(to_rgb(line.get_color()))


def test_fewer_runs_than_places_belong_to_the_first_places_and_a_label_keeps_its_look():
    left, right = DRAWINGS["bands"]().axes
    assert list(curves(right)["ties"].get_xdata()) == EPOCHS[:2]
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert getattr(curves(left)["ties"], look)() == getattr(curves(right)["ties"], look)()
        assert getattr(curves(left)["ties"], look)() != getattr(curves(left)["sum"], look)()


def test_four_references_have_four_kinds_of_line():
    heights = {"start": 0.2, "probe": 0.4, "specialists": 0.9, "joint": 0.8}
    (panel, *_) = figures.draw_bands(
        EPOCHS, BANDS, xlabel="epochs", references=dict.fromkeys(BANDS, heights)
    ).axes
    kinds = {line.get_label(): line.get_linestyle() for line in panel.lines if line.get_label() in heights}
    assert len(kinds) == len(set(kinds.values())) == 4


def test_references_are_grey_and_may_change_from_place_to_place():
    lines = curves(DRAWINGS["bands"]().axes[0])
    assert list(lines["zero-shot"].get_ydata()) == [0.25] * 3
    assert list(lines["individual"].get_ydata()) == [0.8, 0.9, 0.95]
    assert lines["zero-shot"].get_color() == lines["individual"].get_color() == GREY
    assert lines["zero-shot"].get_linestyle() != lines["individual"].get_linestyle()


@pytest.mark.parametrize(("log", "scale"), [(True, "log"), (False, "linear")])
def test_the_level_axis_doubles_only_where_asked(log, scale):
    (axes,) = figures.draw_bands(EPOCHS, {"a": {"b": [[1.0]] * 3}}, xlabel="x", log=log).axes
    assert axes.get_xscale() == scale


def test_panels_share_the_upright_axis_only_where_asked():
    for shared in (True, False):
        left, right = figures.draw_bands(EPOCHS, BANDS, xlabel="epochs", shared=shared).axes
        assert (left.get_ylim() == right.get_ylim()) == shared


@pytest.mark.parametrize("runs", [[[1.0], []], [[1.0]] * 4])
def test_a_place_without_a_value_or_a_value_without_a_place_is_refused(runs):
    with pytest.raises(ValueError, match="'ties' has values at"):
        figures.draw_bands(EPOCHS, {"a": {"ties": runs}}, xlabel="x")


@pytest.mark.parametrize("name", ["bands", "multiples"])
def test_without_panels_there_is_no_figure(name):
    draw = {
        "bands": lambda: figures.draw_bands([1], {}, xlabel="x"),
        "multiples": lambda: figures.draw_multiples([1], {}, xlabel="x", ylabel="y"),
    }
    with pytest.raises(ValueError, match="panels"):
        draw[name]()


def test_leads_stand_in_their_run_s_row_beside_the_equal_share():
    axes = DRAWINGS["leads"]().axes[0]
    rows = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert rows["DTD"] > rows["SVHN"]  # in the order given, from the top
    for measure in ("gradient", "distance"):
        points = {y: x for x, y in curves(axes)[measure].get_xydata()}
        assert points == {rows[name]: SHARES[name][measure] for name in SHARES}
    equal = {y: x for x, y in axes.collections[0].get_offsets()}
    assert equal == pytest.approx({rows["DTD"]: 1 / 76, rows["SVHN"]: 1 / 4})


def test_leads_need_an_equal_share_for_each_run():
    with pytest.raises(KeyError, match="SVHN"):
        figures.draw_leads(SHARES, equal={"DTD": 0.1})


def cells(axes):
    """(row, column) -> colour and text of each cell, by the names on the axes."""
    columns = [text.get_text() for text in axes.get_xticklabels()]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    colours = axes.collections[0].get_array()
    found = {}
    for text in axes.texts:
        j, i = (int(place) for place in text.get_position())
        found[rows[i], columns[j]] = (tuple(colours[i, j]), text)
    return found


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_interference_writes_hundredths_into_each_cell_and_colours_them_by_sign_and_size():
    axes = DRAWINGS["interference"]().axes[0]
    found = cells(axes)
    said = {place: text.get_text() for place, (_, text) in found.items()}
    assert said == {
        ("mnist", "mnist"): "+40", ("mnist", "cars"): "-20", ("cars", "mnist"): "0", ("cars", "cars"): "0",
    }  # fmt: skip
    gain, loss = (found[place][0] for place in list(found)[:2])
    assert gain[2] > gain[0]  # blue
    assert loss[0] > loss[2]  # orange
    deep = figures.draw_interference({"a": {"b": 0.5, "c": 0.1}}, ylabel="y", xlabel="x").axes[0]
    strong, weak = (cells(deep)["a", column][0] for column in "bc")
    assert sum(strong) < sum(weak)
    assert [seen(axes, number) for number in range(4)] == [True, True, False, False]  # 0.5 and less: the page
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is the upper one


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_are_readable_on_the_deepest_cell(sign):
    figure = figures.draw_interference({"a": {"b": sign * 0.5}}, ylabel="y", xlabel="x")
    colour, text = cells(figure.axes[0])["a", "b"]
    dark, light = luminance(to_rgb(text.get_color())), luminance(colour)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def seen(axes, number):
    """Whether a cell has a colour of its own, or lets the page through, light or dark."""
    return bool(axes.collections[0].to_rgba(axes.collections[0].get_array())[..., 3].flat[number])


def test_interference_of_nothing_shows_the_page_and_a_grey_number():
    figure = figures.draw_interference({"a": {"b": 0.0}}, ylabel="y", xlabel="x")
    _, text = cells(figure.axes[0])["a", "b"]
    assert not seen(figure.axes[0], 0)
    assert text.get_text() == "0"
    assert text.get_color() == figures.GREY


def test_threads_are_the_runs_themselves_and_no_band_hides_them():
    runs = [[0.1, 0.5, 0.3], [0.2, 0.4, 0.9]]
    axes = figures.draw_bands([1, 2], {"a": {"sum": runs}}, xlabel="x", threads=True).axes[0]
    thin = [line.get_ydata().tolist() for line in axes.lines if line.get_label().startswith("_")]
    assert thin == [[0.1, 0.2], [0.5, 0.4], [0.3, 0.9]]
    assert not axes.collections
    with pytest.raises(ValueError, match=r"'sum' has \[2, 3\] values"):
        figures.draw_bands([1, 2], {"a": {"sum": [[1, 2], [1, 2, 3]]}}, xlabel="x", threads=True)


def test_multiples_draw_each_run_and_the_mean_of_a_label_in_its_task_s_panel():
    *shown, spare = DRAWINGS["multiples"]().axes
    assert [axes.get_title() for axes in shown] == list(TASKS)
    assert not spare.get_visible()
    for axes, of_task in zip(shown, TASKS.values(), strict=True):
        found = curves(axes)
        assert set(found) == {*of_task, "equal"}
        assert set(found["equal"].get_ydata()) == {0.5}
        for label, runs in of_task.items():
            means = [sum(values) / len(values) for values in runs]
            np.testing.assert_allclose(found[label].get_xydata(), np.stack([[1, 2], means], 1))
            colour = found[label].get_color()
            thin = [line for line in axes.lines if line.get_label().startswith("_")]
            own = [line.get_ydata().tolist() for line in thin if line.get_color() == colour]
            assert own == np.array(runs).T.tolist()


def test_multiples_have_the_same_axes_and_a_label_the_same_look():
    first, second, third, _ = DRAWINGS["multiples"]().axes
    assert first.get_xlim() == second.get_xlim() == third.get_xlim()
    assert first.get_ylim() == second.get_ylim() == third.get_ylim()
    for label, one, other in (("much", first, second), ("little", second, third)):
        looks = [(curves(axes)[label].get_color(), curves(axes)[label].get_marker()) for axes in (one, other)]
        assert looks[0] == looks[1]
    assert curves(first)["much"].get_color() == figures.COLOURS[1]  # the second of the order
    assert [axes.get_xlabel() for axes in (first, second, third)] == ["", "epoch", "epoch"]
    assert [axes.get_ylabel() for axes in (first, second, third)] == ["share", "", "share"]


def test_a_label_keeps_its_colour_where_others_are_missing():
    runs = [[1.0], [2.0], [3.0]]
    whole = figures.draw_bands(EPOCHS, {"a": {"x": runs, "y": runs, "z": runs}}, xlabel="epochs").axes[0]
    alone = figures.draw_bands(EPOCHS, {"a": {"z": runs, "new": runs}}, xlabel="epochs", order="xyz").axes[0]
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in (whole, alone)]
    assert colours[0]["z"] == colours[1]["z"]
    assert colours[1]["new"] not in (colours[0]["x"], colours[0]["y"], colours[0]["z"])
