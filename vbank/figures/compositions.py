"""Compositions: where the entries of A, B and the update come from, as blocks in which equal colour means equal.

The picture is computed, not drawn by hand: the method is built for toy layers, every trained parameter gets a value of
its own, and entries that come out equal get one colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vbank.figures.blocks import GAP, STRIP, Layer, Paint, Shared, generic, paint_layer, paint_shared
from vbank.figures.palette import WIDTH, colour_of, new_canvas
from vbank.methods import Config, PRoLoRA, Site, VBLoRA, VeRA

Shapes = Sequence[tuple[int, int]] | Mapping[str, tuple[int, int]]

WIDEST = 72  # cells across: 5 pixels each on a telephone
COMFORTABLE = 46  # cells across, up to which layers stand side by side
NARROWEST = 26  # a smaller picture gets margins instead of huge cells
MOST_LAYERS = 12
MOST_VECTORS = 24
LINE = 11 * 1.3 / 72 / WIDTH  # height of a line of 11-point type as a share of the picture's width


def composition(config: Config, shapes: Shapes) -> Figure:
    """A, B and the update of every layer, to scale: one cell an entry, equal colour = the same parameter.

    B stands to the left of the update and A above it, so that an entry of the update is the product of the row of B
    at its left and the column of A above it. In the update equal colour means the same value. What a file stores has
    a black outline; what is frozen and random is hatched. VeRA's and Tied-LoRA's scales stand beside the pair,
    VB-LoRA's sub-vectors are split in the colours of the bank vectors that they mix, in proportion to the weights.

    Args:
        config: settings of any method, for toy sizes.
        shapes: (out_features, in_features) of each layer, or a dict from the layer's label to them.

    Raises:
        ValueError: no layers, too many or too large ones to be legible, or sizes that the method refuses.
    """
    sites = _sites(shapes)
    largest = max(site.in_features + config.rank for site in sites)
    if largest > WIDEST or max(site.out_features for site in sites) > WIDEST or len(sites) > MOST_LAYERS:
        raise ValueError(
            f"composition: {len(sites)} layers of up to {max(s.out_features for s in sites)} x "
            f"{max(s.in_features for s in sites)} at rank {config.rank} would not be legible; draw a toy of at most "
            f"{MOST_LAYERS} layers and {WIDEST} cells across, such as shapes=[(12, 12), (12, 12)] at rank 4"
        )
    if isinstance(config, VBLoRA) and config.num_vectors > MOST_VECTORS:
        raise ValueError(
            f"composition: nobody can tell {config.num_vectors} bank vectors apart by colour; draw a toy with"
            f" num_vectors of at most {MOST_VECTORS}"
        )
    method = generic(config, sites)
    paint = Paint(colour_of(config.title))
    shared = paint_shared(method, paint)
    layers = [paint_layer(method, index, paint) for index in range(len(sites))]
    return _arrange(config, shared, layers, numbered=not isinstance(shapes, Mapping))


def _sites(shapes: Shapes) -> list[Site]:
    if not shapes:
        raise ValueError("composition: no shapes given; give at least one (out_features, in_features)")
    named = shapes if isinstance(shapes, Mapping) else {str(i + 1): shape for i, shape in enumerate(shapes)}
    return [Site(label, in_features, out_features) for label, (out_features, in_features) in named.items()]


def _arrange(config: Config, shared: Shared | None, layers: list[Layer], numbered: bool) -> Figure:
    """Places the shared blocks on top, then the layers, as many side by side as stay legible."""
    rows: list[list[Layer]] = [[]]
    for layer in layers:
        if rows[-1] and sum(other.width + 3 for other in rows[-1]) + layer.width > COMFORTABLE:
            rows.append([])
        rows[-1].append(layer)
    content = max(sum(layer.width + 3 for layer in row) - 3 for row in rows)
    width = max(content + 4, NARROWEST)
    line = LINE * width
    legend = _legend(config)
    shelf_height = _shared_height(shared, width, line)
    heights = [max(layer.height for layer in row) + line * (3.9 if numbered else 5.1) for row in rows]
    figure, axis = new_canvas(width, 0.5 + shelf_height + sum(heights) + line * (len(legend) + 0.3))
    if shared:
        _draw_shared(axis, shared, width, line)
    y = 0.5 + shelf_height
    for row, height in zip(rows, heights, strict=True):
        x = (width - sum(layer.width + 3 for layer in row) + 3) / 2
        bottom = max(layer.attic for layer in row)
        for layer in row:
            _draw_layer(axis, layer, x, y, bottom, line, numbered)
            x += layer.width + 3
        y += height
    for i, sentence in enumerate(legend):
        axis.text(0.6, y + line * (i + 0.2), sentence, fontsize=11, va="center")
    return figure


def _legend(config: Config) -> list[str]:
    lines = [r"Equal colour: the same parameter; in $\Delta W$: the same value.", "Black outline: stored."]
    if isinstance(config, VeRA):
        lines[1] += " Hatched: frozen and random, in the colour of its scale."
    if isinstance(config, PRoLoRA) and 0 < config.unshared_rank:
        lines[1] += " Grey: unshared ranks."
    if isinstance(config, VBLoRA):
        lines[0] = r"Equal colour: the same bank vector; in $\Delta W$: the same value."
        lines[1] += " Stripes: the mixed vectors, by weight." if config.stored_k > 1 else ""
    return lines


def _per_line(shared: Shared, width: float) -> int:
    pitch = max(block.columns for _, block in shared.blocks) + 1.2
    return max(1, int((width - 2) / pitch)) if len(shared.blocks) > 2 else 2


def _shared_height(shared: Shared | None, width: float, line: float) -> float:
    if shared is None:
        return 0.0
    count = -(-len(shared.blocks) // _per_line(shared, width))
    return line * 1.4 + count * (max(block.rows for _, block in shared.blocks) + 1.7 * line) + 0.8 * line


def _draw_shared(axis: Axes, shared: Shared, width: float, line: float) -> None:
    axis.text(width / 2, 0.5 + line / 2, shared.title, fontsize=12, ha="center", va="center")
    many, tall = _per_line(shared, width), max(block.rows for _, block in shared.blocks)
    y = 0.5 + 1.4 * line
    for first in range(0, len(shared.blocks), many):
        some = shared.blocks[first : first + many]
        x = (width - sum(block.columns + 1.2 for _, block in some) + 1.2) / 2
        for name, block in some:
            block.draw(axis, x, y)
            axis.text(x + block.columns / 2, y + block.rows + 0.7 * line, name, fontsize=12, ha="center", va="center")
            x += block.columns + 1.2
        y += tall + 1.7 * line


def _draw_layer(axis: Axes, layer: Layer, x: float, y: float, attic: float, line: float, numbered: bool) -> None:
    """B at the left of the update and A above it, each entry of the update in line with what it is made from."""
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11}
    suffix = f"_{{{layer.label}}}" if numbered else ""
    corner_x = x + layer.shelf
    if not numbered:
        axis.text(corner_x + layer.update.columns / 2, y + 0.5 * line, layer.label, fontweight="bold", **centred)
        y += 1.2 * line
    rank = sum(block.rows for block in layer.A)
    size_a = f"{rank} × {layer.update.columns}"
    axis.text(corner_x + layer.update.columns / 2, y + 0.5 * line, f"$A{suffix}$  {size_a}", **centred)
    corner_y = y + 1.1 * line + attic
    top = corner_y - layer.attic
    if (strip := layer.scales.get("A")) is not None:
        strip.draw(axis, corner_x - STRIP, top)
        axis.text(
            corner_x - STRIP - 0.5,
            top + strip.rows / 2,
            f"$\\mathbf{{{layer.letters[0]}}}{suffix}$",
            **centred | {"ha": "right"},
        )
    for block in layer.A:
        block.draw(axis, corner_x, top)
        top += block.rows + GAP
    left = x
    if (strip := layer.scales.get("B")) is not None:
        strip.draw(axis, left, corner_y)
        axis.text(left + 0.5, corner_y - 0.6 * line, f"$\\mathbf{{{layer.letters[1]}}}{suffix}$", **centred)
        left += STRIP
    start = left
    for block in layer.B:
        block.draw(axis, left, corner_y)
        left += block.columns + GAP
    layer.update.draw(axis, corner_x, corner_y)
    below = corner_y + layer.update.rows + 0.35 * line
    axis.text((start + left - GAP) / 2, below, f"$B{suffix}$\n{layer.update.rows} × {rank}", **centred | {"va": "top"})
    size = f"{layer.update.rows} × {layer.update.columns}"
    axis.text(corner_x + layer.update.columns / 2, below, f"$\\Delta W{suffix}$\n{size}", **centred | {"va": "top"})
