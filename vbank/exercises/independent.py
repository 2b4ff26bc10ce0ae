"""Checkers of the chapter *What independent measurements say*."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from vbank.exercises.checker import Wrong, require_number

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

        def near(value: float, given: float = given) -> bool:
            return math.isclose(given, value, rel_tol=0.03)

        right = lr * schedule_sum(steps, warmup, schedule)
        if near(right):
            continue
        if near(lr * steps):
            raise Wrong(f"You take the largest rate for every step {case}.")
        if near(lr * (schedule_sum(steps, warmup, schedule) - warmup * steps / 2)):
            raise Wrong(f"The steps of the warm-up are missing {case}; the rate rises there, and moves the number too.")
        if near(lr * (schedule_sum(steps, warmup, schedule) + warmup * steps / 2)):
            raise Wrong(f"During the warm-up the rate is not yet the largest {case}.")
        if near(right / steps):
            raise Wrong(f"That is the mean rate {case}; how far do all steps together go?")
        raise Wrong(f"The reach is too {'large' if given > right else 'small'} {case}.")
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

        def near(value: float, given: float = given) -> bool:
            return math.isclose(given, value, rel_tol=1e-6, abs_tol=1e-9)

        if near(right):
            continue
        if near(100 * right):
            raise Wrong(f"That is in percent {case}; return a share.")
        if near(1 - right):
            raise Wrong(f"That is the share kept, not the share lost {case}.")
        if near(fmean(f / g for f, g in zip(fallen, gap, strict=True))):
            raise Wrong(f"You average the shares of the seeds {case}: a seed with a small gap then counts for more.")
        means = fmean(high.values()), fmean(low.values()), fmean(variant.values())
        if near((means[0] - means[2]) / (means[0] - means[1])):
            raise Wrong(f"You compare different seeds {case}; take those that all three have.")
        raise Wrong(f"The share is too {'large' if given > right else 'small'} {case}.")
    return len(GAPS)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {"independent-1": reach, "independent-2": lost}
