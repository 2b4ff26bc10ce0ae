"""Drawings of the chapter *Instruction tuning*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.palette import METHOD_COLOURS, label_rows, new_figure

# Parts of a memory account, from what the base model needs to what the adapter adds; grey to coloured.
PARTS = ("base model", "adapter", "gradients", "optimizer state", "activations", "passing")
SHADES = ("#8c8c8c", "#0072b2", "#56b4e9", "#009e73", "#e6ab02", "#d55e00")
HATCHES = ("", "", "//", "", "..", "\\\\")


def levels(density: tuple[Sequence[float], Sequence[float]], grids: Mapping[str, Sequence[float]]) -> Figure:
    """A density above, and below it a row of ticks for each grid of quantisation levels.

    Args:
        density: x and height of the curve.
        grids: label -> its levels.

    Raises:
        ValueError: no grid, or x and height of different lengths.
    """
    x, height = density
    if not grids:
        raise ValueError("no grid of levels to draw; give at least one")
    if len(x) != len(height):
        raise ValueError(f"density: {len(x)} values of x and {len(height)} heights; give as many")
    figure, (above, below) = new_figure(
        2.6 + 0.5 * len(grids), nrows=2, sharex=True, height_ratios=[2.2, 0.45 * len(grids)]
    )
    above.fill_between(x, height, color="#e4e4e4")
    above.plot(x, height, color=METHOD_COLOURS["full"])
    above.set(yticks=[], ylim=(0, None))
    above.spines["left"].set_visible(False)
    for row, values in enumerate(grids.values()):
        colour = METHOD_COLOURS["LoRA"] if row == 0 else METHOD_COLOURS["full"]
        below.vlines(values, row - 0.34, row + 0.34, color=colour, lw=2.4)
        if row == 0:
            inside = [value for value in values if x[0] <= value <= x[-1]]
            above.vlines(inside, 0, np.interp(inside, x, height), color=colour, lw=1.6)
        below.axhline(row, color="#c9c9c9", lw=0.8, zorder=0)
    below.set(yticks=range(len(grids)), yticklabels=list(grids), ylim=(len(grids) - 0.4, -0.6))
    below.set_xlabel("weight / largest weight of its block")
    below.grid(visible=False)
    below.tick_params(axis="y", length=0)
    below.spines["left"].set_visible(False)
    return figure


def memory(accounts: Mapping[str, Sequence[float]], measured: Mapping[str, float], xlabel: str = "GiB") -> Figure:
    """Stacked bars, one a run: what its memory is made of, and a mark at the peak that a paper printed.

    Args:
        accounts: label -> size of each of `PARTS`.
        measured: label -> printed peak; a run may have none.
        xlabel: the unit.

    Raises:
        ValueError: nothing to draw, a bar with another number of parts, or a mark for no bar.
    """
    if not accounts:
        raise ValueError("no account to draw; give at least one")
    if strange := [label for label, parts in accounts.items() if len(parts) != len(PARTS)]:
        raise ValueError(f"account {strange[0]!r} must have {len(PARTS)} parts: {', '.join(PARTS)}")
    if unknown := [label for label in measured if label not in accounts]:
        raise ValueError(f"measured names {unknown[0]!r}, which is not drawn; drawn are: {', '.join(accounts)}")
    figure, axis = new_figure(1.7 + 0.55 * len(accounts))
    rows = np.arange(len(accounts))[::-1]
    left = np.zeros(len(accounts))
    for part, (name, colour, hatch) in enumerate(zip(PARTS, SHADES, HATCHES, strict=True)):
        sizes = np.array([parts[part] for parts in accounts.values()], dtype=float)
        axis.barh(rows, sizes, left=left, color=colour, hatch=hatch, edgecolor="white", height=0.62, label=name)
        left += sizes
    marks = [(measured[label], row) for label, row in zip(accounts, rows, strict=True) if label in measured]
    if marks:
        x, y = zip(*marks, strict=True)
        axis.plot(x, y, "D", color="black", markersize=8, label="as printed", ls="none")
    axis.set(yticks=rows, yticklabels=list(accounts), xlabel=xlabel)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def scores(rows: Sequence[tuple[str, str, float]], error: float, xlabel: str) -> Figure:
    """A mark a row with a whisker of one standard error to either side, in groups with a heading.

    Args:
        rows: group, label (a method's name may begin it) and score, from top to bottom.
        error: the standard error.
        xlabel: what the score is.

    Raises:
        ValueError: nothing to draw, or an error below zero.
    """
    if not rows:
        raise ValueError("no score to draw; give at least one")
    if error < 0:
        raise ValueError(f"error is {error}; it must be at least 0")
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    figure, axis = new_figure(1.0 + 0.42 * (len(rows) + len(groups)))
    heights = label_rows(axis, [(group, label) for group, label, _ in rows], xlabel)
    for height, (_, label, score) in zip(heights, rows, strict=True):
        colour = METHOD_COLOURS.get(label.split(" ")[0], METHOD_COLOURS["full"])
        axis.errorbar(score, height, xerr=error, color=colour, fmt="o", capsize=5, lw=2)
        axis.annotate(f"{score:.2f}", (score, height), xytext=(0, 6), textcoords="offset points", ha="center", size=11)
    return figure
