"""The drawing of the chapter *PRoLoRA*: which entries of a factor hold the same stored number."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vbank.figures.palette import METHOD_COLOURS, new_figure, tint

COLOUR = METHOD_COLOURS["PRoLoRA"]


def stored_numbers(panels: Mapping[str, tuple[Any, tuple[int, int]]]) -> Figure:
    """Factors side by side, two a row, with a letter and a shade for each stored number and the chunk outlined.

    Args:
        panels: title -> (numbers, chunk): a matrix that says for each entry which stored number it holds, counted
            from 0, and the rows and columns of the chunk, which stands at the upper left.

    Raises:
        ValueError: nothing to draw, no matrix, more stored numbers than letters, or a chunk larger than its factor.
    """
    if not panels:
        raise ValueError("stored_numbers: no panels to draw; give at least one")
    rows = -(-len(panels) // 2)
    figure, axes = new_figure(3.0 * rows, nrows=rows, ncols=2, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, (matrix, chunk)) in zip(axes.flat, panels.items(), strict=False):
        numbers = np.asarray(matrix)
        if numbers.ndim != 2 or numbers.min() < 0 or numbers.max() >= len(string.ascii_lowercase):
            raise ValueError(f"stored_numbers: {title!r} needs a matrix of numbers from 0 to 25, one letter each")
        if chunk[0] > numbers.shape[0] or chunk[1] > numbers.shape[1]:
            raise ValueError(f"stored_numbers: the chunk {chunk} of {title!r} is larger than {numbers.shape}")
        strengths = np.linspace(0.08, 0.6, numbers.max() + 1)
        shades = np.array([tint(COLOUR, strength) for strength in strengths])
        axis.imshow(shades[numbers], extent=(0, numbers.shape[1], numbers.shape[0], 0), interpolation="none")
        for (row, column), number in np.ndenumerate(numbers):
            letter = string.ascii_lowercase[number]
            axis.text(column + 0.5, row + 0.5, letter, ha="center", va="center", fontsize=13)
        axis.add_patch(Rectangle((0, 0), chunk[1], chunk[0], fc="none", ec="black", lw=2.2, clip_on=False))
        axis.set_title(title)
    return figure
