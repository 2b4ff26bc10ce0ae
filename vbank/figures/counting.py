"""Drawings of the chapter *Counting and storing*."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from vbank.audits import OUTCOMES, PAPERS, Row
from vbank.audits.printed import read
from vbank.counting import Count
from vbank.figures.palette import METHOD_MARKERS, colour_of, new_figure


def trained_and_stored(panels: Mapping[str, Mapping[str, Count]]) -> Figure:
    """Trained (open circle) and stored (filled marker) numbers of each method, joined by a line; one panel a setting.

    Args:
        panels: title -> method -> its count.
    """
    rows = max(len(counts) for counts in panels.values())
    figure, axes = new_figure(0.9 + len(panels) * (0.8 + 0.42 * rows), nrows=len(panels), squeeze=False)
    for axis, (title, counts) in zip(axes[:, 0], panels.items(), strict=True):
        for row, (method, count) in enumerate(counts.items()):
            colour = colour_of(method)
            axis.plot([count.stored, count.trainable], [row, row], color=colour, lw=2)
            axis.plot(count.trainable, row, marker="o", ms=12, mfc="none", mec=colour, mew=1.5, ls="none")
            axis.plot(count.stored, row, marker=METHOD_MARKERS[method], color=colour, ms=7, ls="none")
        sizes = [size for count in counts.values() for size in (count.stored, count.trainable)]
        axis.set_xlim(10 ** math.floor(math.log10(min(sizes) * 0.9)), 10 ** math.ceil(math.log10(max(sizes) * 1.1)))
        axis.set(xscale="log", title=title, yticks=range(len(counts)), yticklabels=list(counts))
        axis.set_ylim(len(counts) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("numbers (float32 equivalents): ○ trained, filled mark stored")
    return figure


# Shades and hatches, not hues: the methods have the hues.
OUTCOME_STYLE: dict[str, dict[str, str]] = {
    "match": {"facecolor": "#d9d9d9"},
    "mismatch, explained": {"facecolor": "#ffffff", "hatch": "////"},
    "mismatch, not explained": {"facecolor": "#303030"},
    "not computable": {"facecolor": "#ffffff"},
}


def audit(totals: Mapping[str, Mapping[str, int]], rows: Sequence[Row]) -> Figure:
    """Outcomes of the audit: a divided bar a paper, and below the ratio printed / exact of each mismatched count.

    Args:
        totals: what `vbank.audits.totals` returns.
        rows: what `vbank.audit` returns; ratios and percentages have no place in the lower panel.
    """
    figure, (above, below) = new_figure(5.6, nrows=2, height_ratios=(1.0, 1.15))
    for line, counts in enumerate(totals.values()):
        left = 0
        for outcome in OUTCOMES:
            number = counts[outcome]
            style = OUTCOME_STYLE[outcome]
            above.barh(line, number, left=left, height=0.62, edgecolor="#303030", label=outcome, **style)
            if number >= 3:
                ink = "white" if outcome == "mismatch, not explained" else "black"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if "hatch" in style else None
                above.text(left + number / 2, line, str(number), ha="center", va="center", color=ink, bbox=box)
            left += number
    above.set(yticks=range(len(totals)), yticklabels=[PAPERS[paper] for paper in totals], xlabel="printed figures")
    above.set_ylim(len(totals) - 0.5, -0.5)
    above.grid(axis="y", visible=False)
    handles, labels = above.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend([first[outcome] for outcome in OUTCOMES], OUTCOMES, loc="outside upper center", ncols=2)

    for line, paper in enumerate(totals):
        missed = [
            (float(read(row["printed"]).value) / row["computed"], row["status"])
            for row in rows
            if row["paper"] == paper
            and row["status"].startswith("mismatch")
            and row["unit"] in ("parameters", "scalars", "bytes")
            and row["computed"]
        ]
        for place, (ratio, status) in enumerate(sorted(missed)):
            height = line + 0.3 * ((place % 5) - 2) / 2
            fill = "#303030" if status == OUTCOMES[2] else "white"
            below.plot(ratio, height, marker="o", ms=7, mfc=fill, mec="#303030", ls="none")
    below.axvline(1.0, color="#303030", lw=1.2, ls="--")
    below.set(xscale="log", yticks=range(len(totals)), yticklabels=[PAPERS[paper] for paper in totals])
    ticks = [tick for tick in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0) if _within(tick, below.get_xlim())]
    below.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    below.set_xticks([], minor=True)
    below.set_ylim(len(totals) - 0.5, -0.5)
    below.grid(axis="y", visible=False)
    below.set_xlabel("printed / exact, for the mismatches")
    return figure


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
