"""The figures of rounds show all of their data, with labels, and leave nothing behind."""

import numpy as np
import pytest
import torch

from drawings import curves
from taskvec_mini import figures


def walk(seed, *shape):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)).cumsum(-2)


TRACKS = {"1 × 4": [walk(0, 2, 5)], "2 × 2": [walk(1, 2, 3), walk(2, 2, 3)]}
MERGED = {"1 × 4": walk(3, 2), "2 × 2": walk(4, 3)}
MULTITASK = walk(5, 5)
SPLITS, RUNS = ["1 × 4", "2 × 2", "4 × 1"], [[0.5, 0.6, 0.7], [0.52, 0.58, 0.76]]
REFERENCES = {"joint": [0.8, 0.9], "one shot": [0.55, 0.45]}
PANELS = {
    "start": {
        "measured": ([1, 2, 4], [3.0, 2.0, 1.0]),
        "law": ([1, 4], [3.0, 1.5]),
        "law 2": ([1, 2], [9, 8]),
    },
    "late": {"promised": ([1, 2], [2.0, -1.0]), "measured": ([1, 2], [0.5, 0.25])},
}
GUIDES = {"law": "the law", "law 2": "the law"}
DRAWINGS = {
    "rounds": lambda: figures.draw_rounds(TRACKS, MERGED, MULTITASK, surface=lambda x, y: x**2 + y**2),
    "splits": lambda: figures.draw_splits(SPLITS, RUNS, references=REFERENCES),
    "curves": lambda: figures.draw_curves(
        PANELS, xlabel="steps", ylabel="fall", log=["x"], dotted=GUIDES, zero=True
    ),
}
WORDS = {
    "rounds": {"1 × 4", "2 × 2", "task 1", "task 2", "merge", "multitask descent", "θ₁", "θ₂"},
    "splits": {*SPLITS, "joint", "one shot", "rounds, mean of the seeds", "mean test accuracy"},
    "curves": {"start", "late", "measured", "promised", "the law", "steps", "fall"},
}


def test_rounds_show_every_track_the_merge_and_the_same_multitask_path():
    for axes, title in zip(DRAWINGS["rounds"]().axes, TRACKS, strict=True):
        assert axes.get_title() == title
        shown = [line.get_xydata() for line in axes.lines]
        expected = [path for tracks in TRACKS[title] for path in tracks] + [MULTITASK, MERGED[title]]
        assert len(shown) == len(expected)
        for found, path in zip(shown, expected, strict=True):
            np.testing.assert_array_equal(found, path.numpy())
        lines = curves(axes)
        assert set(lines) == {"task 1", "task 2", "merge", "multitask descent"}
        later = axes.lines[len(TRACKS[title][0]) * (len(TRACKS[title]) - 1)]  # task 1 in the last round
        assert later.get_color() == lines["task 1"].get_color()
        assert lines["merge"].get_color() != lines["multitask descent"].get_color()


def test_panels_of_rounds_share_limits_that_hold_all_points():
    left, right = DRAWINGS["rounds"]().axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    points = np.concatenate([line.get_xydata() for axes in (left, right) for line in axes.lines])
    for low, high, values in zip(*zip(left.get_xlim(), left.get_ylim(), strict=True), points.T, strict=True):
        assert low < values.min()
        assert values.max() < high


def test_splits_show_every_seed_the_means_and_the_references():
    axes = DRAWINGS["splits"]().axes[0]
    lines = curves(axes)
    np.testing.assert_allclose(lines["rounds, mean of the seeds"].get_ydata(), [0.51, 0.59, 0.73])
    seeds = [list(line.get_ydata()) for line in axes.lines if line.get_label().startswith("_")]
    assert seeds == RUNS
    for label, values in REFERENCES.items():
        assert lines[label].get_ydata()[0] == pytest.approx(np.mean(values))
    bands = [
        tuple(patch.get_extents().transformed(axes.transData.inverted()).intervaly) for patch in axes.patches
    ]
    np.testing.assert_allclose(bands, [(0.8, 0.9), (0.45, 0.55)])
    assert [text.get_text() for text in axes.get_xticklabels()] == SPLITS


def test_curves_keep_a_label_s_look_and_draw_guides_in_grey_dots():
    figure = DRAWINGS["curves"]()
    left, right = figure.axes
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert {axes.get_yscale() for axes in figure.axes} == {"linear"}
    assert curves(left)["measured"].get_color() == curves(right)["measured"].get_color()
    assert curves(left)["measured"].get_color() != curves(right)["promised"].get_color()
    guides = [line for line in left.lines if line.get_label() == "the law"]
    assert [list(line.get_ydata()) for line in guides] == [[3.0, 1.5], [9, 8]]
    assert {line.get_linestyle() for line in guides} == {":"}
    for axes in figure.axes:
        assert [line.get_ydata()[0] for line in axes.lines if line.get_label().startswith("_")] == [0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["measured", "the law", "promised"]
    plain = figures.draw_curves(PANELS, xlabel="", ylabel="", log=["y"], sharey=True)
    assert plain.axes[0].get_yscale() == "log"
    assert plain.axes[0].get_ylim() == plain.axes[1].get_ylim()
    assert not [line for line in plain.axes[0].lines if line.get_label().startswith("_")]
