"""The drawing of the chapter *Mathematics: Mistral and Gemma*."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, new_figure


def differences(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    xlabel: str,
    methods: Mapping[str, str] | None = None,
) -> Figure:
    """Differences with their intervals around a line at zero, a panel below the other on one axis.

    A difference whose interval holds zero is drawn hollow: it may be noise.

    Args:
        panels: title -> label -> (difference, half the width of its interval).
        xlabel: what is measured, below the last panel.
        methods: label -> a method whose colour and marker to take; all others are grey.

    Raises:
        ValueError: nothing to draw, or a half width that is negative.
    """
    if not panels or not all(panels.values()):
        raise ValueError("no differences to draw; give each panel at least one")
    rows = sum(map(len, panels.values()))
    ratios = [len(panel) for panel in panels.values()]
    figure, axes = new_figure(
        1.0 + 0.5 * len(panels) + 0.36 * rows,
        nrows=len(panels),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": ratios},
    )
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        places = np.arange(len(panel))[::-1]
        axis.axvline(0, color=METHOD_COLOURS["SVD"], lw=1.2)
        for place, (label, (difference, half)) in zip(places, panel.items(), strict=True):
            if half < 0:
                raise ValueError(f"{label!r}: half an interval is {half}; it cannot be negative")
            method = (methods or {}).get(label, "full")
            colour, marker = METHOD_COLOURS.get(method, METHOD_COLOURS["full"]), METHOD_MARKERS.get(method, "o")
            axis.plot([difference - half, difference + half], [place, place], "|-", color=colour, lw=1.8, markersize=9)
            filled = colour if abs(difference) > half else "white"
            axis.plot([difference], [place], marker or "o", color=colour, markerfacecolor=filled, markersize=9)
        axis.set(title=title, yticks=places, yticklabels=list(panel), ylim=(-0.6, len(panel) - 0.4))
        axis.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel(xlabel)
    return figure
