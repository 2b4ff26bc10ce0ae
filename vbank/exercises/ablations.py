"""Checkers of the chapter *Ablations*."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, pvariance, stdev, variance
from typing import Any

from vbank.exercises.checker import Wrong, require_number, settle

Runs = dict[str, list[float]]
POOLS: tuple[Runs, ...] = (
    {"a": [80.0, 82.0, 84.0], "b": [79.0, 80.0]},
    {"default": [86.0, 86.5, 85.0, 88.0], "other": [80.0, 81.0, 84.0], "head": [61.0, 63.5, 60.0]},
    {"wide": [70.0, 90.0], "narrow": [84.0, 84.5, 84.0, 84.5, 84.2], "once": [83.0]},
    {"failed": [20.0, 81.0, 80.0], "x": [82.0, 81.0, 80.5], "edge": [72.0, 71.0, 70.5]},
)
PAIRS: tuple[tuple[dict[int, float], dict[int, float], float], ...] = (
    ({0: 82.0, 1: 83.0, 2: 85.0}, {0: 81.0, 1: 83.5, 2: 82.5}, 0.7),
    ({0: 82.0, 1: 80.0, 2: 90.0}, {1: 81.5, 0: 81.0}, 1.4),
    ({5: 60.0, 3: 70.0, 1: 71.0, 4: 69.0}, {4: 72.0, 3: 71.0, 9: 99.0, 1: 70.0, 7: 40.0}, 2.0),
    ({8: 50.0}, {8: 51.0}, 0.5),
)

same = partial(math.isclose, rel_tol=1e-6, abs_tol=1e-9)


def pooled(function: Callable[..., Any]) -> int:
    """ablations-1: the deviation over seeds, pooled over variants at most ten points below the best mean."""
    for runs in POOLS:
        answer = require_number(function({name: list(scores) for name, scores in runs.items()}), "The deviation")
        best = max(map(fmean, runs.values()))
        kept = [scores for scores in runs.values() if fmean(scores) >= best - 10]
        several = [scores for scores in kept if len(scores) > 1]
        size = sum(map(len, several))
        right = _pooled(several)
        mistakes = (
            (right**2, "That is the variance {}; return its root."),
            (_pooled([scores for scores in runs.values() if len(scores) > 1]), "Leave out what does not learn {}."),
            (fmean(map(stdev, several)), "That is the mean of the deviations {}; pool variances."),
            (math.sqrt(fmean(map(variance, several))), "Every variant has the same weight {}: weigh by n - 1."),
            (math.sqrt(sum(len(s) * variance(s) for s in several) / size), "Weigh by n - 1 {}, not by n."),
            (
                math.sqrt(sum(len(s) * pvariance(s) for s in several) / size),
                "Divide by the degrees of freedom {}: n - 1 a variant.",
            ),
            (
                stdev(value for scores in kept for value in scores),
                "All runs together {} spread by the variants' differences too; take each from its own variant's mean.",
            ),
        )
        settle(answer, right, mistakes, "Your deviation", f"for {runs}", same)
    return len(POOLS)


def _pooled(several: Sequence[Sequence[float]]) -> float:
    squares = sum((len(scores) - 1) * variance(scores) for scores in several)
    return math.sqrt(squares / sum(len(scores) - 1 for scores in several))


def compare(function: Callable[..., Any]) -> int:
    """ablations-2: d and 2 e of two variants from {seed: score} each and the pooled deviation."""
    for one, other, s in PAIRS:
        answer = function(dict(one), dict(other), s)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong(f"Return a pair, d and 2 e; yours is {str(answer)[:60]}.")
        d, margin = require_number(answer[0], "d"), require_number(answer[1], "2 e")
        shared, case = sorted(one.keys() & other.keys()), f"for {one}, {other} and s = {s}"
        n = len(shared)
        right = fmean(one[seed] - other[seed] for seed in shared)
        of_all = fmean(one.values()) - fmean(other.values())
        mistakes = [
            (-right, "d has the wrong sign {}: the first minus the second."),
            (of_all, "You take means over all seeds {}; compare the seeds that both have."),
            (abs(right), "d keeps its sign {}."),
        ]
        settle(d, right, mistakes, "d", case, same)
        e = s * math.sqrt(2 / n)
        mistakes = [
            (e, "That is e {}; return 2 e."),
            (2 * s / math.sqrt(n), "Both means have an error {}: their difference has sqrt(2) times that of one."),
            (2 * s * math.sqrt(2), "More seeds make the error smaller {}."),
            (2 * s * math.sqrt(2 / len(one)), "n is the number of seeds that both have {}."),
            (2 * s * math.sqrt(2 / len(other)), "n is the number of seeds that both have {}."),
            (4 * s**2 * 2 / n, "That is the square of 2 e {}."),
        ]
        settle(margin, 2 * e, mistakes, "2 e", case, same)
    return len(PAIRS)


EXERCISES = {"ablations-1": pooled, "ablations-2": compare}
