"""The drawing of the chapter *VB-LoRA II: share*: what k vectors can reach."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

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
