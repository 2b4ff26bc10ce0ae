"""One visual language for the whole book: a colour a method, one style, and all drawings of the chapters.

Each function takes plain Python numbers (or anything that converts to a NumPy array) and returns a
``matplotlib.figure.Figure`` that belongs to no window: a notebook shows it once, as the last value of a cell.
`explore` and `simplex` return a control instead, which works with and without a kernel.
``import vbank`` does not import this package; it needs matplotlib (``pip install vbank[book]``).
"""

from vbank.figures.bank import bank_plane, bank_usage, weights_by_layer, weights_by_module
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
from vbank.figures.navigation import navigation
from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, SVG_METADATA, WIDTH, style, tint
from vbank.figures.papers import paper_table
from vbank.figures.simplexes import simplex
from vbank.figures.sortable import sortable
from vbank.figures.through_training import bank_animation, first_and_last, footprints

__all__ = [
    "METHOD_COLOURS",
    "METHOD_MARKERS",
    "SVG_METADATA",
    "WIDTH",
    "accuracy_by_size",
    "bank_animation",
    "bank_plane",
    "bank_usage",
    "bars",
    "composition",
    "copy_cost",
    "differences",
    "explore",
    "first_and_last",
    "fit_curve",
    "footprints",
    "heatmaps",
    "learning_curves",
    "lines",
    "low_rank_factors",
    "map_of_methods",
    "navigation",
    "paper_table",
    "rank_sweep",
    "readable_bytes",
    "shootout",
    "simplex",
    "singular_values",
    "sortable",
    "storage_by_users",
    "style",
    "tint",
    "two_paths",
    "weights_by_layer",
    "weights_by_module",
]
