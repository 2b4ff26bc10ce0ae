"""Drawings: blocks to scale, in which equal colour means the same parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, PathPatch, Rectangle
from matplotlib.path import Path

from vbank.figures.palette import FROZEN, METHOD_COLOURS, colour_of, new_canvas, tint


def draw_cells(
    axis: Axes,
    x: float,
    y: float,
    colours: Any,
    size: tuple[int, int] | None = None,
    hatch: str | None = None,
    cuts: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> None:
    """A block of unit cells as one embedded image, so that the file stays small, with white lines between cells.

    Args:
        axis: a canvas that counts cells.
        x, y: upper left corner.
        colours: (rows, columns, 3) bytes; perhaps several pixels a cell.
        size: rows and columns in cells; one cell a pixel where it is not given.
        hatch: matplotlib's hatch to draw over the block.
        cuts: rows and columns before which a wider line is drawn.
    """
    pixels = np.asarray(colours, dtype=np.uint8)
    height, width = size or pixels.shape[:2]
    extent = (x, x + width, y + height, y)
    axis.imshow(pixels, extent=extent, interpolation="none", aspect="equal", clip_on=False)
    if hatch:
        frame = Rectangle((x, y), width, height, fc="none", ec="#6f6f6f", lw=0.5, hatch=hatch, clip_on=False)
        axis.add_patch(frame)
    every = range(1, height), range(1, width)
    for (rows, columns), line_width in ((every, 0.3 if hatch else 0.7), (cuts, 2.4)):
        lines = [((x, y + row), (x + width, y + row)) for row in rows]
        lines += [((x + column, y), (x + column, y + height)) for column in columns]
        if lines:
            path = Path([point for line in lines for point in line], [Path.MOVETO, Path.LINETO] * len(lines))
            axis.add_patch(PathPatch(path, ec="white", lw=line_width, clip_on=False))


def _cells(axis: Axes, x: float, y: float, colours: Sequence[Sequence[Any]], hatch: str | None = None) -> None:
    """A block of unit cells in matplotlib's colours; colours[row][column]."""
    pixels = [[[round(255 * channel) for channel in to_rgb(colour)] for colour in line] for line in colours]
    draw_cells(axis, x, y, pixels, hatch=hatch)


def _block(rows: int, columns: int, colour: Any) -> list[list[Any]]:
    return [[colour] * columns for _ in range(rows)]


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "#404040") -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, lw=1.4))


def low_rank_factors(out_features: int = 10, in_features: int = 14, rank: int = 2, method: str = "LoRA") -> Figure:
    """Delta W = B A drawn to scale, with the number of entries of each block."""
    width = out_features + 2 * in_features + rank + 12.0
    figure, axis = new_canvas(width, out_features + 5.0)
    colour, top, middle = colour_of(method), 1.0, 1.0 + out_features / 2
    x = 1.0
    _cells(axis, x, top, _block(out_features, in_features, tint(METHOD_COLOURS["full"], 0.35)))
    label_y = top + out_features + 1.2
    caption: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12}
    axis.text(x + in_features / 2, label_y, r"$\Delta W$", **caption)
    axis.text(
        x + in_features / 2,
        label_y + 1.7,
        f"{out_features} × {in_features} = {out_features * in_features}",
        **caption,
    )
    x += in_features + 2
    axis.text(x, middle, "=", ha="center", va="center", fontsize=18)
    x += 2
    _cells(axis, x, top, _block(out_features, rank, tint(colour, 0.9)))
    axis.text(x + rank / 2, label_y, "$B$", **caption)
    axis.text(x + rank / 2, label_y + 1.7, f"{out_features} × {rank} = {out_features * rank}", **caption)
    x += rank + 5
    _cells(axis, x, middle - rank / 2, _block(rank, in_features, tint(colour, 0.55)))
    axis.text(x + in_features / 2, label_y, "$A$", **caption)
    axis.text(x + in_features / 2, label_y + 1.7, f"{rank} × {in_features} = {rank * in_features}", **caption)
    return figure


