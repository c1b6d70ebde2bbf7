"""The figures that any chapter may use show all of their data, with labels, and leave nothing behind."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from taskvec_mini import figures
from taskvec_mini.figures import COLOURS
from taskvec_mini.tasks import digit_tasks

TASKS = list(digit_tasks().values())
MANY = [f"number {i}" for i in range(8)]  # more than there are colours
STEPS = [0.1, 0.01, 0.001]


def bowl(x, y):
    return x**2 + 3 * y**2


def walk(seed):
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)).cumsum(0)


ACCURACIES = {
    "pretrained": {"digits": 0.1, "rotated": 0.2, "mirrored": 0.3},
    "merged": {"rotated": 0.8, "digits": 0.9, "mirrored": 0.7},
}
PATHS = {"one": walk(0), "other": walk(1)}
ARROWS = {"task vector": (torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))}
DRAWINGS = {
    "examples": lambda: figures.draw_examples(TASKS[:3], count=4),
    "accuracies": lambda: figures.draw_accuracies(ACCURACIES, chance=0.1),
    "paths": lambda: figures.draw_paths(PATHS, surface=bowl, arrows=ARROWS),
    "plain paths": lambda: figures.draw_paths(PATHS, labels=("a", "b")),
    "scatter": lambda: figures.draw_scatter(
        torch.arange(5.0), {"one": torch.ones(5), "other": torch.arange(5.0)}, xlabel="across", ylabel="up"
    ),
    "slopes": lambda: figures.draw_slopes(
        STEPS,
        {"gap": [1e-2, 2.5e-3, 6e-4], "rest": [1e-3, 1e-4, 1e-5]},
        guides={"slope 2": lambda step: step**2},
    ),
    "bars": lambda: figures.draw_bars(
        {"float64": 1e-14, "float32": 1e-7}, xlabel="relative error", marks={"2⁻⁵²": 2.0**-52}
    ),
    "linear bars": lambda: figures.draw_bars({"a": 1.0, "b": -2.0}, xlabel="x", log=False, form="{:.0f}"),
}
SCORES = {"test accuracy", "pretrained", "merged", "digits", "rotated", "mirrored", "chance", "tested on"}
WORDS = {
    "examples": {"digits", "rotated", "mirrored"},
    "accuracies": SCORES,
    "paths": {"θ₁", "θ₂", "one", "other", "task vector"},
    "plain paths": {"a", "b", "one", "other"},
    "scatter": {"across", "up", "one", "other", "equal"},
    "slopes": {"learning rate η", "relative error", "gap", "rest", "slope 2"},
    "bars": {"relative error", "float64", "float32", "1.0e-14", "1.0e-07", "2⁻⁵²"},
    "linear bars": {"x", "a", "b", "1", "-2"},
}


# --- each shows its data ---------------------------------------------------------------------------------


def test_examples_show_the_first_training_images_with_their_answers():
    figure = figures.draw_examples(TASKS, count=3)
    grid = np.array(figure.axes).reshape(len(TASKS), 3)
    for task, row in zip(TASKS, grid, strict=True):
        assert row[0].get_ylabel() == task.name
        for i, axes in enumerate(row):
            shown = axes.images[0].get_array()
            np.testing.assert_array_equal(shown, task.train_inputs[i].numpy().reshape(8, 8))
            assert axes.get_title() == task.class_names[task.train_labels[i]]
            assert axes.images[0].get_clim() == (0, 1)
            assert axes.images[0].get_cmap().name == "gray_r"  # 1 is ink
    narrow = figure.narrow()
    assert [axes.texts[0].get_text() for axes in narrow.axes[::3]] == [task.name for task in TASKS]
    for wide, small in zip(figure.axes, narrow.axes, strict=True):
        np.testing.assert_array_equal(wide.images[0].get_array(), small.images[0].get_array())
        assert small.get_xlabel() == wide.get_title()


def test_accuracies_have_a_bar_for_each_model_and_task():
    axes = figures.draw_accuracies(ACCURACIES).axes[0]
    assert [bars.get_label() for bars in axes.containers] == ["digits", "rotated", "mirrored"]
    for bars in axes.containers:
        heights = [bar.get_height() for bar in bars]
        assert heights == [scores[bars.get_label()] for scores in ACCURACIES.values()]
    assert axes.get_ylim()[0] == 0
    axes.figure.draw_without_rendering()
    assert "0.90" in {text.get_text() for text in axes.figure.findobj(mpl.text.Text)}
    places = sorted(bar.get_x() for bars in axes.containers for bar in bars)
    gaps = np.diff(places)
    assert (gaps > axes.containers[0][0].get_width()).all()  # no bar hides another


def test_on_a_phone_the_bars_lie_and_say_the_same():
    figure = figures.draw_accuracies(ACCURACIES, chance=0.25)
    (axes,) = figure.narrow().axes
    for bars in axes.containers:
        lengths = [bar.get_width() for bar in bars]
        assert lengths == [scores[bars.get_label()] for scores in ACCURACIES.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ACCURACIES)
    tops = [bars[0].get_y() for bars in axes.containers]
    assert tops == sorted(tops)
    assert axes.yaxis_inverted()  # the first task and the first model are the uppermost


def test_bars_of_a_model_stand_around_its_name():
    axes = figures.draw_accuracies(ACCURACIES).axes[0]
    for place, group in enumerate(zip(*axes.containers, strict=True)):
        centres = [bar.get_x() + bar.get_width() / 2 for bar in group]
        assert np.mean(centres) == pytest.approx(place)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(ACCURACIES)


def test_paths_go_through_their_points_and_arrows_from_tail_to_head():
    axes = figures.draw_paths(PATHS, arrows=ARROWS, surface=bowl).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for label, path in PATHS.items():
        np.testing.assert_array_equal(lines[label].get_xydata(), path.numpy())
    quiver = next(part for part in axes.collections if part.get_label() == "task vector")
    assert (quiver.X[0], quiver.Y[0], quiver.U[0], quiver.V[0]) == (0, 1, 2, 2)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for x, y in [*torch.cat(list(PATHS.values())).tolist(), (0, 1), (2, 3)]:
        assert left < x < right
        assert low < y < high


def test_a_surface_adds_contours_and_keeps_the_limits():
    without, with_surface = (figures.draw_paths(PATHS, surface=s).axes[0] for s in (None, bowl))
    assert not without.collections
    assert len(with_surface.collections[0].get_paths()) > 5
    assert with_surface.get_xlim() == without.get_xlim()
    assert with_surface.get_ylim() == without.get_ylim()


def test_scatter_panels_hold_each_vector_and_the_diagonal():
    across, panels = torch.arange(5.0), {label: torch.full((5,), float(i)) for i, label in enumerate(MANY)}
    figure = figures.draw_scatter(across, panels, xlabel="x", ylabel="y")
    assert [axes.get_title() for axes in figure.axes] == MANY
    for axes, up in zip(figure.axes, panels.values(), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), torch.stack([across, up], 1).numpy())
        assert axes.lines[1].get_slope() == 1
        assert axes.lines[1].get_xy1() == (0, 0)


def test_slopes_stand_on_logarithmic_axes():
    errors = {"gap": [1e-2, 2.5e-3, 6e-4]}
    axes = figures.draw_slopes(STEPS, errors, guides={"slope 2": lambda step: step**2}).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    gap, guide = axes.lines
    np.testing.assert_allclose(gap.get_xydata(), np.stack([STEPS, errors["gap"]], 1))
    np.testing.assert_allclose(guide.get_ydata(), np.square(STEPS))


def test_bars_stand_in_order_from_the_top():
    values = {"first": 1.0, "second": 10.0, "third": 100.0}
    axes = figures.draw_bars(values, xlabel="x", marks={"limit": 5.0}).axes[0]
    places = {
        tick.get_text(): place for tick, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.containers[0]}
    assert places["first"] > places["second"] > places["third"]
    assert {name: widths[place] for name, place in places.items()} == values
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata() == [5.0, 5.0]
    assert figures.draw_bars(values, xlabel="x", log=False).axes[0].get_xscale() == "linear"


# --- nothing is left out ---------------------------------------------------------------------------------


def look(line):
    return to_hex(line.get_color()), line.get_linestyle(), str(line._dash_pattern), line.get_marker()


def test_more_series_than_colours_are_all_drawn_and_all_look_different():
    paths = figures.draw_paths({label: walk(i) for i, label in enumerate(MANY)}).axes[0]
    slopes = figures.draw_slopes(STEPS, {label: [1.0, 0.5, 0.1] for label in MANY}).axes[0]
    assert len(MANY) > len(COLOURS)
    for axes in (paths, slopes):
        assert [line.get_label() for line in axes.lines] == MANY
        assert len({look(line) for line in axes.lines}) == len(MANY)


def test_more_tasks_than_colours_are_all_drawn():
    scores = {"model": dict.fromkeys(MANY, 0.5)}
    axes = figures.draw_accuracies(scores).axes[0]
    assert [bars.get_label() for bars in axes.containers] == MANY
    looks = {(to_hex(bars[0].get_facecolor()), bars[0].get_hatch()) for bars in axes.containers}
    assert len(looks) == len(MANY)


def test_more_arrows_and_marks_than_styles_are_all_drawn():
    arrows = {label: (torch.zeros(2), torch.ones(2) * i) for i, label in enumerate(MANY, 1)}
    axes = figures.draw_paths(PATHS, arrows=arrows).axes[0]
    assert [part.get_label() for part in axes.collections] == MANY
    marks = {label: float(i) for i, label in enumerate(MANY, 1)}
    assert [
        line.get_label() for line in figures.draw_bars({"a": 1.0}, xlabel="x", marks=marks).axes[0].lines
    ] == MANY


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="scores is empty; give at least one"):
        figures.draw_accuracies({})
