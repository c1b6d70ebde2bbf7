"""What the tests of the figures look at: the pixels, and the lines with a label."""

import io

import matplotlib.pyplot as plt


def picture(figure):
    """The pixels (H, W, 4) of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return plt.imread(io.BytesIO(file.getvalue()))


def curves(axes):
    """The labelled lines of these axes, by label."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