def two_paths(method: str = "LoRA") -> Figure:
    """The forward pass of an adapted layer: the frozen W beside the thin path through A and B."""
    figure, axis = new_canvas(40, 21)
    colour = colour_of(method)
    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 13}

    def box(x: float, y: float, width: float, height: float, colour: Any, label: str) -> None:
        axis.add_patch(Rectangle((x, y), width, height, fc=colour, ec="#404040", lw=1.2))
        axis.text(x + width / 2, y + height / 2, label, **text)

    axis.text(2.2, 10, "$x$", **text)
    axis.text(2.2, 12.2, "in", ha="center", va="center", fontsize=11)
    box(12, 1, 11, 8, FROZEN, "$W$\nfrozen")
    box(9, 14.5, 11, 2.6, tint(colour, 0.35), "$A$")
    box(25.5, 11.8, 2.6, 8, tint(colour, 0.6), "$B$")
    axis.text(14.5, 19, "rank × in", ha="center", va="center", fontsize=11)
    axis.text(32.6, 19, "out × rank", ha="center", va="center", fontsize=11)
    _arrow(axis, (3.2, 9.6), (12, 5))
    _arrow(axis, (3.2, 10.6), (9, 15.8), colour)
    _arrow(axis, (20, 15.8), (25.5, 15.8), colour)
    _arrow(axis, (28.1, 15.8), (33.2, 11.2), colour)
    axis.text(31.8, 14.6, "$s$", color=colour, **text)
    _arrow(axis, (23, 5), (33.2, 9.4))
    axis.text(34.4, 10.2, "+", ha="center", va="center", fontsize=18)
    _arrow(axis, (35.3, 10.2), (37.6, 10.2))
    axis.text(38.7, 10.2, "$y$", **text)
    axis.text(38.5, 12.4, "out", ha="center", va="center", fontsize=11)
    return figure


def _layer(axis: Axes, x: float, y: float, b: Sequence[Sequence[Any]], a: Sequence[Sequence[Any]]) -> None:
    """B (6 x 4 cells) with A (4 x 6 cells) to its right; 10.6 cells wide."""
    _cells(axis, x, y, b)
    _cells(axis, x + 4.6, y + 1, a)


def _labels(axis: Axes, y: float, *at: tuple[float, str]) -> None:
    for x, label in at:
        axis.text(x, y + 7.1, label, ha="center", va="center", fontsize=11)


def rolled(chunk: Sequence[Any], shift: int) -> list[Any]:
    """torch.roll along the rank: element i moves to i + shift."""
    return [chunk[(index - shift) % len(chunk)] for index in range(len(chunk))]


