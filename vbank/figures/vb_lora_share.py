"""The drawings of the chapter *VB-LoRA II: share*: what k vectors can reach, and who chose whom."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vbank.figures.palette import METHOD_COLOURS, new_figure, tint

COLOUR = METHOD_COLOURS["VB-LoRA"]


def reachable(bank: Sequence[tuple[float, float]]) -> Figure:
    """All sub-vectors that a bank of points in the plane can make: points for k = 1, edges for k = 2, faces for k = 3.

    Args:
        bank: (h, 2), at least three points.

    Raises:
        ValueError: fewer than three points, or not points of the plane.
    """
    points = np.asarray(bank, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"reachable: the bank has the shape {points.shape}; give at least 3 vectors of length 2")
    figure, axes = new_figure(2.5, ncols=3, sharex=True, sharey=True)
    for k, axis in enumerate(axes, start=1):
        if k == 3:
            for face in itertools.combinations(points, 3):
                axis.fill(*np.transpose(face), fc=tint(COLOUR, 0.18), ec="none", zorder=1)
        if k >= 2:
            for edge in itertools.combinations(points, 2):
                axis.plot(*np.transpose(edge), color=tint(COLOUR, 0.7 if k == 2 else 0.4), lw=1.6, zorder=2)
        axis.plot(*points.T, "o", color=COLOUR, ms=9, zorder=3)
        name = ("points", "edges", "faces")[k - 1]
        axis.set(title=f"k = {k}: {name}", aspect="equal", xticks=[], yticks=[])
        axis.margins(0.12)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    return figure


def footprints(panels: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Which bank vectors each sub-vector chose: dark at the end of training, light before (VB-LoRA, Figure 3).

    Args:
        panels: title -> two matrices (N, h) of booleans: chosen at some time, and chosen at the end.

    Raises:
        ValueError: nothing to draw, or two matrices of different shapes.
    """
    if not panels:
        raise ValueError("footprints: no panels to draw; give at least one")
    figure, axes = new_figure(0.7 + 1.6 * len(panels), nrows=len(panels), sharex=True, squeeze=False)
    shades = np.array([(1.0, 1.0, 1.0), tint(COLOUR, 0.4), tint(COLOUR, 1.0)])
    for axis, (title, matrices) in zip(axes.flat, panels.items(), strict=True):
        ever, last = (np.asarray(matrix, dtype=bool) for matrix in matrices)
        if ever.shape != last.shape or ever.ndim != 2:
            raise ValueError(f"footprints: {title!r} has matrices of the shapes {ever.shape} and {last.shape}")
        axis.imshow(shades[np.where(last, 2, np.where(ever, 1, 0)).T], aspect="auto", interpolation="nearest")
        axis.set_title(title)
        axis.grid(visible=False)
        axis.set_ylabel("bank vector")
    axes[-1, 0].set_xlabel("sub-vector")
    names = ("chosen at the end", "chosen at some time", "never")
    patches = [
        Patch(fc=tuple(shade), ec="#777777", label=name) for shade, name in zip(shades[::-1], names, strict=True)
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=3)
    return figure
