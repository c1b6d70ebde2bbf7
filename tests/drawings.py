"""What every figure of the book has to be: a Figure with its words, the same each time, nothing left open."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from taskvec_mini.figures.style import use_book_style


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def curves(axes):
    """The labelled lines of these axes, by label."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def assert_figure_with(words, draw):
    """`draw` returns a figure on which these words stand, and leaves none open."""
    figure = draw()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.findobj(mpl.text.Text)} >= words


def assert_same_again(draw):
    """Drawn twice in the book's style it gives the same bytes, and it changes no defaults."""
    with mpl.rc_context():
        use_book_style()
        defaults = dict(mpl.rcParams)
        assert png(draw()) == png(draw())
        assert dict(mpl.rcParams) == defaults
