"""Drawings of the chapter *GLUE with RoBERTa*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from vbank.figures.charts import _plain_log_ticks
from vbank.figures.palette import METHOD_MARKERS, colour_of, new_figure


def score_by_size(panels: Mapping[str, Sequence[Mapping[str, Any]]], ylabels: Mapping[str, str]) -> Figure:
    """One panel a task: score against stored numbers; dashes are seeds, marks their median.

    Args:
        panels: title -> rows, dicts with ``method``, ``filled`` (hollow marks tell a second choice of layers),
            ``stored`` and ``scores``. A row that stores nothing is a dashed horizontal.
        ylabels: title -> what the panel's vertical axis measures.

    Raises:
        ValueError: no panel, a panel without a row, or a method without a colour.
    """
    if not panels or not all(panels.values()):
        raise ValueError("nothing to draw; give at least one row a panel")
    figure, axes = new_figure(0.8 + 3.4 * len(panels), nrows=len(panels), squeeze=False, sharex=True)
    handles: dict[str, Any] = {}
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        for row in rows:
            method, scores = row["method"], row["scores"]
            colour, marker = colour_of(method), METHOD_MARKERS[method]
            middle = median(scores)
            if not row["stored"]:
                handles.setdefault(method, axis.axhline(middle, color=colour, ls="--", lw=1.5))
                continue
            axis.plot([row["stored"]] * len(scores), scores, "_", color=colour, markersize=11, alpha=0.8)
            face = colour if row["filled"] else "white"
            (mark,) = axis.plot(
                [row["stored"]], [middle], marker, color=colour, mfc=face, mew=1.6, markersize=10, ls=""
            )
            if row["filled"] or method not in handles:
                handles[method] = mark
        axis.set(xscale="log", ylabel=ylabels[title], title=title)
        axis.tick_params(labelbottom=True)
        _plain_log_ticks(axis)
    axes.flat[-1].set_xlabel("numbers stored, head left out")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure
