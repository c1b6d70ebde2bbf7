"""How a figure is shown in a notebook: as sharp lines where these weigh little, and once more for a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

LARGEST_SVG = 200_000  # bytes; above it the picture of pixels alone is kept
PIXELS_PER_INCH = 120  # at which a page shows a figure if it has room
NARROW = "application/vnd.taskvec-mini.narrow+svg"  # the second drawing, for book/_ext/phone_figures.py
NARROW_WIDTH = 3.4  # inches: text of 9 points is 13 pixels high on a screen 390 pixels wide


class BookFigure(Figure):
    """A figure of matplotlib's that shows itself as SVG, with another SVG whose panels are stacked.

    Both stand beside a PNG, for whatever does not know better. Where the SVG is too heavy, the PNG is alone
    and twice as fine. A figure whose panels cannot be stacked (`stacks` False, or more than one row of them)
    has no second SVG: on a phone it scrolls in its frame.
    """

    stacks = True

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], Any]:
        svg = _svg(self)
        light = len(svg.encode()) < LARGEST_SVG
        size = {"width": round(PIXELS_PER_INCH * self.get_figwidth())}
        data: dict[str, Any] = {"text/plain": repr(self)}
        data["image/png"] = _png(self, dpi=PIXELS_PER_INCH if light else 2 * PIXELS_PER_INCH)
        if light:
            data["image/svg+xml"] = svg
        panels = _row_of_panels(self)
        if self.stacks and panels:
            with _stacked(self, panels):
                narrow = _svg(self)
            if len(narrow.encode()) < LARGEST_SVG:
                data[NARROW] = narrow
        return data, {kind: size for kind in data if kind.startswith("image/")}


def show_book_figures(display_formatter: Any) -> None:
    """Let IPython take a `BookFigure`'s own PNG, not the one that the backend makes of any figure."""
    display_formatter.formatters["image/png"].for_type(BookFigure, _left_to_the_figure)


def _left_to_the_figure(figure: BookFigure) -> None:
    """None: no PNG from here."""


def _png(figure: Figure, *, dpi: int) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode()


def _svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text, for it has no date and no random names."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _row_of_panels(figure: Figure) -> list[Axes]:
    """The panels of a figure that has one row of them, from left to right; none if it has more rows."""
    panels = [(axes.get_subplotspec(), axes) for axes in figure.axes if axes.get_subplotspec() is not None]
    if not panels or any(spec.get_gridspec().nrows > 1 for spec, _ in panels if spec is not None):
        return []
    return [axes for _, axes in panels]


@contextmanager
def _stacked(figure: Figure, panels: list[Axes]) -> Iterator[None]:
    """The figure with its panels one below the other, legends of one or two columns; as before afterwards."""
    width, size_up = figure.get_size_inches()
    specs = [axes.get_subplotspec() for axes in panels]
    hidden = [axes for axes in panels[1:] if not axes.yaxis.get_tick_params().get("labelleft", True)]
    unnamed = [axes for axes in hidden if not axes.get_ylabel()]
    legends = [(owner, legend) for owner in (figure, *panels) for legend in _legends(owner)]
    rows = sum(len(legend.get_texts()) for _, legend in legends if legend.axes is None)
    height = size_up  # of each panel; a long list of rows keeps its own
    if size_up < 4.5:
        height = min(size_up, 3.0 if len(panels) > 1 else 3.4)
    grid = figure.add_gridspec(len(panels), 1)
    figure.set_size_inches(NARROW_WIDTH, height * len(panels) + 0.16 * rows)
    for row, axes in enumerate(panels):
        axes.set_subplotspec(grid[row, 0])
    for axes in hidden:
        axes.yaxis.set_tick_params(labelleft=True)
    for axes in unnamed:
        axes.set_ylabel(panels[0].get_ylabel())
    columns = [_set_columns(legend, min(legend._ncols, 1 if _long(legend) else 2)) for _, legend in legends]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for (_, legend), before in zip(legends, columns, strict=True):
            _set_columns(legend, before)
        for axes in unnamed:
            axes.set_ylabel("")
        for axes in hidden:
            axes.yaxis.set_tick_params(labelleft=False)
        for axes, spec in zip(panels, specs, strict=True):
            if spec is not None:
                axes.set_subplotspec(spec)
        figure.set_size_inches(width, size_up)


def _legends(owner: Any) -> list[Legend]:
    if isinstance(owner, Axes):
        legend = owner.get_legend()
        return [legend] if legend is not None else []
    return list(owner.legends)


def _long(legend: Legend) -> bool:
    return max((len(text.get_text()) for text in legend.get_texts()), default=0) > 18


def _set_columns(legend: Legend, columns: int) -> int:
    """Lay a legend out anew in so many columns; the number it had."""
    before: int = legend._ncols  # type: ignore[attr-defined]
    legend.set_ncols(columns)
    title: Any = legend.get_title().get_text() or None  # None: without a line for it
    legend._init_legend_box(legend.legend_handles, [text.get_text() for text in legend.get_texts()])  # type: ignore[attr-defined]
    legend._legend_box.set_offset(legend._findoffset)  # type: ignore[attr-defined]
    legend.set_title(title)
    return before
