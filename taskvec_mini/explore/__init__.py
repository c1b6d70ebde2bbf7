"""Charts with sliders: alive on the static page of the book, in Jupyter and in Colab."""

from taskvec_mini.explore.sliders import VEGA_URLS, Bars, Lines, Range, Reference, explore, rows_on_grid

__all__ = ["VEGA_URLS", "Bars", "Lines", "Range", "Reference", "explore", "rows_on_grid"]
