"""Drawings of the chapter *VeRA*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, label_rows, new_figure


def variants(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    method: str = "VeRA",
    reference: tuple[str, Sequence[float]] | None = None,
) -> Figure:
    """Rows of dots from top to bottom, one dot a run and a bar at their mean, in groups with a heading.

    Args:
        groups: heading -> label of a variant -> its runs.
        xlabel: what the runs measure.
        method: gives the colour and the marker.
        reference: label and runs of a variant that all others are compared with: a band from its lowest to its
            highest run, and a dashed line at its mean.

    Raises:
        ValueError: nothing to draw, or a variant without runs.
    """
    rows = [(heading, label, runs) for heading, group in groups.items() for label, runs in group.items()]
    if not rows:
        raise ValueError("variants: nothing to draw; give at least one group with one variant")
    if empty := [label for _, label, runs in rows if not len(runs)]:
        raise ValueError(f"variants: {empty[0]!r} has no runs")
    figure, axis = new_figure(1.3 + 0.42 * (len(rows) + len(groups)))
    if reference is not None:
        label, runs = reference
        axis.axvspan(min(runs), max(runs), color="#e4e4e4", zorder=0)
        axis.axvline(sum(runs) / len(runs), color=METHOD_COLOURS["SVD"], ls="--", lw=1.5, label=label)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center")
    heights = label_rows(axis, [(heading, label) for heading, label, _ in rows], xlabel)
    for height, (_, _, runs) in zip(heights, rows, strict=True):
        axis.plot(runs, [height] * len(runs), METHOD_MARKERS[method], color=METHOD_COLOURS[method], alpha=0.75)
        axis.plot([sum(runs) / len(runs)] * 2, [height - 0.3, height + 0.3], color="black", lw=2)
    return figure
