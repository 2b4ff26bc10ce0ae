"""The drawings of the chapter *Images with ViT*: digits and their patches, and what draw and seed do to a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, colour_of, new_figure


def patches(rows: dict[str, Any], patch: int) -> Figure:
    """Grey pictures in rows, with lines where a vision transformer cuts them.

    Args:
        rows: title -> pictures (number, height, width), as many in every row.
        patch: side of a patch in pixels.

    Raises:
        ValueError: nothing to draw, rows of different lengths, or a picture that patches do not fill.
    """
    arrays = {title: np.asarray(pictures, dtype=float) for title, pictures in rows.items()}
    if not arrays or len({array.shape for array in arrays.values()}) != 1:
        raise ValueError("patches: give at least one row, and rows of pictures of one number and size")
    number, height, width = next(iter(arrays.values())).shape
    if height % patch or width % patch:
        raise ValueError(f"patches: a picture of {height} x {width} pixels is not filled by patches of {patch}")
    figure, axes = new_figure(0.4 + 1.05 * len(arrays), nrows=len(arrays), ncols=number, squeeze=False)
    for line, (title, pictures) in zip(axes, arrays.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, cmap="gray_r", interpolation="nearest")
            for place in range(patch, height, patch):
                axis.axhline(place - 0.5, color=METHOD_COLOURS["VeRA"], lw=1.5)
            for place in range(patch, width, patch):
                axis.axvline(place - 0.5, color=METHOD_COLOURS["VeRA"], lw=1.5)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set(visible=True, color="#999999")
        line[0].set_ylabel(title)
    return figure


def draws_and_seeds(scores: Sequence[Sequence[float]], method: str, ylabel: str = "accuracy") -> Figure:
    """The same scores twice: in columns of one draw of the training pictures, and in columns of one training seed.

    Args:
        scores: (draws, seeds).
        method: gives the colour and the marker.
        ylabel: what the scores are.

    Raises:
        ValueError: no table of at least two draws and two seeds, or an unknown method.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"draws_and_seeds: the scores have the shape {table.shape}; give at least 2 draws and 2 seeds")
    colour, marker = colour_of(method), METHOD_MARKERS[method] or "o"
    figure, axes = new_figure(3.6, ncols=2, sharey=True)
    for axis, grid, name in zip(axes, (table, table.T), ("draw", "seed"), strict=True):
        places = np.arange(1, len(grid) + 1)
        for place, column in zip(places, grid, strict=True):
            axis.plot([place] * len(column), column, marker, color=colour, alpha=0.55, markersize=7)
            axis.plot([place - 0.3, place + 0.3], [column.mean()] * 2, color="black", lw=2)
        axis.axhline(table.mean(), color=METHOD_COLOURS["full"], ls=":", lw=1.5)
        axis.set(xlabel=f"one {name} a column", xticks=places, xlim=(0.4, len(grid) + 0.6))
    axes[0].set_ylabel(ylabel)
    return figure
