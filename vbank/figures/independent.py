"""Drawings of the chapter *What independent measurements say*."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from vbank.figures.charts import readable_bytes
from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, label_rows, style, tint
from vbank.figures.spoken import Told, table
from vbank.figures.told import SMALLEST, told_figure

OTHER, OTHER_MARKER = "#767676", "h"  # methods that are not the book's
WRAP_QUESTION, WRAP_ANSWER, WRAP_LAST = 25, 27, 60  # characters of a line


@dataclass(frozen=True)
class Point:
    """One method at one setting, as measured by others.

    Args:
        label: for the numbers as text.
        method: key of METHOD_COLOURS; "" for a method that is not the book's.
        score, error: in percent, and its standard error.
        bytes: of the adapter's file as published.
        compact: bytes of the smallest file that holds the same adapter; None if that is the same file.
        seconds: of training.
        repeats: other scores of the same settings, in percent.
    """

    label: str
    method: str
    score: float
    error: float
    bytes: float
    seconds: float
    compact: float | None = None
    repeats: tuple[float, ...] = ()


def quality_by_cost(points: Sequence[Point], ylabel: str) -> Told:
    """Score against the size of the file, and against the time of training; a bar is one standard error either way.

    Dashes are repetitions. Where the same adapter fits a smaller file, a dotted line leads to a hollow mark there.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("no points to draw; give at least one")
    style()
    figure = Told(figsize=(6.5, 7.6), layout="constrained")
    by_bytes, by_seconds = figure.subplots(2, 1)
    handles: dict[str, Line2D] = {}
    for point in points:
        colour = METHOD_COLOURS.get(point.method, OTHER)
        marker = METHOD_MARKERS.get(point.method, OTHER_MARKER)
        mark: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "ms": 13 if marker == "*" else 9}
        for axis, x in ((by_bytes, point.bytes), (by_seconds, point.seconds)):
            axis.errorbar([x], [point.score], yerr=point.error, elinewidth=1.6, capsize=3, **mark)
            if point.repeats:
                axis.plot([x] * len(point.repeats), point.repeats, "_", color=colour, ms=12, alpha=0.8)
        if point.compact is not None:
            by_bytes.plot([point.compact, point.bytes], [point.score] * 2, ":", color=colour, lw=1.5)
            by_bytes.plot([point.compact], [point.score], mfc="white", mew=1.6, **mark)
        handles.setdefault(point.method or "others", Line2D([], [], **mark))
    by_bytes.set(xscale="log", xlabel="bytes of the adapter's file")
    ticks = [10.0**power for power in range(5, 11)]
    low, high = by_bytes.get_xlim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    by_bytes.set_xticks(ticks, [readable_bytes(tick) for tick in ticks])
    by_seconds.set(xlabel="seconds of training, tests on the way included")
    for axis in (by_bytes, by_seconds):
        axis.set_ylabel(ylabel)
        axis.tick_params(labelsize=SMALLEST)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=SMALLEST)
    head = ["", "score", "error", "file", "compact", "seconds", "repeats"]
    rows = [
        [
            point.label,
            f"{point.score:.1f}",
            f"{point.error:.1f}",
            readable_bytes(point.bytes),
            "" if point.compact is None else readable_bytes(point.compact),
            f"{point.seconds:,.0f}",
            " ".join(f"{each:.1f}" for each in point.repeats),
        ]
        for point in points
    ]
    figure.numbers = table(head, rows)
    return figure


def reach(groups: Mapping[str, Mapping[str, tuple[float, float]]], starts: Mapping[str, float]) -> Told:
    """How far AdamW can move a number in a whole training: the sum of its rates.

    Args:
        groups: heading -> label -> reach of the bank's numbers and of the logits.
        starts: label -> size of a number at the start, drawn as a vertical line.

    Raises:
        ValueError: nothing to draw, or a reach that is not above zero.
    """
    rows = [(group, label) for group, lines in groups.items() for label in lines]
    if not rows:
        raise ValueError("nothing to draw; give at least one group with one line")
    numbers = [[f"{group}: {label}", *(f"{each:.4f}" for each in groups[group][label])] for group, label in rows]
    said = table(["how far a number can move", "bank", "logits"], numbers)
    figure, ((axis,),) = told_figure(1.7 + 0.32 * (len(rows) + len(groups)), said)
    heights = label_rows(axis, rows, "how far a number can move")
    colour = METHOD_COLOURS["VB-LoRA"]
    handles: dict[str, Line2D] = {}
    for height, (group, label) in zip(heights, rows, strict=True):
        bank, logits = groups[group][label]
        if min(bank, logits) <= 0:
            raise ValueError(f"{label!r}: a reach of {min(bank, logits)}; it must be above zero")
        axis.plot([bank, logits], [height] * 2, color=tint(colour, 0.35), lw=2)
        (handles["bank"],) = axis.plot([bank], [height], "s", color=colour, ms=8)
        (handles["logits"],) = axis.plot([logits], [height], "o", color=colour, mfc="white", mew=1.8, ms=9)
    for (name, start), dashes in zip(starts.items(), ("--", ":", "-."), strict=False):
        handles[name] = axis.axvline(start, color="#000000", ls=dashes, lw=1.3, zorder=0)
    axis.set_xscale("log")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, fontsize=SMALLEST)
    return figure


