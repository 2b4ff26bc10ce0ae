"""Drawings of the chapter *Ablations*: how wide the seeds are, variants beside each other, bytes, and rates.

All are `Told`: ``print(figure)`` gives their numbers as a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, sqrt
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vbank.figures.charts import readable_bytes
from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, colour_of, label_rows, tint
from vbank.figures.spoken import Told, table
from vbank.figures.told import SMALLEST, told_figure

BAND, GREY, BLACK = "#e4e4e4", METHOD_COLOURS["full"], METHOD_COLOURS["SVD"]
OFF = "◂"  # a run that lies left of the panel


def seeds(panels: Mapping[str, Sequence[Sequence[float]]], deviations: Mapping[str, float], method: str) -> Told:
    """How far runs lie from the mean of their own variant, as heaps of dots, a panel a testbed.

    The band reaches one standard deviation to both sides. Dashes stand at 2 e for the most frequent number of seeds:
    what two variants must differ by before the difference counts.

    Args:
        panels: title -> the runs of each variant, in points.
        deviations: title -> standard deviation in points.
        method: gives the colour.

    Raises:
        ValueError: nothing to draw.
    """
    if not panels or not all(panels.values()):
        raise ValueError("seeds: nothing to draw; give each panel at least one variant")
    rows, drawn = [], {}
    for title, variants in panels.items():
        away = [value - fmean(runs) for runs in variants if len(runs) > 1 for value in runs]
        counts = [len(runs) for runs in variants]
        n = max(sorted(set(counts)), key=counts.count)
        margin = 2 * deviations[title] * sqrt(2 / n)
        drawn[title] = away, margin
        largest = max(map(abs, away), default=0.0)
        row = [title, str(len(variants)), str(len(away)), f"{deviations[title]:.2f}", f"{largest:.2f}"]
        rows.append([*row, f"{margin:.2f}", str(n)])
    head = ["testbed", "variants", "runs", "deviation", "furthest", "2 e", "seeds"]
    figure, axes = told_figure(1.2 + 2.0 * len(panels), table(head, rows), nrows=len(panels), sharex=True)
    width = max([abs(value) for away, _ in drawn.values() for value in away] + [m for _, m in drawn.values()])
    step = width / 22
    for axis, (title, (away, margin)) in zip(axes[:, 0], drawn.items(), strict=True):
        axis.axvspan(-deviations[title], deviations[title], color=BAND, lw=0)
        for end in (-margin, margin):
            axis.axvline(end, color=BLACK, ls="--", lw=1.3)
        heaps: dict[int, int] = {}
        dots = []
        for value in away:
            place = floor(value / step + 0.5)
            heaps[place] = heaps.get(place, 0) + 1
            dots.append((place * step, heaps[place]))
        axis.plot(*zip(*dots, strict=True), "o", color=colour_of(method), markersize=5)
        highest = max(heaps.values(), default=1)
        axis.set(ylim=(0.2, highest + 1.4), yticks=[])
        axis.set_title(title, loc="left", fontsize=SMALLEST)
        axis.grid(visible=False)
    axes[-1, 0].set_xlabel("points from the mean of the run's own variant")
    band = Patch(color=BAND, label="one deviation")
    dashes = Line2D([], [], color=BLACK, ls="--", lw=1.3, label="2 e: a difference that counts")
    figure.legend(handles=[band, dashes], loc="outside upper center", ncols=2)
    return figure


def compared(
    groups: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    reference: str,
    margins: Mapping[str, float],
    method: str,
    printed: Mapping[str, tuple[float, float | None]] | None = None,
    paper: str = "paper",
    span: float = 15.0,
) -> Told:
    """Variants as rows, a panel a testbed: a dot a run, a bar at the mean, a band of 2 e around the reference.

    A bar outside the band differs from the reference by more than the seeds explain. What lies far left of the
    reference is drawn at the edge, with its mean beside it.

    Args:
        groups: heading -> label -> title of a panel -> its runs in points; a label without runs there stays empty.
        reference: the label that all others are compared with.
        margins: title -> 2 e in points; these are the panels, from left to right. One without runs says so.
        method: gives the colour and the marker.
        printed: label -> value and spread of the paper's table, drawn hollow in a panel of its own at the left.
        paper: title of that panel.
        span: points left of the reference that a panel shows.

    Raises:
        ValueError: nothing to draw, or the reference is no label.
    """
    places = [(heading, label) for heading, group in groups.items() for label in group]
    variants = {label: runs for group in groups.values() for label, runs in group.items()}
    if not places or reference not in variants:
        raise ValueError(f"compared: the reference {reference!r} is none of: {', '.join(variants) or 'no variant'}")
    titles = [*([paper] if printed else []), *margins]
    rows = []
    for _, label in places:
        value, spread = (printed or {}).get(label, (None, None))
        cells = [label] + ([] if not printed else ["" if value is None else _with(value, spread)])
        rows.append(cells + [_summed(variants[label].get(title, ())) for title in margins])
    figure, axes = told_figure(
        1.3 + 0.34 * (len(places) + len(groups)), table(["variant", *titles], rows), ncols=len(titles), sharey=True
    )
    heights = label_rows(axes[0, 0], places, "points")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("points")
        axis.set_title(title, loc="left", fontsize=SMALLEST)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(labelsize=SMALLEST)
        axis.locator_params(axis="x", nbins=3)
        for height, (_, label) in zip(heights, places, strict=True):
            if printed and title == paper:
                if label in printed:
                    value, spread = printed[label]
                    kind = {"color": colour_of(method), "marker": METHOD_MARKERS[method] or "o", "mfc": "white"}
                    axis.errorbar(value, height, xerr=spread, lw=1.5, capsize=2, markersize=8, **kind)
                continue
            _runs(axis, height, variants[label].get(title, ()), variants[reference].get(title, ()), method, span)
        if title in margins and not any(runs.get(title) for runs in variants.values()):
            axis.set(xticks=[], xlabel="not run")
        middle = variants[reference].get(title, ())
        if middle and title in margins:
            axis.axvspan(fmean(middle) - margins[title], fmean(middle) + margins[title], color=BAND, lw=0, zorder=0)
    band = Patch(color=BAND, label=f"{reference} ± 2 e")
    bar = Line2D([], [], color=BLACK, ls="", marker="|", markersize=12, mew=2, label="mean")
    figure.legend(handles=[band, bar], loc="outside upper center", ncols=2)
    return figure


def _runs(axis: Axes, height: int, runs: Sequence[float], middle: Sequence[float], method: str, span: float) -> None:
    """One row of a panel."""
    edge = fmean(middle) - span if middle else float("-inf")
    inside = [value for value in runs if value >= edge]
    axis.plot(inside, [height] * len(inside), "o", color=colour_of(method), alpha=0.55, markersize=6)
    mean = fmean(runs) if runs else edge
    if runs and mean >= edge:
        axis.plot([mean] * 2, [height - 0.36, height + 0.36], color="black", lw=2)
    if len(inside) < len(runs):
        text, at_edge = f"{OFF} {mean:.0f}" if mean < edge else OFF, axis.get_yaxis_transform()
        axis.text(0.01, height, text, transform=at_edge, va="center", fontsize=SMALLEST)


def by_bytes(
    panels: Mapping[str, Mapping[str, Sequence[tuple[str, int, Sequence[float]]]]], margins: Mapping[str, float]
) -> Told:
    """Points against stored bytes, a panel a testbed, a line a choice that is varied.

    Args:
        panels: title -> choice -> points in order: label, bytes stored, runs in points. A whisker is half of 2 e to
            both sides, so that whiskers of one panel that do not meet differ by more than 2 e.
        margins: title -> 2 e in points.

    Raises:
        ValueError: nothing to draw, or more than two choices.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    if not names or len(names) > 2:
        raise ValueError(f"by_bytes: draws one choice or two, not {len(names)}")
    rows = [
        [f"{title}: {name}, {label}", f"{size:,}", _summed(runs)]
        for title, panel in panels.items()
        for name, series in panel.items()
        for label, size, runs in series
    ]
    figure, axes = told_figure(0.9 + 2.9 * len(panels), table(["variant", "bytes", "points"], rows), nrows=len(panels))
    looks = dict(zip(names, ((METHOD_COLOURS["VB-LoRA"], "*", -1), (METHOD_COLOURS["LoRA"], "o", 1)), strict=False))
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for name, series in panel.items():
            colour, marker, side = looks[name]
            sizes, means = [size for _, size, _ in series], [fmean(runs) for _, _, runs in series]
            half = margins[title] / 2
            axis.errorbar(sizes, means, yerr=half, color=colour, marker=marker, markersize=9, capsize=3, label=name)
            for (label, size, _), mean in zip(series, means, strict=True):
                above = {
                    "xytext": (0, -side * 9 - side * 8),
                    "textcoords": "offset points",
                    "ha": "center",
                    "va": "center",
                }
                axis.annotate(label, (size, mean - side * half), color=colour, fontsize=SMALLEST, **above)
        axis.set(xscale="log", ylabel="points")
        axis.margins(x=0.09, y=0.2)
        axis.set_title(title, loc="left", fontsize=SMALLEST)
        _byte_ticks(axis)
    axes[-1, 0].set_xlabel("bytes stored, head left out")
    handles = [Line2D([], [], color=looks[name][0], marker=looks[name][1], label=name) for name in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _byte_ticks(axis: Axes) -> None:
    low, high = axis.get_xlim()
    leading = (1, 2, 5) if high > 4 * low else range(1, 10)
    inside = [m * 10.0**e for e in range(2, 12) for m in leading if low <= m * 10.0**e <= high]
    axis.set_xticks(inside, [readable_bytes(tick) for tick in inside])
    axis.set_xticks([], minor=True)
    axis.set_xlim(low, high)


def rate_grid(grid: Mapping[str, Mapping[float, Sequence[float]]], method: str, xlabel: str = "learning rate") -> Told:
    """Mean score by variant and learning rate: a row a variant, darker is better, the best of each row framed.

    Args:
        grid: label -> learning rate -> runs in points; a pair without runs stays white.
        method: gives the colour.
        xlabel: below the columns.

    Raises:
        ValueError: no runs.
    """
    means = {label: {rate: fmean(runs) for rate, runs in row.items() if runs} for label, row in grid.items()}
    values = [value for row in means.values() for value in row.values()]
    if not values:
        raise ValueError("rate_grid: no runs; give at least one")
    rates = sorted({rate for row in grid.values() for rate in row})
    cells = [[label, *(_summed(row.get(rate, ())) for rate in rates)] for label, row in grid.items()]
    figure, axes = told_figure(1.1 + 0.52 * len(grid), table(["variant", *(f"{rate:g}" for rate in rates)], cells))
    axis, top = axes[0, 0], max(values)
    for height, row in enumerate(means.values()):
        best = max(row, key=row.__getitem__, default=None)
        for place, rate in enumerate(rates):
            if rate not in row:
                continue
            strength = 0.6 * max(0.0, 1 - (top - row[rate]) / 20)  # white from 20 points below the best on
            axis.fill_between(
                [place - 0.5, place + 0.5], height - 0.5, height + 0.5, color=tint(colour_of(method), strength)
            )
            axis.text(place, height, f"{row[rate]:.1f}", ha="center", va="center", fontsize=SMALLEST + 1)
            if rate == best:
                x, y = [place - 0.46, place + 0.46], [height - 0.44, height + 0.44]
                axis.plot([*x, *x[::-1], x[0]], [y[0], y[0], y[1], y[1], y[0]], color="black", lw=2.5)
    axis.set(xticks=range(len(rates)), xticklabels=[f"{rate:g}" for rate in rates], xlabel=xlabel)
    axis.set(
        yticks=range(len(grid)), yticklabels=list(grid), ylim=(len(grid) - 0.5, -0.5), xlim=(-0.5, len(rates) - 0.5)
    )
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _with(value: float, spread: float | None) -> str:
    return f"{value:.1f}" if spread is None else f"{value:.1f} ±{spread:.1f}"


def _summed(runs: Sequence[float]) -> str:
    """Mean, sample deviation and number of runs."""
    if not runs:
        return "not run"
    return _with(fmean(runs), stdev(runs) if len(runs) > 1 else None) + f" ({len(runs)})"
