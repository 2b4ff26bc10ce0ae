"""Charts: numbers on axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, colour_of, new_figure

Record = Mapping[str, Any]


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Groups records by method, in the fixed order of METHOD_COLOURS."""
    if not records:
        raise ValueError("no records to draw; give at least one")
    for record in records:
        colour_of(record["method"])
    present = {record["method"] for record in records}
    return {name: [r for r in records if r["method"] == name] for name in METHOD_COLOURS if name in present}


def shootout(records: Sequence[Record], floor: float = 1e-9) -> Figure:
    """Error of a fit against parameters trained (top) and stored (bottom), both axes logarithmic.

    Args:
        records: dicts with ``method``, ``trainable``, ``stored`` and ``mse``, one a seed.
            The method ``"SVD"`` is drawn as a dashed line: the floor of rank-r approximation.
        floor: lower end of the error axis; exact fits lie below it.

    A line joins the medians; the band reaches from the first to the third quartile over the seeds.
    """
    figure, axes = new_figure(8.2, nrows=2, sharey=True)
    for axis, size, label in zip(axes, ("trainable", "stored"), ("trained", "stored"), strict=True):
        for method, rows in _by_method(records).items():
            rows = sorted(rows, key=lambda row: row[size])
            x = [row[size] for row in rows]
            low, median, high = np.array([np.quantile(row["mse"], (0.25, 0.5, 0.75)) for row in rows]).T
            colour = colour_of(method)
            dashed = method == "SVD"
            axis.plot(
                x,
                median,
                color=colour,
                marker=METHOD_MARKERS[method] or None,
                linestyle="--" if dashed else "-",
                label="SVD floor" if dashed else method,
                zorder=2 if dashed else 3,
            )
            if not dashed:
                axis.fill_between(x, np.maximum(low, floor), np.maximum(high, floor), color=colour, alpha=0.18, lw=0)
        axis.set(xscale="log", yscale="log", xlabel=f"parameters {label}", ylabel="mean squared error")
        lowest = min(min(row["mse"]) for row in records)
        axis.set_ylim(bottom=max(floor, lowest / 2))
        _plain_log_ticks(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _plain_log_ticks(axis: Axes) -> None:
    """Writes 20, 50, 100 instead of powers of ten on a logarithmic axis under three decades."""
    low, high = axis.get_xlim()
    if high / low < 1e3:
        ticks = [m * 10.0**e for e in range(-9, 12) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)


def learning_curves(records: Sequence[Record]) -> Figure:
    """Accuracy by epoch: a thin line a run, a thick one through each method's median.

    Args:
        records: dicts with ``method``, ``seed`` and ``curve``, a list of dicts with ``epoch``, ``accuracy``.
    """
    figure, axis = new_figure(4.8)
    for method, rows in _by_method(records).items():
        colour = colour_of(method)
        at_epoch: dict[float, list[float]] = {}
        for row in rows:
            epochs = [point["epoch"] for point in row["curve"]]
            accuracies = [point["accuracy"] for point in row["curve"]]
            axis.plot(epochs, accuracies, color=colour, lw=0.8, alpha=0.45, label="_run")
            for epoch, accuracy in zip(epochs, accuracies, strict=True):
                at_epoch.setdefault(epoch, []).append(accuracy)
        epochs = sorted(at_epoch)
        medians = [float(np.median(at_epoch[epoch])) for epoch in epochs]
        axis.plot(epochs, medians, color=colour, marker=METHOD_MARKERS[method] or None, label=method)
    axis.set(xlabel="epoch", ylabel="accuracy")
    axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def copy_cost(items: Sequence[tuple[str, float, str]]) -> Figure:
    """Horizontal bars of bytes on a logarithmic axis: what one more copy costs.

    Args:
        items: (label, bytes, method) from top to bottom; the method gives the colour.
    """
    figure, axis = new_figure(1.2 + 0.55 * len(items))
    labels, sizes, methods = zip(*items, strict=True)
    rows = np.arange(len(items))[::-1]
    axis.barh(rows, sizes, color=[colour_of(method) for method in methods], height=0.62)
    for row, size in zip(rows, sizes, strict=True):
        axis.annotate(readable_bytes(size), (size, row), xytext=(5, 0), textcoords="offset points", va="center")
    axis.set(xscale="log", yticks=rows, yticklabels=labels)
    axis.set_xlim(min(sizes) / 4, max(sizes) * 60)
    decades = 10.0 ** np.arange(3, 16, 3)
    inside = [tick for tick in decades if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
    axis.set_xticks(inside, [readable_bytes(tick) for tick in inside])
    axis.set_xticks([], minor=True)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("bytes (each step of the grid is a factor of 1,000)")
    return figure


def storage_by_users(users: Sequence[int], choices: Sequence[tuple[str, float, float, str]]) -> Figure:
    """Bytes kept for a number of users, on logarithmic axes.

    Args:
        users: numbers of users, ascending.
        choices: (label, bytes kept once, bytes kept a user, method); the method gives the colour.
    """
    figure, axis = new_figure(4.6)
    for label, once, each, method in choices:
        colour, marker = colour_of(method), METHOD_MARKERS[method] or None
        axis.plot(users, [once + each * n for n in users], color=colour, marker=marker, label=label)
    axis.set(xscale="log", yscale="log", xlabel="users", ylabel="bytes kept")
    low, high = axis.get_ylim()
    inside = [tick for tick in 10.0 ** np.arange(3, 21) if low <= tick <= high]
    axis.set_yticks(inside, [readable_bytes(tick) for tick in inside])
    axis.set_yticks([], minor=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def readable_bytes(size: float) -> str:
    """``350e9`` -> ``'350 GB'``: three digits and a decimal unit (1 kB = 1,000 bytes)."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 999.5 or unit == "PB":
            return f"{size:.0f} {unit}" if size >= 99.95 or unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def singular_values(spectra: Mapping[str, Sequence[float]], ylabel: str = "singular value / largest") -> Figure:
    """Singular values by index, each list divided by its first, on a logarithmic axis."""
    figure, axis = new_figure(4.2)
    colours = [METHOD_COLOURS[name] for name in ("LoRA", "VeRA", "Tied-LoRA", "full")]
    for (label, values), colour, dashes in zip(spectra.items(), colours, ("-", "--", "-.", ":"), strict=False):
        relative = np.asarray(values, dtype=float) / values[0]
        axis.plot(np.arange(1, len(relative) + 1), relative, dashes, color=colour, label=label)
    axis.set(yscale="log", xlabel="index i", ylabel=ylabel)
    axis.legend()
    return figure


def heatmaps(matrices: Mapping[str, Any], columns: int = 3) -> Figure:
    """Matrices side by side on one symmetric colour scale: equal colours are equal values."""
    rows = -(-len(matrices) // columns)
    figure, axes = new_figure(0.9 + 2.3 * rows, nrows=rows, ncols=columns, squeeze=False)
    arrays = {label: np.asarray(matrix, dtype=float) for label, matrix in matrices.items()}
    limit = max(float(np.abs(array).max()) for array in arrays.values())
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (label, array) in zip(axes.flat, arrays.items(), strict=False):
        image = axis.imshow(array, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(label)
    figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=30, pad=0.03)
    return figure


def fit_curve(
    curves: Mapping[str, Sequence[float]],
    floor: float | None = None,
    xlabel: str = "step",
    ylabel: str = "mean squared error",
    floor_label: str = "SVD floor",
) -> Figure:
    """Error by step, one line a label, over an optional dashed floor; the error axis is logarithmic."""
    figure, axis = new_figure(4.2)
    colours = [METHOD_COLOURS[name] for name in ("LoRA", "VeRA", "Tied-LoRA", "PRoLoRA", "VB-LoRA")]
    for index, (label, values) in enumerate(curves.items()):
        axis.plot(np.arange(len(values)), values, color=colours[index % len(colours)], label=label)
    if floor is not None:
        axis.axhline(floor, color=METHOD_COLOURS["SVD"], ls="--", lw=1.5, label=floor_label)
    axis.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def rank_sweep(ranks: Sequence[int], errors: Mapping[str, Sequence[float]], true_rank: int | None = None) -> Figure:
    """Error by rank, one line a label (``"SVD"`` dashed), with the rank of the true change marked."""
    figure, axis = new_figure(4.2)
    for label, values in errors.items():
        colour = METHOD_COLOURS.get(label, METHOD_COLOURS["full"])
        marker = METHOD_MARKERS.get(label, "o") or None
        axis.plot(ranks, values, "--" if label == "SVD" else "-", color=colour, marker=marker, label=label)
    if true_rank is not None:
        axis.axvline(true_rank, color=METHOD_COLOURS["full"], ls=":", lw=1.5, label=f"true rank {true_rank}")
    axis.set(yscale="log", xlabel="rank r", ylabel="mean squared error", xticks=list(ranks))
    axis.legend()
    return figure


def _appearance(labels: Sequence[str], colours: Mapping[str, str] | None) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dashes by label: a method has its own; other labels take what the methods here leave.

    Args:
        labels: what is drawn together.
        colours: a colour, or the name of a method whose colour and marker to take, by label.
    """
    chosen = dict(colours or {})
    if unknown := [label for label in chosen if label not in labels]:
        raise ValueError(f"colours names {unknown[0]!r}, which is not drawn; drawn are: {', '.join(labels)}")
    named = {label: chosen.get(label, label) for label in labels}
    free = [name for name in METHOD_COLOURS if name not in (*named.values(), "SVD", "head-only", "BitFit")]
    result: dict[str, tuple[str, str, str]] = {}
    for label, name in named.items():
        if name not in METHOD_COLOURS and label not in chosen:
            if not free:
                raise ValueError(f"no colour left for {label!r}: draw fewer lines, or give it one in colours")
            name = free.pop(0)
        dashes = "--" if name == "SVD" else "-"
        marker = METHOD_MARKERS.get(name, "ov<>ph"[len(result) % 6])
        result[label] = METHOD_COLOURS.get(name, name), marker, dashes
    return result


def lines(
    series: Mapping[str, Sequence[Any]],
    xlabel: str = "",
    ylabel: str = "",
    logx: bool = False,
    logy: bool = False,
    colours: Mapping[str, str] | None = None,
    reference: Mapping[str, float] | None = None,
    height: float = 3.8,
) -> Figure:
    """Lines with a marker each, over dashed horizontals.

    Args:
        series: label -> (x, y) or (x, y, low, high); the second form draws a band. A label that is a method's name
            takes the method's colour and marker.
        xlabel, ylabel: what the axes show.
        logx, logy: logarithmic axes.
        colours: label -> a colour, or a method whose colour and marker to take.
        reference: label -> y of a dashed horizontal.
        height: of the figure in inches.

    Raises:
        ValueError: nothing to draw, x and y of different lengths, or a label in `colours` that is not drawn.
    """
    if not series:
        raise ValueError("no series to draw; give at least one")
    figure, axis = new_figure(height)
    for label, (colour, marker, dashes) in _appearance(list(series), colours).items():
        x, y, *band = (np.asarray(values, dtype=float) for values in series[label])
        if len({len(values) for values in (x, y, *band)}) > 1 or len(band) not in (0, 2):
            raise ValueError(f"series {label!r}: give (x, y) or (x, y, low, high), all of one length")
        every = max(1, len(x) // 12)  # markers tell lines apart; hundreds of them would hide the line
        axis.plot(x, y, dashes, color=colour, marker=marker or None, markevery=every, label=label, zorder=3)
        if band:
            axis.fill_between(x, *band, color=colour, alpha=0.18, lw=0)
    for (label, level), dashes in zip((reference or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axis.axhline(level, color=METHOD_COLOURS.get(label, METHOD_COLOURS["SVD"]), ls=dashes, lw=1.5, label=label)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        axis.set_xscale("log")
        _plain_log_ticks(axis)
    if logy:
        axis.set_yscale("log")
    if len(axis.get_lines()) > 1:
        entries = axis.get_legend_handles_labels()
        longest = max(map(len, entries[1]))
        columns = 4 if longest < 10 else 3 if longest < 15 else 2 if longest < 30 else 1
        figure.legend(*entries, loc="outside upper center", ncols=columns)
    return figure


def bars(
    values: Mapping[str, float | tuple[float, float]],
    xlabel: str = "",
    colours: Mapping[str, str] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Horizontal bars from top to bottom, their values beside them, over dashed verticals.

    Args:
        values: label -> value, or (value, spread): a whisker reaches from value - spread to value + spread.
        xlabel: what the bars measure.
        colours: label -> a colour, or a method whose colour to take. A label that is a method's name takes its own;
            all others share one grey.
        reference: label -> x of a dashed vertical.

    Raises:
        ValueError: nothing to draw, or a label in `colours` that is not drawn.
    """
    if not values:
        raise ValueError("no bars to draw; give at least one")
    grey = {label: "full" for label in values if label not in METHOD_COLOURS}
    looks = _appearance(list(values), grey | dict(colours or {}))
    pairs = [tuple(value) if isinstance(value, (tuple, list)) else (value, 0.0) for value in values.values()]
    figure, axis = new_figure(1.1 + 0.5 * len(values) + 0.35 * bool(reference))
    rows = np.arange(len(values))[::-1]
    axis.barh(rows, [value for value, _ in pairs], color=[looks[label][0] for label in values], height=0.62)
    for row, (value, spread) in zip(rows, pairs, strict=True):
        if spread:
            axis.plot([value - spread, value + spread], [row, row], "|-", color="black", lw=1.5, markersize=9)
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        end, side = value + spread if value >= 0 else value - spread, 1 if value >= 0 else -1
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "left" if side > 0 else "right"}
        place["bbox"] = {"fc": "white", "ec": "none", "pad": 1}  # above the lines of reference
        axis.annotate(text, (end, row), xytext=(6 * side, 0), fontsize=11, **place)
    for (label, level), dashes in zip((reference or {}).items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axis.axvline(level, color=METHOD_COLOURS.get(label, METHOD_COLOURS["SVD"]), ls=dashes, lw=1.5, label=label)
    axis.set(yticks=rows, yticklabels=list(values), xlabel=xlabel)
    low, high = axis.get_xlim()
    axis.set_xlim(low - 0.14 * (high - low) if low < 0 else low, high + 0.14 * (high - low))
    axis.grid(axis="y", visible=False)
    if reference:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
