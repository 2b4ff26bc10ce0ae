"""Checkers of the chapter *Seeing the bank*."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vbank.exercises.checker import require_number, settle


def exchanged(function: Callable[..., Any]) -> int:
    """seeing-the-bank-1: the share of all choices that the recording before did not have."""
    generator = torch.Generator().manual_seed(91)
    cases = ((6, 5, 2), (9, 7, 3), (4, 3, 1), (1, 3, 2))  # sub-vectors N, bank size h, k
    for N, h, k in cases:
        before, now = (torch.rand(N, h, generator=generator).topk(k).indices for _ in range(2))
        now[0] = before[0].flip(0)  # the same choice, with the weights in another order
        case = f"(N = {N}, h = {h}, k = {k})"
        answer = require_number(function(before, now), f"The share {case}")
        new = ~(now[:, :, None] == before[:, None, :]).any(-1)  # (N, k)
        right = new.double().mean().item()
        places = now != before
        mistakes = (
            (1 - right, "That is the share of choices kept {}."),
            (places.double().mean().item(), "Two vectors that change places are the same choice {}."),
            (places.any(1).double().mean().item(), "Two vectors that change places are the same choice {}."),
            (new.any(1).double().mean().item(), "You count sub-vectors {}; count choices, k of each."),
            (new.sum().item(), "That is a number of choices {}; divide by all of them."),
            (100 * right, "Give the share, not a percentage {}."),
        )
        settle(answer, right, mistakes, "The share", case, partial(math.isclose, rel_tol=0, abs_tol=1e-6))
    return len(cases)


def deviation(function: Callable[..., Any]) -> int:
    """seeing-the-bank-2: how far sums of weights spread over the bank where vectors are chosen at random."""
    generator = torch.Generator().manual_seed(92)
    cases = ((1, 2, 2), (60, 30, 2), (12, 5, 3), (40, 9, 1))  # sub-vectors n, bank size h, k
    for n, h, k in cases:
        weights = torch.randn(n, k, generator=generator, dtype=torch.float64).mul(2).softmax(-1).sort(-1, True).values
        case = f"(n = {n}, h = {h}, k = {k})"
        answer = require_number(function(weights, h), f"The deviation {case}")
        squares, whole = (weights**2).sum().item(), n / h**2
        right = (squares / h - whole) ** 0.5
        usage = n * k / h * (1 - k / h)
        mistakes = (
            (right**2, "That is the variance {}; the deviation is its root."),
            (
                (squares / h) ** 0.5,
                "The square of the mean is missing {}: Var x = E[x^2] - E[x]^2, for each sub-vector.",
            ),
            (
                abs(squares / h - n**2 / h**2) ** 0.5,
                "Variances add up {}, sub-vector by sub-vector; squared means too.",
            ),
            (
                usage**0.5,
                "That is the deviation of a usage, in which each choice counts one {}. Here it counts its weight.",
            ),
            (weights.std().item(), "That is the spread of the weights {}. It does not say who gets them."),
        )
        settle(answer, right, mistakes, "The deviation", case, partial(math.isclose, rel_tol=1e-6, abs_tol=1e-6))
    return len(cases)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    "seeing-the-bank-1": exchanged,
    "seeing-the-bank-2": deviation,
}
