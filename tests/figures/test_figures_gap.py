"""The figures of the gap show all of their data, with labels, and leave nothing behind."""

import numpy as np
import torch

from drawings import curves
from taskvec_mini import figures


def walk(seed, epochs=4):
    return torch.randn(epochs + 1, 2, generator=torch.Generator().manual_seed(seed)).cumsum(0)


TRACKS = {"task 1": walk(0), "task 2": walk(1)}
STEPS = [0.5, 0.25, 0.125]
PANELS = {
    "what is left": {"gap": [4e-2, 1e-2, 2.5e-3], "rest": [8e-3, 1e-3, 1.25e-4]},
    "slope": {"rest": [3.0, 3.0], "gap": [2.0, 2.0]},
}
ACROSS, UP = np.linspace(-1, 1, 5), np.linspace(0, 1, 4)
HEIGHTS = {"loss": np.add.outer(UP, ACROSS), "disagreement": np.multiply.outer(UP, ACROSS)}
DRAWINGS = {
    "parting": lambda: figures.draw_parting(TRACKS, walk(2), walk(3), surface=lambda x, y: x**2 + y**2),
    "panels": lambda: figures.draw_panels(
        STEPS, PANELS, linear=["slope"], references={"slope": [2, 3]}, xlabel="η"
    ),
    "landscape": lambda: figures.draw_landscape(
        ACROSS, UP, HEIGHTS, paths={"merge": walk(2) / 9}, labels=("along", "aside")
    ),
}
WORDS = {
    "parting": {"task 1", "task 2", "merge", "multitask descent", "epoch 1", "epoch 4", "θ₁", "θ₂"},
    "panels": {"what is left", "slope", "gap", "rest", "η"},
    "landscape": {"loss", "disagreement", "merge", "along", "aside"},
}


def test_parting_joins_merge_and_multitask_descent_at_equal_epochs():
    axes = DRAWINGS["parting"]().axes[0]
    lines = curves(axes)
    expected = {**TRACKS, "merge": walk(2), "multitask descent": walk(3)}
    assert set(lines) == set(expected)
    for label, path in expected.items():
        np.testing.assert_array_equal(lines[label].get_xydata(), path.numpy())
    joins = [line.get_xydata() for line in axes.lines if line.get_label().startswith("_")]
    ends = torch.stack([walk(2), walk(3)], dim=1).numpy()
    np.testing.assert_array_equal(np.stack(joins), ends)


def test_panels_align_slopes_with_the_smaller_step_and_keep_a_label_s_look():
    left, right = DRAWINGS["panels"]().axes
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
    for axes, title in ((left, "what is left"), (right, "slope")):
        for label, values in PANELS[title].items():
            line = curves(axes)[label]
            assert list(line.get_ydata()) == values
            assert list(line.get_xdata()) == STEPS[len(STEPS) - len(values) :]
    for label in ("gap", "rest"):
        assert curves(left)[label].get_color() == curves(right)[label].get_color()
        assert curves(left)[label].get_marker() == curves(right)[label].get_marker()
    assert curves(left)["gap"].get_color() != curves(left)["rest"].get_color()
    heights = [line.get_ydata()[0] for line in right.lines if line.get_label().startswith("_")]
    assert heights == [2, 3]


def test_panels_have_one_legend_for_all():
    figure = DRAWINGS["panels"]()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["gap", "rest"]
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_landscape_shows_both_maps_with_the_path_on_each():
    figure = DRAWINGS["landscape"]()
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == list(HEIGHTS)
    for axes, heights in zip(maps, HEIGHTS.values(), strict=True):
        np.testing.assert_array_equal(curves(axes)["merge"].get_xydata(), (walk(2) / 9).numpy())
        shades = axes.collections[0]
        assert shades.levels[0] <= heights.min()
        assert shades.levels[-1] >= heights.max()
        rim = curves(axes)["merge"].get_path_effects()[0]
        assert rim._gc["foreground"] == "white"  # seen on every shade
