"""What the tests of the figures look at: the pixels, the lines with a label, and what cannot be read."""

import io
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
from matplotlib.text import Text
from matplotlib.transforms import Bbox

FURTHEST = 0.3  # inches without anything, at most, above and below a figure's parts


def picture(figure):
    """The pixels (H, W, 4) of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return plt.imread(io.BytesIO(file.getvalue()))


def curves(axes):
    """The labelled lines of these axes, by label."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def _place(text):
    """Where the letters stand, without a line that leads from them to a point."""
    return Text.get_window_extent(text)


def faults(figure):
    """What a reader would see as a fault: words cut, struck through or on each other, and blank bands."""
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    words = [(text.get_text(), _place(text)) for axes in shown for text in _texts(axes)]
    owners = [axes.get_legend() for axes in shown]
    legends = [legend.get_window_extent() for legend in [*owners, *figure.legends] if legend is not None]
    words += [("legend", box) for box in legends]
    edge = figure.bbox.padded(1)
    found = [f"{word!r} is cut" for word, box in words if not (edge.x0 <= box.x0 and box.x1 <= edge.x1)]
    found += [f"{word!r} is cut" for word, box in words if not (edge.y0 <= box.y0 and box.y1 <= edge.y1)]
    for (word, box), (other, place) in combinations(words, 2):
        shared = Bbox.intersection(box.padded(-1), place.padded(-1))
        if shared is not None and shared.width > 0 and shared.height > 0:
            found.append(f"{word!r} lies on {other!r}")
    within = [(text.get_text(), _place(text)) for axes in shown for text in axes.texts]
    for axes in shown:
        for line in axes.lines:
            if line.get_alpha() == 0:
                continue
            path = line.get_transform().transform_path(line.get_path())
            drawn = line.get_linestyle() not in ("None", "none", "")
            for word, box in [*within, *(("legend", box) for box in legends)]:
                through = drawn and path.intersects_bbox(box.padded(-1), filled=False)
                marks = line.get_marker() not in ("None", "", None)
                if through or (marks and box.count_contains(path.vertices)):
                    found.append(f"a line goes through {word!r}")
    dpi = figure.dpi
    parts = sorted(
        [(box.y0 / dpi, box.y1 / dpi) for box in [*(axes.get_tightbbox() for axes in shown), *legends]]
    )
    filled = 0.0
    for low, high in parts:
        if low - filled > FURTHEST:
            found.append(f"{low - filled:.2f} inches are blank")
        filled = max(filled, high)
    if figure.get_figheight() - filled > FURTHEST:
        found.append(f"{figure.get_figheight() - filled:.2f} inches are blank at the top")
    return found


def gaps(panels):
    """The inches between neighbouring panels, from the upper one down, with all that belongs to each."""
    boxes = [axes.get_tightbbox() for axes in panels]
    return [(upper.y0 - lower.y1) / panels[0].figure.dpi for upper, lower in pairwise(boxes)]


def _texts(axes):
    """All words of these axes that are seen."""
    ticks = [tick for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()]
    labels = [label for tick in ticks for label in (tick.label1, tick.label2)]
    titles = [axes.title, axes._left_title, axes._right_title]
    every = [*labels, *titles, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    return [text for text in every if text.get_visible() and text.get_text().strip()]
