"""Seeing the bank of an adapter: which vectors are used, how often, by whom, and where (VB-LoRA, Figures 6 to 9).

Each drawing takes a model with a VB-LoRA adapter, the folder of one, compact or resumable, or a log of selections, of
which the last recording counts. It is a `Told`: ``print(figure)`` gives its numbers as a table. Vectors and sub-vectors
count from 0, as in the adapter's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vbank.figures.palette import METHOD_COLOURS
from vbank.figures.selected import (
    MOST_PANELS,
    MOST_ROWS,
    MOST_VECTORS,
    Integers,
    Reals,
    Selected,
    Source,
    along_edges,
    blocks_of,
    deviation_at_random,
    edges_of,
    expected_usage,
    kinds_of,
    off_edges,
    rows_to_draw,
    selected,
    summed_weights,
    usage_of,
    vectors_to_draw,
)
from vbank.figures.spoken import Told, table
from vbank.figures.told import SMALLEST, number_ticks, told_figure

COLOUR = METHOD_COLOURS["VB-LoRA"]
EDGE = "#b08f84"
BAND = "#cfd8e3"
MOST_EDGES = 1500
MOST_BARS = 28  # of the histogram
NUMBERED = 60  # bank vectors whose numbers a plane has room for


def weights_by_layer(
    source: Source, groups: int = 3, vectors: Any = None, order: str = "norm", name: str | None = None
) -> Told:
    """The sum of the top-k weights that groups of layers give to each bank vector (VB-LoRA, Figure 6).

    The weights of a sub-vector are one in sum, so a group of n sub-vectors gives n / h on average: the dashed line. The
    band is two deviations of random choice wide on each side: about one bar in twenty is outside it by luck alone.

    Args:
        source: a model with a VB-LoRA adapter, its folder, or a log of selections.
        groups: how many groups the transformer's blocks are cut into, as equal as they can be; three in the paper.
        vectors: the bank vectors drawn, a slice or a list; None takes all, and spreads 256 over a larger bank.
        order: of the bank vectors: "norm", the shortest first as in the paper, or "number".
        name: the adapter on the model; None takes the active one.

    Raises:
        TypeError: `source` is neither model nor folder nor log.
        ValueError: no VB-LoRA adapter, more groups than blocks, or more than a picture holds.
    """
    chosen = selected(source, name, "weights_by_layer")
    blocks = blocks_of(chosen.sites)
    most = max(blocks) + 1
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= min(most, MOST_PANELS):
        raise ValueError(
            f"weights_by_layer: groups is {groups!r} and the adapter is on {most} blocks; give 1 to"
            f" {min(most, MOST_PANELS)}"
        )
    parts: dict[str, list[range]] = {}
    for members in np.array_split(np.arange(most), groups):
        ends = f"{members[0]} to {members[-1]}" if len(members) > 1 else f"{members[0]}"
        spans = [span for span, block in zip(chosen.spans, blocks, strict=True) if block in members]
        parts[f"block{'s' * (len(members) > 1)} {ends}"] = [range(start, end) for start, _, end in spans]
    return _weights(chosen, parts, vectors, order, "weights_by_layer")


def weights_by_module(source: Source, vectors: Any = None, order: str = "norm", name: str | None = None) -> Told:
    """The sum of the top-k weights that A and B of each kind of module give to each bank vector (VB-LoRA, Figure 7).

    A kind is what follows the block in a layer's name, such as query. The dashed line is the average, n / h for a group
    of n sub-vectors, and the band two deviations of random choice around it.

    Args:
        source: a model with a VB-LoRA adapter, its folder, or a log of selections.
        vectors: the bank vectors drawn, a slice or a list; None takes all, and spreads 256 over a larger bank.
        order: of the bank vectors: "norm", the shortest first as in the paper, or "number".
        name: the adapter on the model; None takes the active one.

    Raises:
        TypeError: `source` is neither model nor folder nor log.
        ValueError: no VB-LoRA adapter, or more than a picture holds.
    """
    chosen = selected(source, name, "weights_by_module")
    parts: dict[str, list[range]] = {}
    for kind, (start, middle, end) in zip(kinds_of(chosen.sites), chosen.spans, strict=True):
        parts.setdefault(f"{kind}, A", []).append(range(start, middle))
        parts.setdefault(f"{kind}, B", []).append(range(middle, end))
    return _weights(chosen, parts, vectors, order, "weights_by_module")


def _weights(chosen: Selected, parts: Mapping[str, Sequence[range]], vectors: Any, order: str, drawing: str) -> Told:
    """A panel of bars for each group of sub-vectors."""
    if order not in ("norm", "number"):
        raise ValueError(f"{drawing}: order is {order!r}; choose norm or number")
    if len(parts) > MOST_PANELS:
        raise ValueError(f"{drawing}: {len(parts)} groups do not fit a picture, {MOST_PANELS} do: {', '.join(parts)}")
    drawn = vectors_to_draw(vectors, len(chosen.bank), drawing)
    if order == "norm":
        drawn = drawn[np.argsort(np.linalg.norm(chosen.bank[drawn], axis=1), kind="stable")]
    sums = {title: summed_weights(chosen, rows) for title, rows in parts.items()}
    sizes = {title: sum(map(len, rows)) for title, rows in parts.items()}
    random = {title: deviation_at_random(chosen, rows) for title, rows in parts.items()}
    lines = []
    for title, values in sums.items():
        top = np.argsort(-values, kind="stable")[:3]
        most = ", ".join(f"{s}: {values[s]:.2f}" for s in top)
        spread = f"{values.std():.2f}", f"{random[title]:.2f}"
        lines.append([title, f"{sizes[title]:,}", f"{values.mean():.2f}", *spread, most])
    words = table(["sum of weights", "sub-vectors", "mean", "deviation", "at random", "largest of vectors"], lines)
    figure, axes = told_figure(1.2 + 1.05 * len(parts), words, nrows=len(parts), sharex=True, sharey=True)
    places = np.arange(len(drawn) + 1) - 0.5
    for axis, (title, values) in zip(axes[:, 0], sums.items(), strict=True):
        axis.stairs(values[drawn], places, fill=True, color=COLOUR)
        low, high = values.mean() - 2 * random[title], values.mean() + 2 * random[title]
        band = axis.axhspan(max(low, 0.0), high, color=BAND, zorder=0, label="two deviations of random choice")
        mean = axis.axhline(values.mean(), color="black", ls="--", lw=1.2, label="average over the bank")
        axis.set_title(title, loc="left", pad=3)
        axis.yaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
        axis.grid(axis="x", visible=False)
    part = "" if len(drawn) == len(chosen.bank) else f" ({len(drawn)} of {len(chosen.bank):,})"
    axes[-1, 0].set(
        xlabel=f"bank vector{part}{', the shortest first' if order == 'norm' else ''}", xlim=(-0.5, len(drawn) - 0.5)
    )
    number_ticks(axes[-1, 0].xaxis, drawn)
    figure.legend(handles=[mean, band], loc="outside upper center", ncols=2, fontsize=SMALLEST)
    figure.supylabel("sum of the top-k weights", fontsize=SMALLEST)
    return figure


def bank_usage(source: Source, name: str | None = None) -> Told:
    """How often the bank vectors are used, beside what random choice would give (VB-LoRA, Figure 8).

    Where each of N sub-vectors draws k of h vectors without putting back, a given vector is among the k with the
    hypergeometric probability C(h - 1, k - 1) / C(h, k) = k / h. The N draws are independent, so its usage is binomial,
    c ~ B(N, p) with p = k / h: N p on average, with the variance N p (1 - p). By linearity h P(c = m) vectors have the
    usage m on average, which the dots show, summed over the width of a bar; and h (1 - p)^N are never used.

    Args:
        source: a model with a VB-LoRA adapter, its folder, or a log of selections.
        name: the adapter on the model; None takes the active one.

    Returns:
        The drawing. Its table sets mean, deviation and unused vectors beside their expectation.

    Raises:
        TypeError: `source` is neither model nor folder nor log.
        ValueError: no VB-LoRA adapter, or one that selects the whole bank each time.
    """
    chosen = selected(source, name, "bank_usage")
    (count, k), h = chosen.indices.shape, len(chosen.bank)
    if k == h:
        raise ValueError(
            f"bank_usage: each sub-vector selects all {h} vectors, so each has the usage {count:,}; draw the weights"
            " with weights_by_layer"
        )
    found, expected = usage_of(chosen.indices, h), expected_usage(count, k, h)
    mean, deviation = count * k / h, np.sqrt(count * k / h * (1 - k / h))
    lines = [
        ["mean", f"{found.mean():.2f}", f"{mean:.2f}"],
        ["deviation", f"{found.std():.2f}", f"{deviation:.2f}"],
        ["never used", f"{(found == 0).sum()}", f"{expected[0]:.2f}"],
        ["fewest", f"{found.min()}", ""],
        ["most", f"{found.max()}", ""],
    ]
    low = max(min(found.min(), round(mean - 3.5 * deviation)), 0)
    high = min(max(found.max(), round(mean + 3.5 * deviation)), count)
    width = -(-(high + 1 - low) // MOST_BARS)
    edges = np.arange(low, high + width + 1, width)
    bars, _ = np.histogram(found, edges)
    dots = [expected[start:end].sum() for start, end in zip(edges[:-1], edges[1:], strict=True)]
    figure, axes = told_figure(3.8, table(["usage of a vector", "found", "at random"], lines))
    axis, middles = axes[0, 0], edges[:-1] + (width - 1) / 2
    found_bars = axis.bar(middles, bars, width=0.86 * width, color=COLOUR, label="found")
    (at_random,) = axis.plot(middles, dots, "o--", color="black", mfc="white", ms=6, lw=1.2, label="expected at random")
    axis.set(xlabel="sub-vectors that choose a vector", ylabel="bank vectors")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(axis="x", visible=False)
    figure.legend(handles=[found_bars, at_random], loc="outside upper center", ncols=2, fontsize=SMALLEST)
    return figure


def bank_plane(
    source: Source, rows: Any = None, projection: str = "t-sne", seed: int | None = None, name: str | None = None
) -> Told:
    """Bank vectors and sub-vectors brought into the plane, with the edges of the simplices (VB-LoRA, Figure 9).

    A sub-vector of k = 2 is w alpha_s + (1 - w) alpha_t: in its own space it lies on the edge between its two bank
    vectors, at the place that w gives; for k = 3 it lies in the triangle of three. An edge is drawn where a drawn
    sub-vector has both ends.

    t-SNE (van der Maaten and Hinton 2008) keeps who is near whom, and little else. It is no linear map: a point of an
    edge need not lie on the drawn edge, and a point in its middle is drawn near the end that it is nearer to. Distances
    between groups, sizes and densities of groups, directions and the axes mean nothing, and another start gives another
    picture. The table says how far the sub-vectors are from their edges, and how much of the way to the larger weight's
    vector they have gone, before and after. With "pca", which is linear, both stay, and what is lost is the variance
    outside the plane.

    Args:
        source: a model with a VB-LoRA adapter, its folder, or a log of selections.
        rows: the sub-vectors drawn, a slice or a list; None spreads 192 evenly over all, or fewer where the bank is
            larger than 256. Of such a bank the vectors are drawn that a drawn sub-vector chooses.
        projection: "t-sne" as in the paper, or "pca": the plane of the bank's and sub-vectors' largest variance.
        seed: of the random places from which t-SNE starts; None starts from the plane of "pca", which gives equal
            pictures on one machine. Another machine's rounding may turn or move points.
        name: the adapter on the model; None takes the active one.

    Raises:
        TypeError: `source` is neither model nor folder nor log.
        ValueError: no VB-LoRA adapter, an unknown projection, vectors of length 1, or more than a picture holds.
    """
    chosen = selected(source, name, "bank_plane")
    if projection not in ("t-sne", "pca"):
        raise ValueError(f"bank_plane: projection is {projection!r}; choose t-sne or pca")
    if chosen.bank.shape[1] < 2:
        raise ValueError("bank_plane: vectors of length 1 lie on a line, not in a plane; draw bank_usage")
    (count, k), h = chosen.indices.shape, len(chosen.bank)
    usual = MOST_ROWS if h <= MOST_VECTORS else max(1, min(MOST_ROWS, MOST_VECTORS // k))
    shown = rows_to_draw(rows, count, "bank_plane", usual)
    indices, weights = chosen.indices[shown], chosen.weights[shown]
    numbers = np.arange(h) if h <= MOST_VECTORS else np.unique(indices)
    if len(numbers) > MOST_VECTORS:
        raise ValueError(
            f"bank_plane: {len(numbers):,} vectors do not fit a picture, {MOST_VECTORS} do; give fewer rows"
        )
    vectors, indices = chosen.bank[numbers], np.searchsorted(numbers, indices)  # from here on numbers of drawn vectors
    edges = edges_of(indices)
    if len(edges) > MOST_EDGES:
        raise ValueError(f"bank_plane: {len(edges):,} edges do not fit a picture, {MOST_EDGES:,} do; give fewer rows")
    sub_vectors = (weights[:, :, None] * vectors[indices]).sum(1)
    points = np.concatenate([vectors, sub_vectors])
    plane = _project(points, projection, seed)
    lines = [["bank vectors", f"{len(numbers)} of {h:,}"], ["sub-vectors", f"{len(shown)} of {count:,}"]]
    lines += [["edges", f"{len(edges):,}"], *_distances(points, plane, len(numbers), indices)]
    if projection == "pca":
        lines.append(["variance that the plane keeps", f"{plane.var(0).sum() / points.var(0).sum():.1%}"])
    bank, placed = plane[: len(numbers)], plane[len(numbers) :]
    figure, axes = told_figure(6.6, table(["drawn", ""], lines))
    axis = axes[0, 0]
    axis.add_collection(LineCollection(list(bank[edges]), colors=EDGE, lw=0.8, zorder=1))
    axis.plot(*placed.T, "o", color="#404040", ms=3.5, ls="", zorder=2)
    axis.plot(*bank.T, "o", color=COLOUR, ms=17 if len(bank) <= NUMBERED else 9, ls="", zorder=3)
    if len(bank) <= NUMBERED:
        for number, place in zip(numbers, bank, strict=True):
            axis.text(*place, str(number), color="white", ha="center", va="center", fontsize=SMALLEST, zorder=4)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.margins(0.05)
    axis.spines[:].set_visible(False)
    marks = {"bank vector": COLOUR, "sub-vector": "#404040"}
    handles = [Line2D([], [], color=c, marker="o", ms=9, ls="", label=label) for label, c in marks.items()]
    handles.append(Line2D([], [], color=EDGE, lw=1.5, label="edge of a simplex"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=SMALLEST)
    return figure


def _project(points: Reals, projection: str, seed: int | None) -> Reals:
    """(n, b) -> (n, 2)."""
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    if projection == "pca":
        return PCA(2, svd_solver="full").fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    init = "pca" if seed is None else "random"
    return TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(points).astype(np.float64)


def _distances(points: Reals, plane: Reals, vectors: int, indices: Integers) -> list[list[str]]:
    """For k = 2, where the sub-vectors are beside and along their edges, before and after the projection."""
    if indices.shape[1] != 2:
        return []
    larger, smaller = indices.T
    ends = [(place[vectors:], place[smaller], place[larger]) for place in (points, plane)]
    own, drawn = (f"{np.median(off_edges(*each)):.3f}" for each in ends)
    weight, place = (f"{along_edges(*each).mean():.2f}" for each in ends)
    return [
        ["median distance from the edge, in edge lengths", own],
        ["the same in the picture", drawn],
        ["mean way along the edge: the larger weight", weight],
        ["the same in the picture", place],
    ]
