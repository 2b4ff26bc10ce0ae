"""Figures in words: what a figure shows, read off its axes, for terminals and for readers who cannot see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (points, 2)

MOST_POINTS = 9  # of a line, first and last among them
MOST_LINES = 16  # of one panel that have no name
MOST_CELLS = 12  # rows and columns up to which a coloured matrix is read out


class Told(Figure):
    """A figure that says what it shows: ``print(figure)`` does, and so does a notebook without pictures.

    `numbers` is what to say; empty, it is read off the axes.
    """

    numbers: str = ""

    def __repr__(self) -> str:
        shown = "\n\n".join(filter(None, map(_panel, self.axes)))
        return self.numbers or (f"Figure: {shown}" if shown else super().__repr__())

    __str__ = __repr__


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of equal columns, the first set to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *rest in (head, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def _panel(axis: Axes) -> str:
    """One pair of axes: its title, what its axes measure, and everything drawn in it."""
    if axis.get_label() == "<colorbar>":
        return ""
    title = [_plain(axis.get_title())] if axis.get_title() else []
    axes = []
    for name, each in (("across", axis.xaxis), ("up", axis.yaxis)):
        if axis.axison and (label := _plain(each.get_label_text())):
            axes.append(f"{name}: {label}{', logarithmic' if each.get_scale() == 'log' else ''}")
    parts = ["; ".join(axes), _images(axis), _bars(axis), _lines(axis), _texts(axis)]
    shown = [part for part in parts if part]
    return "\n".join(title + shown) if shown else ""


def _plain(text: str) -> str:
    """A label without its formula's marks, on one line."""
    text = re.sub(r"\\(?:mathbf|mathrm|mathit|text|operatorname)\s*", "", text).replace(r"\Delta ", "Δ")
    return " ".join(re.sub(r"\\([A-Za-z]+)", r"\1", re.sub(r"[${}]", "", text)).split())


def _number(value: float) -> str:
    if abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _speaker(axis: Any) -> Callable[[float], str]:
    """How an axis says a place: by the name that it writes there, else as a number."""
    formatter, named = axis.get_major_formatter(), {}
    if isinstance(formatter, FixedFormatter):
        names = [_plain(name) for name in formatter.seq]
        if any(name and not re.fullmatch(r"[−\d.,% kMGTPB]+", name) for name in names):
            named = dict(zip(np.round(axis.get_ticklocs(), 6), names, strict=False))
    elif isinstance(formatter, FuncFormatter):
        return lambda place: _plain(formatter(place, None)) or _number(place)

    def say(place: float) -> str:
        if not named:
            return _number(place)
        nearest = min(named, key=lambda tick: abs(tick - place))
        return named[nearest] if abs(nearest - place) < 0.5 else _number(place)

    return say


def _bars(axis: Axes) -> str:
    """Bars as a table: a row a place, a column a series."""
    columns: dict[str, dict[str, str]] = {}
    for container in axis.containers:
        bars: list[Any] = [patch for patch in container.get_children() if hasattr(patch, "get_width")]
        flat = getattr(container, "orientation", "vertical") == "horizontal"
        say = _speaker(axis.yaxis if flat else axis.xaxis)
        label = _plain(str(container.get_label()))
        column = columns.setdefault("" if label.startswith("_") else label, {})
        for bar in bars:
            middle = bar.get_y() + bar.get_height() / 2 if flat else bar.get_x() + bar.get_width() / 2
            column[say(middle)] = _number(bar.get_width() if flat else bar.get_height())
    columns = {label: column for label, column in columns.items() if column}
    if not columns:
        return ""
    places = list(dict.fromkeys(place for column in columns.values() for place in column))
    return table(["", *columns], [[place, *(column.get(place, "") for column in columns.values())] for place in places])


def _lines(axis: Axes) -> str:
    """Lines with a name as tables, lines without as points; levels as what they stand at."""
    if not axis.axison:
        return ""
    x_of, y_of = _speaker(axis.xaxis), _speaker(axis.yaxis)
    levels: list[str] = []
    named: list[tuple[str, Points]] = []
    others: list[Points] = []
    for line in axis.get_lines():
        label, points = _plain(str(line.get_label())), np.asarray(line.get_xydata(), dtype=float)
        own = not label.startswith("_")
        across, up = line.get_transform().contains_branch_seperately(axis.transData)
        if across and up:
            named += [(label, points)] if own else []
            others += [] if own else [points]
        else:  # from edge to edge
            level = x_of(points[0, 0]) if across else y_of(points[0, 1])
            levels.append(f"{label}: {level}" if own else f"line at {level}")
    said = []
    for group in _same_places(named):
        places = group[0][1][:, 0]
        rows = [[x_of(places[i]), *(y_of(points[i, 1]) for _, points in group)] for i in _some(len(places))]
        said.append(table([_plain(axis.get_xlabel()), *(label for label, _ in group)], rows))
    for points in others[:MOST_LINES]:
        said.append(" ".join(f"({x_of(points[i, 0])}, {y_of(points[i, 1])})" for i in _some(len(points))))
    if len(others) > MOST_LINES:
        said.append(f"and {len(others) - MOST_LINES} more")
    return "\n".join(said + levels)


def _same_places(lines: list[tuple[str, Points]]) -> list[list[tuple[str, Points]]]:
    """Lines that share their places across stand in one table."""
    groups: list[list[tuple[str, Points]]] = []
    for label, points in lines:
        for group in groups:
            if np.array_equal(group[0][1][:, 0], points[:, 0]):
                group.append((label, points))
                break
        else:
            groups.append([(label, points)])
    return groups


def _some(length: int) -> list[int]:
    if length <= MOST_POINTS:
        return list(range(length))
    return sorted({round(i * (length - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})


def _images(axis: Axes) -> str:
    """Matrices shown in colours: small ones number by number, others by size and range."""
    said = []
    for image in axis.get_images():
        values = np.asarray(image.get_array())
        if values.ndim != 2:
            continue  # cells of a drawing: their captions tell
        rows, columns = values.shape
        if max(rows, columns) <= MOST_CELLS:
            said.append("\n".join(" ".join(f"{_number(float(v)):>8}" for v in row) for row in values))
        else:
            low, high = _number(float(values.min())), _number(float(values.max()))
            said.append(f"{rows} x {columns} values from {low} to {high}")
    return "\n".join(said)


def _texts(axis: Axes) -> str:
    """Words written into the drawing, each once and in the order drawn; bars tell their own numbers."""
    words = [_plain(text.get_text()) for text in axis.texts]
    if axis.axison:
        words = [word for word in words if re.search(r"[^\W\d_]", word) and not axis.containers]
    return "; ".join(filter(None, dict.fromkeys(words)))
