"""The blocks of a composition: colours for the entries of A, B and the update, method by method."""

from __future__ import annotations

import colorsys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from vbank.figures.drawings import draw_cells
from vbank.figures.palette import colour_of
from vbank.methods import Config, Method, Site, delta
from vbank.methods.prolora import PRoLoRAMethod
from vbank.methods.vb_lora import VBLoRAMethod
from vbank.methods.vera import ScaledPair, VeRAMethod

Values = NDArray[np.float64]
Colours = NDArray[np.uint8]  # (rows, columns, 3)

STRIP = 1.6  # width of a column of scales with its gap, in cells
GAP = 0.8  # between A, B and the update


def generic(config: Config, sites: Sequence[Site]) -> Method:
    """The method with a value of its own in every trained parameter, whatever it starts from."""
    generator = torch.Generator().manual_seed(4)
    method = config.build(sites, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


class Paint:
    """One colour for each key, all in shades of one hue and no two alike."""

    def __init__(self, base: str) -> None:
        self.hue, _, self.saturation = colorsys.rgb_to_hls(*to_rgb(base))
        self.colours: dict[Hashable, tuple[int, int, int]] = {}
        self.taken: set[tuple[int, int, int]] = set()

    def __call__(
        self, key: Hashable, turn: float = 0.0, light: float = 0.5, saturation: float = 1.0
    ) -> tuple[int, int, int]:
        """The key's colour; a new key takes a hue `turn` degrees from the base and a lightness from 0 to 1."""
        if key not in self.colours:
            hue, strength = (self.hue + turn / 360) % 1.0, min(self.saturation, 0.75) * saturation
            channels = colorsys.hls_to_rgb(hue, 0.22 + 0.66 * light, strength)
            red, green, blue = (round(255 * channel) for channel in channels)
            while (red, green, blue) in self.taken:
                red, green, blue = (red + 1) % 256, (green + (red == 255)) % 256, blue
            self.taken.add((red, green, blue))
            self.colours[key] = red, green, blue
        return self.colours[key]


def _scatter(index: int) -> float:
    """A number from 0 to 1 that differs clearly from its neighbours'."""
    return ((index + 0.5) * 0.6180339887) % 1.0


def _paint_ranks(paint: Paint, values: Values, turn: float, layer: int = 0, saturation: float = 1.0) -> Colours:
    """Colours of (rank, length) values: a band of lightness for each rank, a small variation along it.

    Values are met column by column, so that a repeated chunk is painted before its rotated copies.
    """
    rank, length = values.shape
    for j in range(length):
        for i in range(rank):
            band = rank - 1 - i if layer % 2 else i
            light = (band + 0.15 + 0.7 * _scatter(2 * j + layer)) / rank
            paint(values[i, j], turn + 10 * (_scatter(j) - 0.5), light, saturation)
    return np.array([[paint(value) for value in row] for row in values], np.uint8)


def _paint_update(paint: Paint, values: Values, cuts: tuple[Sequence[int], Sequence[int]], layer: int) -> Colours:
    """Colours of the update: lightness by the block and the place in it where a value first occurs."""
    keys = np.round(values, 9) + 0.0  # sums in another order differ in the last digits; and -0 is 0
    rows, columns = (len(cut) + 1 for cut in cuts)
    # a seed by which neighbouring blocks differ, along the diagonals too: only equal values are to look alike
    shades = np.random.default_rng(2881).permutation(rows * columns).reshape(rows, columns) / (rows * columns)
    of_row, of_column = (np.searchsorted(cut, range(n), "right") for cut, n in zip(cuts, values.shape, strict=True))
    texture = np.random.default_rng(layer).random(values.shape)  # its own: layers do not share values by chance
    result = np.empty((*values.shape, 3), np.uint8)
    for (p, q), key in np.ndenumerate(keys):
        block, grain = float(shades[of_row[p], of_column[q]]), float(texture[p, q])
        one_block = rows * columns == 1
        light, turn = (grain, q / values.shape[1]) if one_block else (0.72 * block + 0.28 * grain, block)
        result[p, q] = paint(("update", key), 24 * turn - 12, light, 0.6)
    return result


@dataclass
class Block:
    """A block of cells: its colours, perhaps several pixels a cell, and how to draw it."""

    colours: Colours
    size: tuple[int, int]  # rows, columns in cells
    hatch: str | None = None
    stored: Sequence[tuple[int, int, int, int]] = ()  # outlined parts: row, column, rows, columns
    cuts: tuple[Sequence[int], Sequence[int]] = ((), ())  # rows and columns before which a new piece begins

    @property
    def rows(self) -> int:
        return self.size[0]

    @property
    def columns(self) -> int:
        return self.size[1]

    def draw(self, axis: Axes, x: float, y: float) -> None:
        draw_cells(axis, x, y, self.colours, self.size, self.hatch, self.cuts)
        for row, column, rows, columns in self.stored:
            outline = Rectangle((x + column, y + row), columns, rows, fc="none", ec="black", lw=1.6, clip_on=False)
            axis.add_patch(outline)


@dataclass
class Layer:
    """One layer's picture. A and B in pieces along the rank; a scale beside each where the method has one."""

    label: str
    A: list[Block]
    B: list[Block]
    scales: dict[str, Block | None] = field(default_factory=dict)  # by the side that they scale: "A", "B"
    letters: tuple[str, str] = ("", "")  # names of A's scale and B's
    update: Block = field(init=False)

    @property
    def shelf(self) -> float:
        """Width of everything to the left of the update."""
        widths = sum(block.columns for block in self.B) + GAP * len(self.B)
        return widths + (STRIP if self.scales.get("B") else 0)

    @property
    def width(self) -> float:
        return self.shelf + self.update.columns

    @property
    def attic(self) -> float:
        """Height of everything above the update."""
        return sum(block.rows for block in self.A) + GAP * len(self.A)

    @property
    def height(self) -> float:
        return self.attic + self.update.rows


def _whole(rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    return [(0, 0, rows, columns)]


def paint_layer(method: Method, index: int, paint: Paint) -> Layer:
    """The picture of the method's layer number `index`."""
    site = method.sites[index]
    values = delta(method, site.name).detach().numpy()
    if isinstance(method, ScaledPair):
        layer = _scaled_layer(method, index, paint)
    elif isinstance(method, VBLoRAMethod):
        layer = _admixture_layer(method, index, paint)
    else:
        layer = _own_layer(method, index, paint)
    cuts = layer.B[-1].cuts[0], layer.A[-1].cuts[1]
    layer.update = Block(_paint_update(paint, values, cuts, index), values.shape, cuts=cuts)
    return layer


def _turns(method: Method, index: int) -> tuple[float, float]:
    """Hue of A and of B in one layer, in degrees from the method's."""
    middle = 20 * ((index + 0.5) / len(method.sites) - 0.5) if len(method.sites) > 1 else 0.0
    return middle - 6, middle + 6


def _own_layer(method: Method, index: int, paint: Paint) -> Layer:
    """LoRA and PRoLoRA: the layer's own entries; what PRoLoRA repeats is outlined once."""
    site, turns = method.sites[index], _turns(method, index)
    A, B = (factor.detach().numpy() for factor in method.factors(site.name))
    unshared, widths = 0, [site.in_features, site.out_features]
    if isinstance(method, PRoLoRAMethod):
        unshared = method.config.unshared_rank
        widths = [-(-widths[0] // method.config.share_a), -(-widths[1] // method.config.share_b)]
    copies = [
        list(range(width, length, width))
        for width, length in zip(widths, (site.in_features, site.out_features), strict=True)
    ]
    pieces: tuple[list[Block], list[Block]] = ([], [])
    for part, own in ((slice(0, unshared), True), (slice(unshared, None), False)):
        for side, values in enumerate((A[part], B.T[part])):
            if not len(values):
                continue
            colours = _paint_ranks(paint, values, turns[side], index, 0.15 if own else 1.0)
            width = values.shape[1] if own else widths[side]
            outline = _whole(len(values), width) if side == 0 else _whole(width, len(values))
            cuts = [] if own else copies[side]
            pieces[side].append(
                Block(colours, values.shape, stored=outline, cuts=([], cuts))
                if side == 0
                else Block(colours.swapaxes(0, 1), values.shape[::-1], stored=outline, cuts=(cuts, []))
            )
    return Layer(site.name, *pieces)


def _pair(method: ScaledPair, name: str, paint: Paint) -> tuple[Block, Block]:
    """The pair of one layer without its scales."""
    A, B = (factor.detach().numpy() for factor in method.pair(name))
    if isinstance(method, VeRAMethod):
        white = np.full((1, 1, 3), 238, np.uint8)
        hatch = "////" if method.config.shared or method.index[name] % 2 == 0 else "\\\\\\\\"
        return Block(white, A.shape, hatch), Block(white, B.shape, hatch)
    return (
        Block(_paint_ranks(paint, A, -6), A.shape),
        Block(_paint_ranks(paint, B.T, 6).swapaxes(0, 1), B.shape),
    )


def _scaled_layer(method: ScaledPair, index: int, paint: Paint) -> Layer:
    """VeRA and Tied-LoRA: the pair, and the layer's scales beside it."""
    site = method.sites[index]
    pair = dict(zip("AB", _pair(method, site.name, paint), strict=True))
    scales: dict[str, Block | None] = {}
    turns = 8 * index % 24 - 14, 8 * index % 24 + 4
    for side, turn, scale in zip("AB", turns, method.scales(site.name), strict=True):
        if scale is None:
            scales[side] = None
            continue
        values = scale.detach().numpy()
        light = [_scatter(i + 3 * index) for i in range(len(values))]
        column = np.array([[paint(v, turn, x)] for v, x in zip(values, light, strict=True)], np.uint8)
        scales[side] = Block(column, (len(values), 1), stored=_whole(len(values), 1))
        if isinstance(method, VeRAMethod):
            pair[side].colours = column
    letters = ("d", "b") if isinstance(method, VeRAMethod) else ("u", "v")
    return Layer(site.name, [pair["A"]], [pair["B"]], scales, letters)


PIXELS = 12  # across a sub-vector, to share its width among the vectors that it mixes


def bank_colours(h: int) -> list[str]:
    """Colours of h bank vectors as the book draws them."""
    return ["#" + bytes(c).hex() for c in _paint_bank(Paint(colour_of("VB-LoRA")), h, 1).reshape(-1, 3)]


def _paint_bank(paint: Paint, h: int, b: int) -> Colours:
    """Colours of the bank (h, b, 3): clearly another for each vector, almost one within it."""
    order = [(3 * s) % h if h % 3 else s for s in range(h)]
    return np.array(
        [
            [paint(("bank", s, j), (-14, 34, 10)[s % 3], (order[s] + 0.35 + 0.3 * _scatter(j)) / h) for j in range(b)]
            for s in range(h)
        ],
        np.uint8,
    )


def _admixture_layer(method: VBLoRAMethod, index: int, paint: Paint) -> Layer:
    """VB-LoRA: each sub-vector in the colours of the bank vectors that it mixes, in proportion to the weights."""
    site, bank = method.sites[index], _paint_bank(paint, *method.bank.shape)
    rank, b = method.config.rank, method.config.vector_length
    start, middle, end = method.spans[index]
    indices, weights = (tensor.detach() for tensor in method.selected)

    def paint_sub_vectors(rows: slice) -> Colours:
        """(sub-vectors, PIXELS, b, 3)."""
        result = []
        for chosen, shares in zip(indices[rows].tolist(), weights[rows].tolist(), strict=True):
            ends = np.round(PIXELS * np.cumsum(shares)).astype(int)
            owner = np.searchsorted(ends, np.arange(PIXELS), side="right").clip(max=len(chosen) - 1)
            result.append(bank[np.asarray(chosen)[owner]])
        return np.array(result, np.uint8)

    a, c = paint_sub_vectors(slice(start, middle)), paint_sub_vectors(slice(middle, end))
    parts = site.in_features // b, site.out_features // b
    A = a.reshape(rank, parts[0], PIXELS, b, 3).transpose(0, 2, 1, 3, 4).reshape(rank * PIXELS, site.in_features, 3)
    B = c.reshape(parts[1], rank, PIXELS, b, 3).transpose(0, 3, 1, 2, 4).reshape(site.out_features, rank * PIXELS, 3)
    ends_a, ends_b = range(b, site.in_features, b), range(b, site.out_features, b)
    return Layer(
        site.name,
        [Block(A, (rank, site.in_features), cuts=([], ends_a))],
        [Block(B, (site.out_features, rank), cuts=(ends_b, []))],
    )


@dataclass
class Shared:
    """What all layers draw on: blocks side by side with a name each."""

    title: str
    blocks: list[tuple[str, Block]]


def paint_shared(method: Method, paint: Paint) -> Shared | None:
    """The pair or the bank that all layers draw on; None where each layer has its own."""
    if isinstance(method, VBLoRAMethod):
        colours = _paint_bank(paint, *method.bank.shape)
        b = colours.shape[1]
        vectors = [Block(column[:, None], (b, 1), stored=_whole(b, 1)) for column in colours]
        title = f"one bank for all layers: {len(vectors)} vectors of length {b}"
        return Shared(title, [(f"${{\\alpha}}_{{{i + 1}}}$", vector) for i, vector in enumerate(vectors)])
    if isinstance(method, ScaledPair):
        if isinstance(method, VeRAMethod) and not method.config.shared:
            return None
        widest = max(method.sites, key=lambda site: site.in_features)
        tallest = max(method.sites, key=lambda site: site.out_features)
        A, B = _pair(method, widest.name, paint)[0], _pair(method, tallest.name, paint)[1]
        if isinstance(method, VeRAMethod):
            return Shared("one frozen random pair for all layers, drawn from a seed", [("$B$", B), ("$A$", A)])
        A.stored, B.stored = _whole(*A.size), _whole(*B.size)
        return Shared("one trained pair for all layers", [("$B$", B), ("$A$", A)])
    return None
