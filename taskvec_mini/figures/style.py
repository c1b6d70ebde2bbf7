"""The look of the book's figures: colours, dashes and markers that read on a white page and on a dark one.

Nothing changes at import; a notebook calls `use_book_style()` once. The numbers below are kept by the tests:

- Marks have a contrast of 3:1 or more with the white page and with the dark page of the theme (WCAG 1.4.11).
- Two colours of the palette are 20 or more apart in CIELAB, and 15 or more from `GREY`, as people with normal
  vision, protanopia, deuteranopia and tritanopia see them (simulated after Machado, Oliveira & Fernandes,
  IEEE TVCG 2009).
- `GREY` text has a contrast of 4.2:1 with both pages. No colour can have more than that with both: the
  contrasts with white and with the dark page multiply to 17.8, whose root is 4.2. Text that takes its colour
  from the page does better.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
from cycler import cycler

from taskvec_mini import _checks
from taskvec_mini.figures.shown import show_book_figures

LIGHT_PAGE = "#ffffff"
DARK_PAGE = "#14181e"

GREY = "#7b7b7b"  # text, axes and reference lines
# blue, orange, green, magenta, violet, red
COLOURS = ("#4a74cf", "#da761d", "#2fa562", "#bd2c90", "#764fec", "#bd3323")
SEQUENTIAL = "viridis"  # for areas only: its two ends vanish into one page or the other when drawn as lines

# Dashes in points: on, off, on, off ... The first line is unbroken.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.5, 1.5),
    (7, 2, 1.5, 2),
    (3, 1),
    (5, 1.5, 1, 1.5, 1, 1.5),
)
MARKERS = ("o", "s", "^", "D", "v", "X")

STYLE: dict[Any, Any] = {
    "figure.figsize": (5.8, 3.4),  # 696 pixels wide, the width of the book's column
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "none",
    "legend.frameon": False,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so the same bytes everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "patch.edgecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "axes.prop_cycle": cycler(color=COLOURS),
    "image.cmap": SEQUENTIAL,
    "svg.hashsalt": "taskvec_mini",  # otherwise an SVG file has random ids
}


def use_book_style() -> None:
    """Set matplotlib's defaults to the book's look, for the rest of this process.

    A transparent ground, mid-grey text, the palette `COLOURS`, 696 × 408 pixels. To undo it, call
    `matplotlib.rcdefaults()`.

    Example:
        >>> import matplotlib
        >>> with matplotlib.rc_context():
        ...     use_book_style()
        ...     matplotlib.rcParams["text.color"]
        '#7b7b7b'
    """
    mpl.rcParams.update(STYLE)
    ipython = sys.modules.get("IPython")  # only where somebody has already started it
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        show_book_figures(shell.display_formatter)


def series_style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of the series number `index`, from 0: keywords for `Axes.plot`.

    A reader who cannot tell two colours apart still tells the dashes and the markers apart. After six
    series the colours start again with other dashes; a figure with that many should be two figures.

    Raises:
        ValueError, TypeError: unless `index` is a whole number of at least 0.

    Example:
        >>> series_style(1)
        {'color': '#da761d', 'linestyle': (0, (5, 2)), 'marker': 's'}
    """
    number = _checks.whole_number("index", index, minimum=0)
    turn, place = divmod(number, len(COLOURS))
    dashes = DASHES[(place + turn) % len(DASHES)]
    return {
        "color": COLOURS[place],
        "linestyle": (0, dashes) if dashes else "-",
        "marker": MARKERS[(place + turn) % len(MARKERS)],
    }
