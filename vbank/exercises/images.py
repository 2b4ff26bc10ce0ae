"""Checkers of the chapter *Images with ViT*."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vbank.exercises.checker import Wrong


def balanced_draw(function: Callable[..., Any]) -> int:
    """images-1: the places of a balanced draw, `samples` of every class, fixed by a seed."""
    draw = torch.Generator().manual_seed(11)
    cases = []
    for classes, size, samples in ((2, 9, 1), (3, 40, 5), (10, 300, 10), (7, 90, 3)):
        mixed = torch.cat([torch.arange(classes).repeat(samples + 1), torch.randint(classes, (size,), generator=draw)])
        cases.append((mixed[torch.randperm(len(mixed), generator=draw)].tolist(), samples))
    for labels, samples in cases:
        case = f"for {len(labels)} labels of {len(set(labels))} classes and {samples} a class"
        first = _places(function(labels, samples, 0), labels, samples, case)
        if _places(function(labels, samples, 0), labels, samples, case) != first:
            raise Wrong(f"Two calls with one seed give different draws {case}; let everything come from the seed.")
        others = [_places(function(labels, samples, seed), labels, samples, case) for seed in range(1, 9)]
        if all(sorted(other) == sorted(first) for other in others):
            raise Wrong(f"Nine seeds give one draw {case}; the seed must decide which samples are taken.")
    return len(cases)


def _places(answer: Any, labels: Sequence[int], samples: int, case: str) -> list[int]:
    if isinstance(answer, torch.Tensor):
        answer = answer.tolist()
    if not isinstance(answer, (list, tuple)) or not all(type(place) is int for place in answer):
        raise Wrong(f"Return a list of whole numbers, the places of the drawn samples, {case}.")
    places = list(answer)
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


def spreads(function: Callable[..., Any]) -> int:
    """images-2: standard deviations between draws, between seeds, and of the rest, from a table of accuracies."""
    draw = torch.Generator().manual_seed(23)
    cases = []
    for rows, columns, sizes in ((5, 5, (3.0, 1.0, 1.0)), (6, 3, (0.2, 2.0, 0.5)), (4, 8, (2.0, 0.0, 1.0))):
        a, b, c = (torch.randn(shape, generator=draw) for shape in ((rows, 1), (1, columns), (rows, columns)))
        cases.append((70 + sizes[0] * a + sizes[1] * b + sizes[2] * c).double().tolist())
    cases.append([[70.0, 72.0, 71.0], [71.0, 70.0, 72.0], [72.0, 71.0, 70.0]])  # no effect of draw or seed
    for table in cases:
        _compare_spreads(function(table), table)
    return len(cases)


def _compare_spreads(answer: Any, table: list[list[float]]) -> None:
    D, S = len(table), len(table[0])
    case = f"for {D} draws and {S} seeds"
    if not isinstance(answer, (list, tuple)) or len(answer) != 3:
        raise Wrong("Return three numbers: the deviations of draw, seed and rest.")
    try:
        given = [float(value) for value in answer]
    except (TypeError, ValueError):
        raise Wrong(f"All three should be numbers {case}.") from None
    if any(isinstance(value, complex) or not math.isfinite(value) for value in given):
        raise Wrong(f"A deviation is not finite {case}; where an estimated variance is below 0, take 0.")
    y = torch.tensor(table, dtype=torch.float64)
    row, column, mean = y.mean(1), y.mean(0), y.mean()
    rest = ((y - row[:, None] - column + mean) ** 2).sum().item() / ((D - 1) * (S - 1))
    variances = [row.var().item() - rest / S, column.var().item() - rest / D, rest]
    right = [math.sqrt(max(0.0, variance)) for variance in variances]

    def same(values: Sequence[float]) -> bool:
        return all(math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-6) for one, two in zip(given, values, strict=True))

    if same(right):
        return
    if same([value**2 for value in right]):
        raise Wrong(f"Those are the variances {case}; take their roots.")
    if same([right[1], right[0], right[2]]):
        raise Wrong(f"Draw and seed have changed places {case}: a row of the table is one draw.")
    if same([row.std().item(), column.std().item(), right[2]]):
        raise Wrong(
            f"The deviation of the row means {case} still holds a share of the rest: "
            "a mean of n numbers keeps one n-th of their variance."
        )
    if math.isclose(given[2], y.std().item(), rel_tol=1e-6):
        raise Wrong(
            f"The third number is the deviation of the whole table {case}; take out row and column means first."
        )
    for name, one, two in zip(("draw", "seed", "rest"), given, right, strict=True):
        if not math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-6):
            raise Wrong(f"The deviation of the {name} is too {'large' if one > two else 'small'} {case}.")


EXERCISES = {"images-1": balanced_draw, "images-2": spreads}
