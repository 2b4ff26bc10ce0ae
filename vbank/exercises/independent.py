"""Checkers of the chapter *What independent measurements say*."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from vbank.exercises.checker import require_number, settle

SCHEDULES = ("constant", "linear", "cosine")


def schedule_sum(steps: int, warmup: float, schedule: str) -> float:
    """Sum of a schedule's factors: a rise over the share `warmup`, then 1, a line or half a cosine down to 0."""
    rise = warmup * steps
    fall = steps - rise
    return rise / 2 + (fall if schedule == "constant" else fall / 2)


def reach(function: Callable[..., Any]) -> int:
    """independent-1: lr times the sum of the schedule's factors; within 3 %, so that any way to count a step passes."""
    cases = [(1e-4, 5000, 0.1, "cosine"), (1e-2, 189, 0.06, "linear"), (3e-3, 2000, 0.25, "constant")]
    cases += [(0.5, 400, 0.0, "constant"), (0.02, 1000, 0.5, "linear"), (1e-3, 640, 0.25, "cosine")]
    for lr, steps, warmup, schedule in cases:
        given = require_number(function(lr, steps, warmup, schedule), "The reach")
        case = f"for lr {lr:g}, {steps:,} steps, warm-up {warmup:g}, schedule {schedule!r}"
        right, rise = lr * schedule_sum(steps, warmup, schedule), lr * warmup * steps / 2
        mistakes = (
            (lr * steps, "You take the largest rate for every step {}."),
            (right - rise, "The steps of the warm-up are missing {}; the rate rises there, and moves the number too."),
            (right + rise, "During the warm-up the rate is not yet the largest {}."),
            (right / steps, "That is the mean rate {}; how far do all steps together go?"),
        )
        settle(given, right, mistakes, "The reach", case, partial(math.isclose, rel_tol=0.03))
    return len(cases)


Runs = dict[int, float]
GAPS: tuple[tuple[Runs, Runs, Runs], ...] = (
    ({0: 83.0, 1: 84.0, 2: 82.0}, {0: 70.0, 1: 71.5, 2: 70.5}, {0: 80.0, 1: 79.0, 2: 81.0}),
    ({0: 83.0, 1: 84.0, 2: 82.0}, {0: 70.0, 1: 78.0, 2: 62.0}, {0: 70.0, 1: 83.0, 2: 72.0}),
    ({0: 60.0, 1: 62.0, 2: 61.0, 3: 90.0}, {0: 40.0, 1: 44.0, 2: 41.0}, {1: 45.0, 2: 41.5, 4: 99.0}),
    ({3: 50.0, 7: 52.0}, {7: 20.0, 3: 21.0}, {3: 55.0, 7: 53.0}),
    ({0: 50.0, 5: 40.0}, {5: 20.0, 1: 10.0}, {1: 55.0, 5: 23.0}),
)


def lost(function: Callable[..., Any]) -> int:
    """independent-2: mean loss over mean gap, over the seeds that all three have."""
    for high, low, variant in GAPS:
        answer = function(dict(high), dict(low), dict(variant))
        case = f"for high {high}, low {low}, variant {variant}"
        seeds = sorted(high.keys() & low.keys() & variant.keys())
        given = require_number(answer, "The share")
        gap = [high[s] - low[s] for s in seeds]
        fallen = [high[s] - variant[s] for s in seeds]
        right = fmean(fallen) / fmean(gap)
        tops, floors, others = fmean(high.values()), fmean(low.values()), fmean(variant.values())
        mistakes = (
            (100 * right, "That is in percent {}; return a share."),
            (1 - right, "That is the share kept, not the share lost {}."),
            (
                fmean(f / g for f, g in zip(fallen, gap, strict=True)),
                "You average the shares of the seeds {}: a seed with a small gap then counts for more.",
            ),
            ((tops - others) / (tops - floors), "You compare different seeds {}; take those that all three have."),
        )
        settle(given, right, mistakes, "The share", case, partial(math.isclose, rel_tol=1e-6, abs_tol=1e-9))
    return len(GAPS)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {"independent-1": reach, "independent-2": lost}
