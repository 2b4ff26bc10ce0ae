"""Figures in larger type that are told what to say."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from vbank.figures.palette import WIDTH, style
from vbank.figures.spoken import Told, table

__all__ = ["SMALLEST", "Told", "number_ticks", "table", "told_figure"]

SMALLEST = 12  # points; on a phone, at 360 of the 468 points of WIDTH, still above 9 pixels


def told_figure(height: float, numbers: str, **subplots: Any) -> tuple[Told, Any]:
    """A figure of the book's width that says `numbers`, and its axes; type of at least `SMALLEST` points."""
    style()
    figure = Told(figsize=(WIDTH, height), layout="constrained")
    figure.numbers = numbers
    axes = figure.subplots(**subplots, squeeze=False)
    for axis in axes.flat:
        axis.tick_params(labelsize=SMALLEST)
        for each in (axis.xaxis, axis.yaxis):
            each.get_offset_text().set_fontsize(SMALLEST)
    return figure, axes


def number_ticks(ticks: Any, numbers: NDArray[np.int64]) -> None:
    """Let an axis of places 0, 1, 2, … say the numbers of what stands there."""

    def say(place: float, _: Any) -> str:
        return f"{numbers[int(place)]:,}" if 0 <= place < len(numbers) else ""

    ticks.set_major_locator(MaxNLocator(6, integer=True))
    ticks.set_major_formatter(FuncFormatter(say))
