"""Figures that also say their numbers, for readers who cannot see them and for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from vbank.figures.palette import WIDTH, style

SMALLEST = 12  # points; on a phone, at 360 of the 468 points of WIDTH, still above 9 pixels


class Told(Figure):
    """A figure with its numbers: ``print(figure)`` gives them as a table, and so does a notebook without pictures."""

    numbers: str = ""

    def __repr__(self) -> str:
        return self.numbers or super().__repr__()

    __str__ = __repr__


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of equal columns, the first set to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *rest in (head, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)