def map_of_methods() -> Figure:
    """The map of the five methods: what a file stores and the A and B that two layers get from it.

    A toy with out = in = 6 and rank 4. Equal colour means the same parameter; hatched is frozen and random.
    """
    figure, axis = new_canvas(57.5, 85)
    bold: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "va": "center"}
    left, layers, pitch, first = 1.0, (31.5, 45.0), 16.2, 6.0
    for x, heading in ((left, "stored in the file"), (layers[0], "layer 1"), (layers[1], "layer 2")):
        axis.text(x, 2, heading, **bold)
    notes = {
        "LoRA": "each layer its own pair",
        "VeRA": "one frozen random pair, scaled layer by layer",
        "Tied-LoRA": "one trained pair, scaled layer by layer",
        "PRoLoRA": "a small chunk a layer, repeated and rotated",
        "VB-LoRA": "every piece mixed from one bank of vectors",
    }
    for index, (method, note) in enumerate(notes.items()):
        y = first + index * pitch
        if index:
            axis.plot([1, 56.5], [y - 2.4, y - 2.4], color="#d9d9d9", lw=1)
        axis.text(left, y, method, color=colour_of(method), fontsize=14, fontweight="bold", va="center")
        axis.text(left + 11, y, note, fontsize=12, va="center")
        _arrow(axis, (26, y + 6), (29.5, y + 6), colour_of(method))

    y = first + 3
    for layer, strength in enumerate((0.95, 0.4)):
        own = tint(METHOD_COLOURS["LoRA"], strength)
        for x in (left + 13 * layer, layers[layer]):
            _layer(axis, x, y, _block(6, 4, own), _block(4, 6, own))
            _labels(axis, y, (x + 2, f"$B_{layer + 1}$"), (x + 7.6, f"$A_{layer + 1}$"))

    for method, b_name, d_name in (("VeRA", "b", "d"), ("Tied-LoRA", "v", "u")):
        y += pitch
        frozen = method == "VeRA"
        pair, hatch = ("white", "////") if frozen else ("#2c6e58", None)
        if frozen:
            axis.add_patch(Rectangle((left + 13, y + 1.5), 7, 3, fc="white", ec="#8f8f8f", hatch="////", lw=0.8))
            axis.text(left + 16.5, y + 3, "seed", ha="center", va="center", fontsize=12, backgroundcolor="white")
        else:
            _layer(axis, left, y, _block(6, 4, pair), _block(4, 6, pair))
            _labels(axis, y, (left + 2, "$B$"), (left + 7.6, "$A$"))
        for layer, strength in enumerate((0.95, 0.4)):
            colour: Any = tint(METHOD_COLOURS[method], strength)
            x = left + (0 if frozen else 13) + 5.5 * layer
            _cells(axis, x, y, _block(6, 1, colour))
            _cells(axis, x + 2.4, y + 1, _block(4, 1, colour))
            _labels(axis, y, (x + 0.5, f"${b_name}_{layer + 1}$"), (x + 2.9, f"${d_name}_{layer + 1}$"))
            x = layers[layer]
            _cells(axis, x - 1.2, y, _block(6, 1, colour))
            _cells(axis, x, y, _block(6, 4, pair), hatch)
            _cells(axis, x + 4.4, y + 1, _block(4, 1, colour))
            _cells(axis, x + 5.6, y + 1, _block(4, 6, pair), hatch)
            _labels(axis, y, (x + 2, "$B$"), (x + 8.6, "$A$"))

    y += pitch
    for layer, strengths in enumerate(((0.98, 0.62, 0.34), (0.8, 0.48, 0.2))):
        unshared, *ranks = prolora_colours(strengths, layer)
        lines = [[unshared, *rolled(ranks, turn)] for turn in range(3) for _ in range(2)]  # rows of B, columns of A
        transposed = [list(line) for line in zip(*lines, strict=True)]
        _layer(axis, layers[layer], y, lines, transposed)
        x = left + 13 * layer
        _cells(axis, x, y, [[unshared]] * 6)
        _cells(axis, x + 1, y, [line[1:] for line in lines[:2]])
        _cells(axis, x + 4.6, y + 1, [transposed[0]])
        _cells(axis, x + 4.6, y + 2, [line[:2] for line in transposed[1:]])
        for at in (x, layers[layer]):
            _labels(axis, y, (at + 2, f"$B_{layer + 1}$"), (at + 7.6, f"$A_{layer + 1}$"))

    y += pitch
    bank: list[Any] = [METHOD_COLOURS["VB-LoRA"], "#c65a2e", "#e8a66f", "#f6dcc5", "#4d4d4d"]
    for index, colour in enumerate(bank):
        _cells(axis, left + 2.2 * index, y, _block(2, 1, colour))
    axis.text(left + 11.5, y + 1, "bank", fontsize=12, va="center")
    axis.text(left, y + 4.8, "+ 2 indices and 1 weight\n   for each piece", fontsize=12, va="center")
    for layer, x in enumerate(layers):
        for rank in range(4):
            for part in range(3):
                upper, lower = (bank[i] for i in pick(rank, part, 0, layer, len(bank)))
                _sub_vector(axis, x + rank, y + 2 * part, 1, 2, upper, lower)
                upper, lower = (bank[i] for i in pick(rank, part, 1, layer, len(bank)))
                _sub_vector(axis, x + 4.6 + 2 * part, y + 1 + rank, 2, 1, upper, lower)
        _labels(axis, y, (x + 2, f"$B_{layer + 1}$"), (x + 7.6, f"$A_{layer + 1}$"))
    return figure


def prolora_colours(strengths: Sequence[float], layer: int) -> list[Any]:
    """One colour for the unshared rank and three for the shared ones, other tints in each layer."""
    base = METHOD_COLOURS["PRoLoRA"] if layer == 0 else "#6a3d8a"
    return ["#404040" if layer == 0 else "#8a8a8a", *(tint(base, strength) for strength in strengths)]


def pick(rank: int, part: int, side: int, layer: int, bank_size: int) -> tuple[int, int]:
    """Two different bank vectors for a sub-vector of the toy; any fixed scatter would do."""
    one = (3 * rank + 2 * part + side + 2 * layer) % bank_size
    return one, (one + 1 + (rank + part + layer) % (bank_size - 1)) % bank_size


def _sub_vector(axis: Axes, x: float, y: float, width: float, height: float, one: Any, two: Any) -> None:
    """A sub-vector as a rectangle in the colours of the two bank vectors that it mixes."""
    axis.add_patch(Rectangle((x, y), width, height, fc=one, ec="white", lw=1, clip_on=False))
    inset = 0.06
    if width > height:
        half = Rectangle((x + inset, y + height / 2), width - 2 * inset, height / 2 - inset, fc=two, lw=0)
    else:
        half = Rectangle((x + width / 2, y + inset), width / 2 - inset, height - 2 * inset, fc=two, lw=0)
    half.set_clip_on(False)
    axis.add_patch(half)
