"""Charts of fine-tuning runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.charts import Record, _by_method, _plain_log_ticks
from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, colour_of, new_figure


def accuracy_by_size(records: Sequence[Record], error: float | None = None) -> Figure:
    """Accuracy against what must be kept, on a logarithmic axis: a small mark a run, a large one a method's mean.

    Args:
        records: dicts with ``method``, ``stored`` (head included) and ``accuracy``, one a run.
        error: standard error of one accuracy; drawn as a grey band around LoRA's mean.
    """
    figure, axis = new_figure(4.8)
    for method, rows in _by_method(records).items():
        colour, marker = colour_of(method), METHOD_MARKERS[method] or "."
        stored, scores = rows[0]["stored"], [row["accuracy"] for row in rows]
        axis.plot([stored] * len(scores), scores, "_", color=colour, markersize=11, alpha=0.7, label="_run")
        axis.plot([stored], [np.mean(scores)], marker, color=colour, markersize=10, label=method)
        if error is not None and method == "LoRA":
            mean = float(np.mean(scores))
            axis.axhspan(mean - error, mean + error, color=METHOD_COLOURS["head-only"], alpha=0.18, lw=0)
    axis.set(xscale="log", xlabel="parameters kept, head included", ylabel="accuracy")
    _plain_log_ticks(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
