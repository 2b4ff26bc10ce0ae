"""One visual language for the whole book: a colour a method, one style, and all drawings of the chapters.

Each function takes plain Python numbers (or anything that converts to a NumPy array) and returns a
``matplotlib.figure.Figure`` that belongs to no window: a notebook shows it once, as the last value of a cell.
`explore` and `simplex` return a control instead, which works with and without a kernel.
``import vbank`` does not import this package; it needs matplotlib (``pip install vbank[book]``).
"""

from vbank.figures.charts import (
    bars,
    copy_cost,
    fit_curve,
    heatmaps,
    learning_curves,
    lines,
    rank_sweep,
    readable_bytes,
    shootout,
    singular_values,
    storage_by_users,
)
from vbank.figures.compositions import composition
from vbank.figures.controls import explore
from vbank.figures.drawings import low_rank_factors, map_of_methods, two_paths
from vbank.figures.finetuning import accuracy_by_size
from vbank.figures.mathematics import differences
from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, SVG_METADATA, WIDTH, style, tint
from vbank.figures.papers import paper_table
from vbank.figures.simplexes import simplex

__all__ = [
    "METHOD_COLOURS",
    "METHOD_MARKERS",
    "SVG_METADATA",
    "WIDTH",
    "accuracy_by_size",
    "bars",
    "composition",
    "copy_cost",
    "differences",
    "explore",
    "fit_curve",
    "heatmaps",
    "learning_curves",
    "lines",
    "low_rank_factors",
    "map_of_methods",
    "paper_table",
    "rank_sweep",
    "readable_bytes",
    "shootout",
    "simplex",
    "singular_values",
    "storage_by_users",
    "style",
    "tint",
    "two_paths",
]
