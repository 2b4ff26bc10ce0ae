"""What the sub-vectors chose through training, from a log (VB-LoRA, Figures 3 to 5), and the same in motion.

A log is what `vbank run` writes with train.log_selections, or the file of one. A choice that came and went between two
recordings leaves no trace in it. The pictures are `Told`: ``print(figure)`` gives their numbers as a table. Vectors and
sub-vectors count from 0, as in the adapter's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vbank.figures.controls import Explore, asset
from vbank.figures.palette import METHOD_COLOURS, tint
from vbank.figures.selected import (
    MOST_PANELS,
    Integers,
    Log,
    Recorded,
    ever,
    exchanged,
    recorded,
    rows_to_draw,
    vectors_to_draw,
)
from vbank.figures.spoken import Told, table
from vbank.figures.told import SMALLEST, number_ticks, told_figure

Colour = tuple[float, float, float]

COLOUR = METHOD_COLOURS["VB-LoRA"]
NEVER, BEFORE, LAST = (1.0, 1.0, 1.0), tint(COLOUR, 0.4), tint(COLOUR, 1.0)
FIRST_ONLY, BOTH = tint("#8a8a8a", 1.0), tint("#c98500", 1.0)
ALT = (
    "Above, sub-vectors as columns and bank vectors as rows: dark where a sub-vector has a bank vector now, light where"
    " it had it before. Below, the share of choices exchanged since the recording before, by step, with a dot at the"
    " present step."
)


def footprints(
    logs: Log | Mapping[str, Log],
    periods: int = 1,
    rows: Any = None,
    vectors: Any = None,
) -> Told:
    """Which bank vectors each sub-vector has ever had, and which at the end (VB-LoRA, Figures 3 and 5).

    A choice that came and went between two recordings leaves no trace: compare logs that were recorded equally often.

    Args:
        logs: a log or its file; or title -> log, a panel each, such as one a value of k.
        periods: cut one log into this many panels of equally many steps.
        rows: the sub-vectors drawn, a slice or a list; None spreads 96 evenly over all.
        vectors: the bank vectors drawn, a slice or a list; None takes all, and spreads 256 over a larger bank.

    Returns:
        The drawing. Its table counts all sub-vectors: how many vectors one has tried, and the share of its choices
        that it exchanges from one recording to the next.

    Raises:
        TypeError: no log.
        ValueError: nothing recorded, logs of different models, a period without a recording, or more than a picture
            holds.
    """
    named = dict(logs) if isinstance(logs, Mapping) else {"": logs}
    read = {title: recorded(log, "footprints") for title, log in named.items()}
    if not read:
        raise ValueError("footprints: no log to draw; give at least one")
    if periods != 1:
        if len(read) > 1:
            raise ValueError(f"footprints: {periods} periods of {len(read)} logs; cut one log, or leave periods out")
        read = _periods(next(iter(read.values())), periods)
    if len(read) > MOST_PANELS:
        raise ValueError(f"footprints: {len(read)} panels do not fit a picture; give {MOST_PANELS} at most")
    count, h = _one_model(read)
    shown, drawn = rows_to_draw(rows, count, "footprints"), vectors_to_draw(vectors, h, "footprints")
    lines = [
        [title or "all", f"{len(one.steps)}", f"{ever(one.indices, h).sum(1).mean():.2f}", _exchanged(one)]
        for title, one in read.items()
    ]
    head = ["panel", "recordings", "tried by a sub-vector", "exchanged per recording"]
    columns = 1 if len(read) < 4 else 2
    high = -(-len(read) // columns)
    figure, axes = told_figure(
        0.6 + high * (_height(len(drawn)) if len(read) == 1 else 2.3),
        table(head, lines),
        nrows=high,
        ncols=columns,
        sharex=True,
        sharey=True,
    )
    for axis in axes.flat[len(read) :]:
        axis.set_axis_off()
    for axis, (title, one) in zip(axes.flat, read.items(), strict=False):
        past, now = (ever(part[:, shown], h)[:, drawn] for part in (one.indices, one.indices[-1:]))
        _paint(axis, np.where(now, 2, np.where(past, 1, 0)), (NEVER, BEFORE, LAST), shown, drawn)
        axis.set_title(title)
    _label(axes, shown, count, drawn, h)
    _legend(figure, {"chosen last": LAST, "chosen before": BEFORE, "never": NEVER})
    return figure


def _periods(one: Recorded, periods: int) -> dict[str, Recorded]:
    """One log cut into periods of equally many steps."""
    if isinstance(periods, bool) or not isinstance(periods, int) or periods < 1:
        raise ValueError(f"footprints: periods is {periods!r}; give a whole number of at least 1")
    edges = np.linspace(one.steps[0], one.steps[-1] + 1, periods + 1).round().astype(int)
    parts = {}
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        inside = (one.steps >= start) & (one.steps < end)
        title = f"steps {start:,} to {end - 1:,}"
        if not inside.any():
            raise ValueError(f"footprints: the log has no recording in {title}; give fewer periods than {periods}")
        parts[title] = Recorded(one.steps[inside], one.indices[inside], one.h)
    return parts


def _one_model(read: Mapping[str, Recorded]) -> tuple[int, int]:
    """N of all logs, and the largest h."""
    (first, one), *others = read.items()
    for title, other in others:
        if other.indices.shape[1] != one.indices.shape[1]:
            raise ValueError(
                f"footprints: {title!r} has {other.indices.shape[1]:,} sub-vectors and {first!r} has"
                f" {one.indices.shape[1]:,}, so their logs are of different models; draw each in a figure of its own"
            )
    return one.indices.shape[1], max(each.h for each in read.values())


def _exchanged(one: Recorded) -> str:
    return f"{exchanged(one.indices).mean():.1%}" if len(one.steps) > 1 else "-"


def first_and_last(log: Log, rows: Any = None, vectors: Any = None) -> Told:
    """What each sub-vector chose in the first recording, in the last, and in both (VB-LoRA, Figure 4).

    Args:
        log: a log or its file, whose first recording is the state before training, if it was made at step 0.
        rows: the sub-vectors drawn, a slice or a list; None spreads 96 evenly over all.
        vectors: the bank vectors drawn, a slice or a list; None takes all, and spreads 256 over a larger bank.

    Returns:
        The drawing. Its table counts all sub-vectors. Two random choices of k among h share k / h of their members.

    Raises:
        TypeError: no log.
        ValueError: fewer than two recordings, or more than a picture holds.
    """
    one = recorded(log, "first_and_last")
    if len(one.steps) < 2:
        raise ValueError("first_and_last: the log has one recording; record the start and the end at least")
    count, k = one.indices.shape[1:]
    begin, end = (ever(one.indices[t], one.h) for t in (0, -1))
    kept, choices = int((begin & end).sum()), count * k
    lines = [
        ["chosen in both", f"{kept:,}", f"{kept / choices:.1%}"],
        ["first only", f"{choices - kept:,}", f"{1 - kept / choices:.1%}"],
        ["last only", f"{choices - kept:,}", f"{1 - kept / choices:.1%}"],
        ["both, by chance", f"{choices * k / one.h:,.1f}", f"{k / one.h:.1%}"],
    ]
    words = table([f"steps {one.steps[0]:,} and {one.steps[-1]:,}", "choices", "share"], lines)
    shown, drawn = rows_to_draw(rows, count, "first_and_last"), vectors_to_draw(vectors, one.h, "first_and_last")
    figure, axes = told_figure(0.6 + _height(len(drawn)), words)
    begin, end = begin[shown][:, drawn], end[shown][:, drawn]
    _paint(axes[0, 0], begin + 2 * end, (NEVER, FIRST_ONLY, LAST, BOTH), shown, drawn)
    _label(axes, shown, count, drawn, one.h)
    _legend(figure, {"first only": FIRST_ONLY, "last only": LAST, "both": BOTH})
    return figure


def bank_animation(
    log: Log,
    frames: int = 20,
    rows: Any = None,
    vectors: Any = None,
    alt: str = ALT,
) -> Animation:
    """The footprints as they grow: a slider through the steps and a button that plays them; needs no kernel.

    Args:
        log: a log or its file, of at least two recordings.
        frames: pictures, spread evenly over the recordings; 2 to 24.
        rows: the sub-vectors drawn, a slice or a list; None spreads 96 evenly over all.
        vectors: the bank vectors drawn, a slice or a list; None takes all, and spreads 256 over a larger bank.
        alt: what the picture shows, for readers who don't see it.

    Returns:
        The control; ``print`` gives a table with a row a frame.

    Raises:
        TypeError: no log.
        ValueError: fewer than two recordings or frames, or more than a page or a picture holds.
    """
    one = recorded(log, "bank_animation")
    if len(one.steps) < 2 or frames < 2:
        raise ValueError(
            f"bank_animation: {len(one.steps)} recordings and frames={frames!r}; nothing moves with fewer than two"
        )
    count = one.indices.shape[1]
    shown, drawn = rows_to_draw(rows, count, "bank_animation"), vectors_to_draw(vectors, one.h, "bank_animation")
    moved = exchanged(one.indices)
    times = np.unique(np.linspace(0, len(one.steps) - 1, frames).round().astype(int)).tolist()
    at = {int(one.steps[t]): t for t in times}
    lines, past = [], np.zeros((count, one.h), dtype=bool)
    for t, chosen in enumerate(one.indices):
        np.put_along_axis(past, chosen, True, axis=1)
        if t in times:
            share = f"{moved[t - 1]:.1%}" if t else "-"
            used = len(np.unique(chosen))
            lines.append([f"{one.steps[t]:,}", f"{used:,}", f"{past.sum(1).mean():.2f}", share])
    words = table(["step", "vectors in use", "tried by a sub-vector", "exchanged per recording"], lines)

    def draw(step: int) -> Told:
        t = at[step]
        figure, axes = told_figure(2.4 + _height(len(drawn)), "", nrows=2, height_ratios=(_height(len(drawn)), 1.5))
        past, now = (ever(part[:, shown], one.h)[:, drawn] for part in (one.indices[: t + 1], one.indices[t : t + 1]))
        _paint(axes[0, 0], np.where(now, 2, np.where(past, 1, 0)), (NEVER, BEFORE, LAST), shown, drawn)
        _label(axes[:1], shown, count, drawn, one.h)
        axis = axes[1, 0]
        axis.plot(one.steps[1:], moved, color=COLOUR, lw=1.5)
        if t:
            axis.plot(step, moved[t - 1], "o", color="black", ms=8)
        axis.set(xlabel="step", ylabel="exchanged", ylim=(0, 1.1 * max(moved.max(), 1e-3)))
        axis.set_xlim(one.steps[0], one.steps[-1])
        axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        _legend(figure, {"chosen now": LAST, "chosen before": BEFORE, "never": NEVER})
        return figure

    return Animation(draw, alt, {}, {"step": list(at)}, words)


class Animation(Explore):
    """What `bank_animation` returns: a slider through the steps, a button that moves it, and the numbers as a table."""

    def __init__(self, draw: Any, alt: str, start: Mapping[str, Any], choices: Mapping[str, list[Any]], numbers: str):
        self.numbers = numbers
        super().__init__(draw, alt, start, choices)

    @cached_property
    def html(self) -> str:
        """The control for a page. Nothing moves before a click or a key on the button, and the next one stops it."""
        button = f'<style>{asset("play.css")}</style><button type="button" class="vbank-play">Play</button>'
        place = '<div class="vbank-sliders" hidden>'  # seen where scripts run
        control = super().html.replace(place, place + button, 1)
        return f"{control.removesuffix('</div>')}<script>{asset('play.js')}</script></div>"

    def widget(self) -> Any:
        """The control for a live notebook."""
        import ipywidgets

        slider, place = super().widget().children
        play = ipywidgets.Play(max=len(slider.options) - 1, interval=700)
        ipywidgets.link((play, "value"), (slider, "index"))
        return ipywidgets.VBox([play, slider, place])

    def __repr__(self) -> str:
        return self.numbers


def _height(vectors: int) -> float:
    """Inches of a panel that stands alone."""
    return min(1.8 + 0.03 * vectors, 5.0)


def _paint(axis: Axes, codes: Any, shades: tuple[Colour, ...], shown: Integers, drawn: Integers) -> None:
    """Cells (sub-vectors, vectors), numbers into `shades`, a column a sub-vector; a pixel a cell keeps files small."""
    image = (255 * np.array(shades)[codes.T]).round().astype(np.uint8)
    axis.imshow(image, aspect="auto", interpolation="none")
    axis.grid(visible=False)
    for ticks, numbers in ((axis.xaxis, shown), (axis.yaxis, drawn)):
        number_ticks(ticks, numbers)


def _label(axes: Any, shown: Integers, count: int, drawn: Integers, h: int) -> None:
    """Names of the axes, once a row and a column, and how many the picture leaves out."""
    across, up = (
        f"{what}{'' if len(some) == all_ else f' ({len(some)} of {all_:,})'}"
        for what, some, all_ in (("sub-vector", shown, count), ("bank vector", drawn, h))
    )
    for axis in axes[-1]:
        axis.set_xlabel(across)
    for axis in axes[:, 0]:
        axis.set_ylabel(up)


def _legend(figure: Told, shades: Mapping[str, Colour]) -> None:
    patches = [Patch(fc=shade, ec="#777777", label=name) for name, shade in shades.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=3, fontsize=SMALLEST)