@dataclass(frozen=True)
class Step:
    """One question of a guide, asked from the top.

    Args:
        question: to be answered by yes or no; yes ends the walk.
        answer: what to take then.
        sure: how sure that is, in a few words.
        method: whose colour the answer has; "" for none.
    """

    question: str
    answer: str
    sure: str
    method: str = ""


def guide(steps: Sequence[Step], otherwise: Step) -> Told:
    """A decision list: questions one below the other, the first yes leads to the right, no leads down.

    Printed, it is the same list as text.

    Args:
        steps: at least one.
        otherwise: where every answer was no; its question is not shown.

    Raises:
        ValueError: no step.
    """
    if not steps:
        raise ValueError("a guide needs at least one step")
    style()
    wrapped = [(textwrap.wrap(step.question, WRAP_QUESTION), _answer(step)) for step in steps]
    last = _answer(otherwise, WRAP_LAST)
    line, gap = 0.235, 0.42  # inches
    sizes = [max(len(question), len(answer)) * line + 0.22 for question, answer in wrapped]
    height = sum(sizes) + gap * len(sizes) + len(last) * line + 0.3
    figure = Told(figsize=(6.5, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 6.5), ylim=(height, 0))
    axis.set_axis_off()
    left, right, wide = 0.08, 3.42, 3.0
    top = 0.08
    for step, (question, answer), size in zip(steps, wrapped, sizes, strict=True):
        _box(axis, left, top, 2.65, size, question, "#f2f2f2", "#5f5f5f", 0)
        _box(axis, right, top, wide, size, answer, *_colours(step.method), 1)
        middle = top + size / 2
        axis.annotate("", (right, middle), (left + 2.65, middle), arrowprops={"arrowstyle": "-|>", "color": "#404040"})
        axis.text(left + 2.65 + 0.3, middle - 0.09, "yes", ha="center", va="bottom", fontsize=SMALLEST)
        below = top + size + gap
        axis.annotate("", (1.4, below), (1.4, top + size), arrowprops={"arrowstyle": "-|>", "color": "#404040"})
        axis.text(1.5, top + size + gap / 2, "no", ha="left", va="center", fontsize=SMALLEST)
        top = below
    _box(axis, left, top, right + wide - left, len(last) * line + 0.2, last, *_colours(otherwise.method), 1)
    said = [f"{i}. {s.question} Yes: {s.answer} [{s.sure}]" for i, s in enumerate(steps, start=1)]
    said.append(f"{len(steps) + 1}. Otherwise: {otherwise.answer} [{otherwise.sure}]")
    figure.numbers = "\n".join(textwrap.fill(each, 78, subsequent_indent="   ") for each in said)
    return figure


def _answer(step: Step, width: int = WRAP_ANSWER) -> list[str]:
    """The lines of an answer, and below them how sure it is."""
    return textwrap.wrap(step.answer, width) + textwrap.wrap(f"({step.sure})", width + 2)


def _colours(method: str) -> tuple[Any, Any]:
    colour = METHOD_COLOURS.get(method, OTHER)
    return tint(colour, 0.12), colour


def _box(
    axis: Any, x: float, y: float, width: float, height: float, lines: Sequence[str], face: Any, edge: Any, bold: int
) -> None:
    """A box with lines of text, of which the first `bold` are bold."""
    axis.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.08", fc=face, ec=edge, lw=1.4))
    pitch = 0.235
    first = y + height / 2 - pitch * (len(lines) - 1) / 2
    for place, text in enumerate(lines):
        weight = "bold" if place < bold else "normal"
        axis.text(x + 0.12, first + place * pitch, text, va="center", fontsize=SMALLEST, fontweight=weight)
