"""Drawings of the chapter *Save, merge, convert*: the bytes of a compact file, and the queue behind a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vbank.figures.palette import FROZEN, METHOD_COLOURS, new_canvas, new_figure, tint

VB_LORA = METHOD_COLOURS["VB-LoRA"]
COLOURS: dict[str, Any] = {
    "header": "#5f5f5f",
    "bank": tint(VB_LORA, 0.55),
    "indices": METHOD_COLOURS["LoRA"],
    "weights": METHOD_COLOURS["Tied-LoRA"],
    "adapter.json": FROZEN,
}
ROW = 4096  # bytes in a row of the map
ACROSS, ROW_HEIGHT = 26.0, 0.62


def byte_map(parts: Mapping[str, int], entry: Sequence[tuple[str, str, int]]) -> Figure:
    """All bytes of an adapter to scale, in the order in which they stand, and one sub-vector's share of them.

    Args:
        parts: name -> bytes; the names are those of `COLOURS`.
        entry: what the file holds for one sub-vector: the part, the value as text, and its bytes.

    Raises:
        ValueError: a part without a colour, or no parts.
    """
    strange = [name for name in (*parts, *(part for part, _, _ in entry)) if name not in COLOURS]
    if strange or not parts:
        raise ValueError(f"the parts are {list(parts)} and {strange} has no colour; known: {', '.join(COLOURS)}")
    rows = -(-sum(parts.values()) // ROW)
    height = rows * ROW_HEIGHT
    figure, axis = new_canvas(ACROSS + 0.4, 1.6 + height + 1.2 * len(parts) + 4.6)
    axis.text(0.2, 0.7, f"one row: {ROW:,} bytes", fontsize=11, va="center")
    start = 0
    for name, size in parts.items():
        _stretch(axis, start, start + size, COLOURS[name])
        start += size
    y = 1.6 + height + 0.9
    for name, size in parts.items():
        axis.add_patch(Rectangle((0.2, y - 0.4), 0.8, 0.8, fc=COLOURS[name], ec="none"))
        axis.text(1.4, y, name, fontsize=11, va="center")
        axis.text(11.5, y, f"{size:,} bytes", fontsize=11, va="center", ha="right")
        y += 1.2
    axis.text(0.2, y + 0.5, "of one sub-vector:", fontsize=11, va="center")
    x = 0.2
    for name, value, size in entry:
        for byte in range(size):
            axis.add_patch(Rectangle((x + 1.9 * byte, y + 1.3), 1.9, 1.3, fc=COLOURS[name], ec="white", lw=1.5))
        middle = x + 0.95 * size
        looks: dict[str, Any] = {
            "color": "white",
            "weight": "bold",
            "bbox": {"fc": COLOURS[name], "ec": "none", "pad": 1},
        }
        axis.text(middle, y + 1.95, value, fontsize=11, va="center", ha="center", **looks)
        x += 1.9 * size + 0.5
    return figure


def _stretch(axis: Axes, start: int, end: int, colour: Any) -> None:
    """Bytes start..end of the map, over as many rows as they take."""
    while start < end:
        row, column = divmod(start, ROW)
        stop = min(end, (row + 1) * ROW)
        left, width = column / ROW * ACROSS, (stop - start) / ROW * ACROSS
        axis.add_patch(Rectangle((0.2 + left, 1.6 + row * ROW_HEIGHT), width, 0.8 * ROW_HEIGHT, fc=colour, ec="none"))
        start = stop


def queue(rows: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Logits of one sub-vector, a row for each way to have them: the chosen as stars, the others as strokes.

    Args:
        rows: label -> logits of the chosen vectors, and of the others.

    Raises:
        ValueError: no rows, or a row without chosen logits.
    """
    if not rows or not all(len(chosen) for chosen, _ in rows.values()):
        raise ValueError("a row needs at least one chosen logit")
    figure, axis = new_figure(1.1 + 0.85 * len(rows))
    for y, (chosen, others) in enumerate(rows.values()):
        axis.plot(others, [y] * len(others), "|", color="#5f5f5f", markersize=18, mew=1.5)
        axis.plot(chosen, [y] * len(chosen), "*", color=VB_LORA, markersize=14)
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5), xlabel="logit")
    axis.grid(axis="y", visible=False)
    return figure
