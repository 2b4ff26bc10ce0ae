"""The drawing of the chapter *More than one GPU*: who holds which part of a model, and what travels."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vbank.figures.palette import FROZEN, METHOD_COLOURS, new_canvas

LAYERS = 6
ADAPTER = METHOD_COLOURS["VB-LoRA"]
ROWS = (
    ("DDP", "gradients of", "the adapter"),
    ("FSDP", "all weights,", "every step"),
    ("pipeline", "activations at", "one border"),
)


def layouts() -> Figure:
    """Three ways to put a frozen model of six layers and its adapter on two GPUs, one way a row.

    Grey is frozen, brown is trained. A copy fills the width of its GPU; a shard fills half of it.
    """
    figure, axis = new_canvas(26, 25)
    for place, (name, first, second) in enumerate(ROWS):
        top = 1.8 + 8.0 * place
        axis.text(0.2, top + 3.2, name, va="center", fontsize=12, weight="bold")
        for gpu in range(2):
            left = 4.6 + 12.6 * gpu
            axis.add_patch(Rectangle((left, top), 7.6, 6.6, fc="none", ec="#444444", lw=1.2))
            axis.text(left + 3.8, top - 0.25, f"GPU {gpu}", ha="center", va="bottom", fontsize=11)
            for layer in range(LAYERS):
                _layer(axis, name, gpu, layer, left + 0.4, top + 0.35 + layer)
        middle = 4.6 + 7.6 + 2.5
        axis.annotate("", (17.0, top + 3.3), (12.4, top + 3.3), arrowprops={"arrowstyle": "<->", "lw": 1.5})
        axis.text(middle, top + 2.9, first, ha="center", va="bottom", fontsize=11)
        axis.text(middle, top + 3.7, second, ha="center", va="top", fontsize=11)
    return figure


def _layer(axis: Axes, layout: str, gpu: int, layer: int, left: float, top: float) -> None:
    """What a GPU holds of one layer: frozen weights, and beside them their part of the adapter."""
    if layout == "pipeline" and layer * 2 // LAYERS != gpu:
        return
    share = 0.5 if layout == "FSDP" else 1.0
    shift = gpu * (1 - share)
    for start, width, colour in ((0.0, 5.0, FROZEN), (5.3, 1.5, ADAPTER)):
        axis.add_patch(Rectangle((left + start + shift * width, top), share * width, 0.75, fc=colour, ec="none"))
        if share < 1:
            axis.add_patch(Rectangle((left + start, top), width, 0.75, fc="none", ec="#bbbbbb", lw=0.8, ls=":"))
