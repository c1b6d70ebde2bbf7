"""The drawings of the book: data in, Figure out; none computes results.

Call `use_book_style()` once, then any `draw_*`. Nothing happens at import.
"""

from taskvec_mini.figures.bounds import draw_bounds, draw_tightness
from taskvec_mini.figures.common import (
    contours,
    draw_accuracies,
    draw_bars,
    draw_examples,
    draw_paths,
    draw_scatter,
    draw_slopes,
    legend_below,
    new_figure,
)
from taskvec_mini.figures.gap import draw_landscape, draw_panels, draw_parting
from taskvec_mini.figures.reported import draw_budgets, draw_differences, draw_dots
from taskvec_mini.figures.rounds import draw_curves, draw_rounds, draw_splits
from taskvec_mini.figures.strips import draw_strips
from taskvec_mini.figures.style import (
    COLOURS,
    DASHES,
    GREY,
    STYLE,
    series_style,
    use_book_style,
)
from taskvec_mini.figures.vision import (
    draw_bands,
    draw_interference,
    draw_leads,
    draw_multiples,
)

__all__ = [
    "COLOURS",
    "DASHES",
    "GREY",
    "STYLE",
    "contours",
    "draw_accuracies",
    "draw_bands",
    "draw_bars",
    "draw_bounds",
    "draw_budgets",
    "draw_curves",
    "draw_differences",
    "draw_dots",
    "draw_examples",
    "draw_interference",
    "draw_landscape",
    "draw_leads",
    "draw_multiples",
    "draw_panels",
    "draw_parting",
    "draw_paths",
    "draw_rounds",
    "draw_scatter",
    "draw_slopes",
    "draw_splits",
    "draw_strips",
    "draw_tightness",
    "legend_below",
    "new_figure",
    "series_style",
    "use_book_style",
]
