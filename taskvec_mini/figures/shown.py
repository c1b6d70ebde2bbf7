"""How a figure is shown in a notebook: as sharp lines where these weigh little, and once more for a phone."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

LARGEST_SVG = 200_000  # bytes; above it the picture of pixels alone is kept
PIXELS_PER_INCH = 120  # at which a page shows a figure if it has room
NARROW = "application/vnd.taskvec-mini.narrow+svg"  # the second drawing, for book/_ext/phone_figures.py
NARROW_WIDTH = 3.4  # inches: text of 9 points is 13 pixels high on a screen 390 pixels wide
BETWEEN = 0.25  # inches between stacked panels, so that a title is seen to belong to the panel below it


class BookFigure(Figure):
    """A figure of matplotlib's that shows itself as SVG, with another SVG whose panels are stacked.

    Both stand beside a PNG, for whatever does not know better. Where the SVG is too heavy, the PNG is alone
    and twice as fine. A figure that has a `narrow` way to draw it anew is drawn that way for a phone; what
    was changed in the figure afterwards is not in that drawing. Another one whose panels cannot be stacked
    (`stacks` False, or more than one row of them) has no second SVG, and so has one that is too heavy: on a
    phone it scrolls in its frame.
    """

    narrow: Callable[[], Figure] | None = None
    stacks = True

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], Any]:
        svg = _svg(self)
        light = len(svg.encode()) < LARGEST_SVG
        size = {"width": round(PIXELS_PER_INCH * self.get_figwidth())}
        data: dict[str, Any] = {"text/plain": repr(self)}
        png = io.BytesIO()
        dpi = PIXELS_PER_INCH if light else 2 * PIXELS_PER_INCH
        self.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
        data["image/png"] = base64.b64encode(png.getvalue()).decode()
        if light:
            data["image/svg+xml"] = svg
        narrow = self._narrow_svg() if light else None
        if narrow is not None and len(narrow.encode()) < LARGEST_SVG:
            data[NARROW] = narrow
        return data, {kind: size for kind in data if kind.startswith("image/")}

    def _narrow_svg(self) -> str | None:
        if self.narrow is not None:
            return _svg(self.narrow())
        panels = _row_of_panels(self)
        if not self.stacks or not panels:
            return None
        with _stacked(self, panels):
            return _svg(self)


def show_book_figures(display_formatter: Any) -> None:
    """Let IPython take a `BookFigure`'s own PNG, not the one that the backend makes of any figure."""
    # None says that no PNG comes from here
    display_formatter.formatters["image/png"].for_type(BookFigure, lambda figure: None)


