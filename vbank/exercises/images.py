"""Checkers of the chapter *Images with ViT*."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from vbank.exercises.checker import Wrong, require_number, settle

TRIES = 60  # seeds; a right draw misses a given sample of 12 in all of them once in 10^10 times


def balanced_draw(function: Callable[..., Any]) -> int:
    """images-1: the places of a balanced draw, `samples` of every class, fixed by a seed."""
    draw = torch.Generator().manual_seed(11)
    cases = []
    for classes, size, samples in ((2, 9, 1), (3, 40, 5), (10, 300, 10), (7, 90, 3), (4, 0, 4)):
        each = samples + 1 if size else 12  # the last case: all classes are of one size
        mixed = torch.cat([torch.arange(classes).repeat(each), torch.randint(classes, (size,), generator=draw)])
        cases.append((mixed[torch.randperm(len(mixed), generator=draw)].tolist(), samples))
    for labels, samples in cases:
        case = f"for {len(labels)} labels of {len(set(labels))} classes and {samples} a class"
        first = _places(function(labels, samples, 0), labels, samples, case)
        if _places(function(labels, samples, 0), labels, samples, case) != first:
            raise Wrong(f"Two calls with one seed give different draws {case}; let everything come from the seed.")
        others = [_places(function(labels, samples, seed), labels, samples, case) for seed in range(1, 9)]
        if all(sorted(other) == sorted(first) for other in others):
            raise Wrong(f"Nine seeds give one draw {case}; the seed must decide which samples are taken.")
    draws = [_places(function(labels, samples, seed), labels, samples, case) for seed in range(TRIES)]
    _at_random(draws, labels, case)
    return len(cases)


def _at_random(draws: Sequence[Sequence[int]], labels: Sequence[int], case: str) -> None:
    """Every class is drawn from, all of it, and not in a fixed order; classes of one size are drawn independently."""
    members = {label: [place for place, one in enumerate(labels) if one == label] for label in sorted(set(labels))}
    turns: dict[int, list[tuple[int, ...]]] = {}  # of each class and draw: which of the class's own samples
    for label, own in members.items():
        turns[label] = [tuple(turn for turn, place in enumerate(own) if place in set(one)) for one in draws]
        taken = {turn for one in turns[label] for turn in one}
        if len(set(turns[label])) == 1:
            raise Wrong(f"Class {label} has the same samples for every seed {case}; draw in every class.")
        if len(taken) < len(own):
            raise Wrong(f"{TRIES} seeds never draw some samples of class {label} {case}; all should have a chance.")
        if len(set(turns[label])) <= len(own):
            raise Wrong(
                f"{TRIES} seeds give only {len(set(turns[label]))} draws of class {label} {case}; "
                "do you move a window over a fixed order?"
            )
    if len({tuple(chosen) for chosen in turns.values()}) == 1:
        raise Wrong(
            f"All classes get the same of their own samples {case}, the third and the fifth, say; "
            "does each class begin the generator anew?"
        )


def _places(answer: Any, labels: Sequence[int], samples: int, case: str) -> list[int]:
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        answer = answer.tolist()
    whole = isinstance(answer, (list, tuple)) and all(
        isinstance(place, numbers.Integral) and not isinstance(place, bool) for place in answer
    )
    if not whole:
        raise Wrong(f"Return a list of whole numbers, the places of the drawn samples, {case}.")
    places = [int(place) for place in answer]
    if any(not 0 <= place < len(labels) for place in places):
        raise Wrong(f"A place lies outside the {len(labels)} labels {case}; did you return labels?")
    if len(set(places)) < len(places):
        raise Wrong(f"A sample is drawn twice {case}; draw without replacement.")
    if len(places) == samples:
        raise Wrong(f"You drew {samples} in all {case}; draw that many of every class.")
    found = Counter(labels[place] for place in places)
    for label in sorted(set(labels)):
        if found[label] != samples:
            if len(places) == samples * len(set(labels)):
                raise Wrong(f"The number in all is right {case}, but class {label} has {found[label]} of them.")
            raise Wrong(f"Class {label} has {found[label]} samples {case}.")
    return places


def paired(function: Callable[..., Any]) -> int:
    """images-2: mean gap of two methods on the same draws, and its standard error s / sqrt(n), s of the gaps."""
    draw = torch.Generator().manual_seed(23)
    pairs: list[tuple[list[float], list[float]]] = []
    for n, shared in ((4, 3.0), (12, 2.0), (30, 0.5), (2, 1.0)):
        luck = 70 + shared * torch.randn(n, generator=draw)
        a, b = (luck + torch.randn(n, generator=draw) for _ in range(2))
        pairs.append(((a + 1).double().tolist(), b.double().tolist()))
    pairs.append(([70.0, 75.0, 72.0], [69.0, 74.0, 71.0]))  # one gap in all draws: no error
    for one, other in pairs:
        _compare_paired(function(one, other), np.array(one), np.array(other))
    return len(pairs)


def _compare_paired(answer: Any, a: np.ndarray, b: np.ndarray) -> None:
    n = len(a)
    case = f"for {n} draws"
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        raise Wrong("Return two numbers: the mean gap and its standard error.")
    gap, error = (require_number(value, name) for value, name in zip(answer, ("The gap", "The error"), strict=True))
    gaps = a - b
    right, spread = gaps.mean(), gaps.std(ddof=1)
    same = partial(math.isclose, rel_tol=1e-4, abs_tol=1e-4)  # single precision will do
    settle(gap, right, [(-right, "The gap has the wrong sign {}; it is a minus b.")], "The mean gap", case, same)
    mistakes = (
        (
            math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n),
            f"That is the error for different draws; here both methods have the same {n}, so look at the gaps.",
        ),
        (spread, "That is the deviation of one gap {}; the mean of n gaps varies less, by the root of n."),
        (
            gaps.std() / math.sqrt(n),
            "You divided the squares by n {}; the mean was taken from the same gaps, so divide by n - 1.",
        ),
        (spread**2 / n, "That is the variance of the mean {}; take its root."),
    )
    settle(error, spread / math.sqrt(n), mistakes, "The error", case, same)


EXERCISES = {"images-1": balanced_draw, "images-2": paired}
