"""Charts with sliders and questions: alive on the static page of the book, in Jupyter and in Colab."""

from taskvec_mini.explore.guess import Guess, guess
from taskvec_mini.explore.sliders import VEGA_URLS, Bars, Lines, Range, Reference, explore, rows_on_grid

__all__ = ["VEGA_URLS", "Bars", "Guess", "Lines", "Range", "Reference", "explore", "guess", "rows_on_grid"]