def _svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text, for it has no date and no random names."""
    file = io.StringIO()
    # the resolution is that of what is drawn as pixels in it
    figure.savefig(file, format="svg", dpi=2 * PIXELS_PER_INCH, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _row_of_panels(figure: Figure) -> list[Axes]:
    """The panels of a figure that has one row of them, or one column; none of one that has more of both."""
    panels = [(axes.get_subplotspec(), axes) for axes in figure.axes if axes.get_subplotspec() is not None]
    grids = [spec.get_gridspec() for spec, _ in panels if spec is not None]
    if any(min(grid.nrows, grid.ncols) > 1 for grid in grids):
        return []
    return [axes for _, axes in panels]


@contextmanager
def _stacked(figure: Figure, panels: list[Axes]) -> Iterator[None]:
    """The figure with its panels one below the other, nothing cut or blank; as before afterwards."""
    width, size_up = figure.get_size_inches()
    specs = [axes.get_subplotspec() for axes in panels]
    hidden = [axes for axes in panels[1:] if not axes.yaxis.get_tick_params().get("labelleft", True)]
    unnamed = [axes for axes in hidden if not axes.get_ylabel()]
    words = [words for axes in panels for words in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    written = [(text, text.get_text(), text.get_position()) for text in words]
    legends_of_panels = [axes.get_legend() for axes in panels]
    legends = [*figure.legends, *(legend for legend in legends_of_panels if legend is not None)]
    rows = sum(len(legend.get_texts()) for legend in legends if legend.axes is None)
    stood = 1 if specs[0] is None else specs[0].get_gridspec().nrows  # below each other already
    height = size_up / stood  # of each panel; a long list of rows keeps its own
    if height < 4.5:
        height = min(height, 3.0 if len(panels) > 1 else 3.4)
    height = height * len(panels) + BETWEEN * (len(panels) - 1) + 0.16 * rows
    grid = figure.add_gridspec(len(panels), 1, hspace=BETWEEN * len(panels) / height)
    figure.set_size_inches(NARROW_WIDTH, height)
    for row, axes in enumerate(panels):
        axes.set_subplotspec(grid[row, 0])
    for axes in hidden:
        axes.yaxis.set_tick_params(labelleft=True)
    for axes in unnamed:
        axes.set_ylabel(panels[0].get_ylabel())
    columns = [fit_columns(legend, min(legend._ncols, 2)) for legend in legends]  # type: ignore[attr-defined]
    _without_bands(figure, panels)
    _within(figure, panels)
    try:
        yield
    finally:
        for legend, before in zip(legends, columns, strict=True):
            _set_columns(legend, before)
        for text, own, place in written:
            text.set_text(own)
            text.set_position(place)
        for axes in unnamed:
            axes.set_ylabel("")
        for axes in hidden:
            axes.yaxis.set_tick_params(labelleft=False)
        for axes, spec in zip(panels, specs, strict=True):
            if spec is not None:
                axes.set_subplotspec(spec)
        figure.set_size_inches(width, size_up)


def _without_bands(figure: Figure, panels: list[Axes]) -> None:
    """Take the height away that panels of a fixed aspect leave blank above and below them."""
    figure.draw_without_rendering()
    blank = 0.0
    for axes in panels:
        place = axes.get_position(original=True).transformed(figure.transFigure)
        seen = axes.get_tightbbox()
        if seen is not None:
            blank += max(seen.y0 - place.y0, 0) + max(place.y1 - seen.y1, 0)
    figure.set_size_inches(NARROW_WIDTH, figure.get_figheight() - blank / figure.dpi)
    figure.draw_without_rendering()


def _within(figure: Figure, panels: list[Axes]) -> None:
    """Break titles and labels that are too long, and move those that would be cut at the figure's edge."""
    for axes in panels:
        upright = axes.yaxis.label
        sizes = [(text, text.get_window_extent().width, figure.bbox.width) for text in _across(axes)]
        sizes.append((upright, upright.get_window_extent().height, axes.bbox.height))
        for text, length, room in sizes:
            if length > room:
                words = text.get_text()
                text.set_text(textwrap.fill(words, width=max(1, int(0.95 * len(words) * room / length))))
    figure.draw_without_rendering()
    for axes in panels:
        for text in _across(axes):
            box, (across, up) = text.get_window_extent(), text.get_position()
            move = max(figure.bbox.x0 - box.x0, 0) + min(figure.bbox.x1 - box.x1, 0)
            text.set_position((across + move / axes.bbox.width, up))


def _across(axes: Axes) -> tuple[Text, Text]:
    return axes.title, axes.xaxis.label


def fit_columns(legend: Legend, most: int) -> int:
    """Lay a legend out in the fewest rows at which it fits its figure, in `most` columns at most.

    The number of columns that it had is returned.
    """
    before: int = legend._ncols  # type: ignore[attr-defined]
    count, figure = len(legend.get_texts()), legend.get_figure(root=True)
    for rows in range(1, count + 1):
        columns = -(-count // rows)
        if columns <= most:
            _set_columns(legend, columns)
            if figure is None or legend.get_window_extent().width <= figure.bbox.width:
                break
    return before


def _set_columns(legend: Legend, columns: int) -> None:
    """Lay a legend out anew in so many columns."""
    legend.set_ncols(columns)
    title: Any = legend.get_title().get_text() or None  # None: without a line for it
    legend._init_legend_box(legend.legend_handles, [text.get_text() for text in legend.get_texts()])  # type: ignore[attr-defined]
    legend._legend_box.set_offset(legend._findoffset)  # type: ignore[attr-defined]
    legend.set_title(title)
