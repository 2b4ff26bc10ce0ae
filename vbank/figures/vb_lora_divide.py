"""The drawing of the chapter *VB-LoRA I: divide*: two layers of different shapes become one matrix."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vbank.figures.palette import new_canvas, tint

HUES = ("#7b1e00", "#c65a2e", "#4d4d4d", "#8a6d00")  # A and B of the first layer, A and B of the second
GAP = 3.0


def laid_out(shapes: Sequence[tuple[int, int]], rank: int, length: int) -> Figure:
    """The factors of some layers cut into sub-vectors (top), and the same sub-vectors as the columns of U (bottom).

    One cell is one entry. A factor has a hue, a sub-vector a shade of it and a number, the same in both places.

    Args:
        shapes: (out_features, in_features) of each layer, at most two.
        rank: r of every layer.
        length: b, length of a sub-vector; divides every size.

    Raises:
        ValueError: no layers or too many, or a length that does not divide every size.
    """
    if not 1 <= len(shapes) <= len(HUES) // 2:
        raise ValueError(f"laid_out: {len(shapes)} layers; give one to {len(HUES) // 2}")
    if bad := [size for shape in shapes for size in shape if size % length]:
        raise ValueError(f"laid_out: length {length} does not divide {bad[0]}; give a divisor of every size")
    count = rank * sum(map(sum, shapes)) // length
    top = sum(rank + 0.8 + inputs for _, inputs in shapes) + GAP * (len(shapes) - 1)
    width, tallest = max(top, count) + 4, max(outputs for outputs, _ in shapes)
    figure, axis = new_canvas(width, tallest + length + 6.6)
    x, column = (width - top) / 2, 0
    left, floor = (width - count) / 2, tallest + 4.4
    for layer, (outputs, inputs) in enumerate(shapes):
        for side, size in enumerate((inputs, outputs)):  # A's sub-vectors stand before B's
            colour = HUES[2 * layer + side]
            parts, start = size // length, column
            for piece in range(rank * parts):
                k, j = (piece // parts, piece % parts) if side == 0 else (piece % rank, piece // rank)
                shade = tint(colour, 0.28 + 0.6 * ((piece * 0.6180339887) % 1.0))
                if side == 0:
                    _piece(axis, x + rank + 0.8 + j * length, 1.4 + k, length, 1, shade, column)
                else:
                    _piece(axis, x + k, 1.4 + j * length, 1, length, shade, column)
                _piece(axis, left + column, floor, 1, length, shade, column)
                column += 1
            name = f"${'AB'[side]}_{layer + 1}$"
            above = x + rank + 0.8 + inputs / 2 if side == 0 else x + rank / 2
            axis.text(above, 0.6, name, fontsize=13, ha="center", va="center")
            axis.text(left + (start + column) / 2, floor - 0.8, name, fontsize=13, ha="center", va="center")
        x += rank + 0.8 + inputs + GAP
    axis.text(left - 0.5, floor + length / 2, "$U$", fontsize=13, ha="right", va="center")
    words = f"$b = {length}$ rows, $N = {count}$ columns"
    axis.text(width / 2, floor + length + 1.0, words, fontsize=12, ha="center", va="center")
    return figure


def _piece(axis: Axes, x: float, y: float, width: float, height: float, colour: tuple[float, ...], index: int) -> None:
    """One sub-vector with its number, counted from 1."""
    axis.add_patch(Rectangle((x, y), width, height, fc=colour, ec="white", lw=1.5))
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.58
    ink = "white" if dark else "black"
    axis.text(x + width / 2, y + height / 2, str(index + 1), fontsize=11, ha="center", va="center", color=ink)
