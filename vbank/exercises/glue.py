"""Checkers of the chapter *GLUE with RoBERTa*."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean, median
from typing import Any

import torch

from vbank.exercises.checker import Wrong, require_number, settle


def matthews(function: Callable[..., Any]) -> int:
    """glue-1: Matthews correlation of two lists of zeros and ones, 0 where one of them is constant."""
    generator = torch.Generator().manual_seed(29)
    cases: list[tuple[list[int], list[int]]] = [([1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0]), ([0, 1, 1, 0], [1, 0, 0, 1])]
    for size, share in ((30, 0.7), (200, 0.9), (57, 0.5)):
        label = (torch.rand(size, generator=generator) < share).int()
        wrong = (torch.rand(size, generator=generator) < 0.3).int()
        cases.append(((label ^ wrong).tolist(), label.tolist()))
    cases += [([1] * 6, [1, 0, 1, 1, 0, 1]), ([0, 1, 0, 1], [1, 1, 1, 1])]
    cases += [([0] * 5, [1, 0, 0, 1, 0]), ([1, 0, 1], [0] * 3), ([1] * 4, [1] * 4), ([0] * 3, [0] * 3), ([1], [0])]
    for predicted, label in cases:  # type: ignore[assignment]
        _compare_matthews(function, list(predicted), list(label))
    return len(cases)


def _compare_matthews(function: Callable[..., Any], predicted: list[int], label: list[int]) -> None:
    pairs = list(zip(predicted, label, strict=True))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1)))
    case = f"for {len(pairs)} sentences with {tp} true and {fp} false positives, {tn} true and {fn} false negatives"
    constant = len(set(predicted)) < 2 or len(set(label)) < 2
    try:
        answer = function(list(predicted), list(label))
    except Wrong as wrong:
        if constant and "ZeroDivisionError" in str(wrong):
            raise Wrong(
                f"You divide by zero {case}: one of the lists is constant, and the task says what to return."
            ) from None
        raise
    if constant and isinstance(answer, float) and math.isnan(answer):
        raise Wrong(f"NaN {case}: one of the lists is constant, and the task says what to return.")
    given = require_number(answer, "The correlation")
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    right = 0.0 if constant else (tp * tn - fp * fn) / math.sqrt(product)
    if math.isclose(given, right, abs_tol=1e-6):
        return
    if constant:
        raise Wrong(f"One of the lists is constant {case}; the task says what to return then.")
    if math.isclose(given, (tp + tn) / len(pairs), abs_tol=1e-6):
        raise Wrong(f"That is the accuracy {case}.")
    if math.isclose(given, 2 * tp / (2 * tp + fp + fn), abs_tol=1e-6):
        raise Wrong(f"That is F1 {case}; it does not look at the true negatives.")
    if math.isclose(given, (tp * tn - fp * fn) / product, abs_tol=1e-9):
        raise Wrong(f"The denominator lacks its root {case}.")
    if math.isclose(given, -right, abs_tol=1e-6):
        raise Wrong(f"The sign is wrong {case}.")
    raise Wrong(f"The correlation is too {'large' if given > right else 'small'} {case}.")


def hours(function: Callable[..., Any]) -> int:
    """glue-2: hours of training with frozen weights, from rows, epochs, padded length, weights and FLOP/s."""
    cases = (
        (1000, 1, 100, 10**6, 1e12),
        (8551, 80, 512, 85_000_000, 2.4e13),
        (67349, 20, 128, 302_000_000, 3e13),
        (277, 3, 64, 10_600_000, 5e10),
    )
    for rows, epochs, length, weights, speed in cases:
        given = require_number(function(rows, epochs, length, weights, speed), "The number of hours")
        one = rows * epochs * length * weights / speed / 3600  # hours for one FLOP a weight and token
        case = f"for {rows:,} rows, {epochs} epochs, length {length}, {weights:,} weights at {speed:.2g} FLOP/s"
        mistakes = (
            (3600 * 4 * one, "Those are seconds {}; return hours."),
            (60 * 4 * one, "Those are minutes {}; return hours."),
            (6 * one, "You count gradients of all weights {}; here the weights are frozen."),
            (
                3600 * 6 * one,
                "Two things {}: you count gradients of all weights, which are frozen, and return seconds.",
            ),
            (2 * one, "That is the way forwards alone {}."),
            (one, "You count one operation a weight and token {}; how many are there, forwards and backwards?"),
            (4 * one / epochs, "That is one epoch {}."),
            (4 * one / length, "Every row has the full length {}, its padding included."),
        )
        settle(given, 4 * one, mistakes, "The number", case, partial(math.isclose, rel_tol=1e-6))
    return len(cases)


Results = dict[str, tuple[int, list[float]]]
FRONTIERS: tuple[Results, ...] = (
    {"a": (10, [0.5]), "b": (20, [0.6]), "c": (30, [0.55])},
    {"wide": (900, [0.9, 0.91, 0.89]), "thin": (3, [0.7, 0.72, 0.71]), "middle": (90, [0.8, 0.1, 0.82])},
    {"one": (5, [0.6, 0.6, 0.6]), "two": (50, [0.61, 0.59, 0.2]), "three": (500, [0.9, 0.55, 0.55])},
    {"p": (7, [0.4, 0.5, 0.6]), "q": (7, [0.5, 0.6, 0.7]), "r": (70, [0.6, 0.6, 0.6]), "s": (8, [0.1, 0.1, 0.1])},
    {"even": (5, [0.4, 0.8]), "odd": (6, [0.7, 0.7, 0.7]), "large": (7, [0.5, 0.65, 0.8, 0.95])},
    {"low": (4, [0.2, 0.8]), "high": (5, [0.45, 0.4, 0.55])},
    {"z": (3, [0.5]), "a": (3, [0.5]), "b": (9, [0.5])},
)


def frontier(function: Callable[..., Any]) -> int:
    """glue-3: the methods worth their size, by median score; from {name: (stored, scores)}; of equals the first."""
    for results in FRONTIERS:
        answer = function({name: (stored, list(scores)) for name, (stored, scores) in results.items()})
        if not isinstance(answer, list) or not all(isinstance(name, str) for name in answer):
            raise Wrong(f"Return a list of names; yours is {str(answer)[:60]} of type {type(answer).__name__}.")
        middle = {name: (stored, median(scores)) for name, (stored, scores) in results.items()}
        right = undominated(middle)
        case = "for " + ", ".join(f"{name} ({stored}: {scores})" for name, (stored, scores) in results.items())
        if answer == right:
            continue
        repeated = [name for name in answer if answer.count(name) > 1]
        if repeated:
            raise Wrong(f"{repeated[0]!r} stands in your list {answer.count(repeated[0])} times {case}.")
        if sorted(answer) == sorted(right):
            raise Wrong(f"The right names in the wrong order {case}: smallest first.")
        means = {name: (stored, fmean(scores)) for name, (stored, scores) in results.items()}
        if answer == undominated(means):
            raise Wrong(f"You compare means {case}; one run that failed moves a mean, not a median.")
        if answer == undominated({name: (stored, max(scores)) for name, (stored, scores) in results.items()}):
            raise Wrong(f"You compare the best runs {case}; take the median.")
        unknown = [name for name in answer if name not in results]
        if unknown:
            raise Wrong(f"{unknown[0]!r} is no method {case}.")
        for half, which in ((0, "lower"), (1, "upper")):
            one_of_two = {name: (stored, sorted(s)[(len(s) - 1 + half) // 2]) for name, (stored, s) in results.items()}
            if answer == undominated(one_of_two):
                raise Wrong(f"With an even count you take the {which} middle score {case}; take the mean of both.")
        twins = [name for name in answer if name not in right and middle[name] in [middle[kept] for kept in right]]
        if twins:
            raise Wrong(f"{twins[0]!r} equals another one in size and median {case}; the task says which to keep.")
        extra, lacking = [name for name in answer if name not in right], [name for name in right if name not in answer]
        if extra:
            raise Wrong(
                f"{extra[0]!r} is not worth its size {case}: another one stores no more and is at least as good."
            )
        raise Wrong(f"{lacking[0]!r} is missing {case}: nothing that stores no more is as good.")
    return len(FRONTIERS)


def undominated(results: dict[str, tuple[int, float]]) -> list[str]:
    """Names by size, each with a better score than all that are no larger; of equals the first."""
    chosen: list[str] = []
    for name in sorted(results, key=lambda name: (results[name][0], -results[name][1])):
        if not chosen or results[name][1] > results[chosen[-1]][1]:
            chosen.append(name)
    return chosen


EXERCISES = {"glue-1": matthews, "glue-2": hours, "glue-3": frontier}
