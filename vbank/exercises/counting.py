"""Checkers of the chapter *Counting and storing*."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

from vbank.exercises.checker import Wrong, require_integer

UNITS = {"K": 10**3, "M": 10**6}


def _readings(number: int, printed: str) -> dict[str, bool]:
    """Whether a count gives a printed string when it is rounded, and when its last digits are dropped."""
    digits, exact = Decimal(printed[:-1]), Decimal(number) / UNITS[printed[-1]]
    return {how: exact.quantize(digits, how) == digits for how in (ROUND_HALF_UP, ROUND_DOWN)}


def reproduces(function: Callable[..., Any]) -> int:
    """counting-1: whether a count gives a printed string such as "0.295M", rounded or cut off."""
    cases = (
        (1_234_500, "1.2M"),
        (1_284_000, "1.2M"),
        (1_284_000, "1.3M"),
        (23_904, "0.023M"),
        (23_904, "0.024M"),
        (24_900, "0.023M"),
        (7_816_000, "7.82M"),
        (78_160_000, "7.82M"),
        (1_250_000, "1.3M"),  # a tie
        (61_440, "60K"),
        (61_440, "61.4K"),
        (999_960, "1000.0K"),
        (450, "0.5K"),
    )
    for number, printed in cases:
        answer = function(number, printed)
        if not isinstance(answer, bool):
            raise Wrong(f"Return True or False; yours is {answer!r} of type {type(answer).__name__}.")
        rounded, cut = _readings(number, printed).values()
        if answer == (rounded or cut):
            continue
        case = f"for {number:,} and {printed!r}"
        if answer and printed[-1] == "K" and number % 1024 == 0:
            raise Wrong(f"A count in K is in thousands, not in units of 1,024 {case}.")
        if answer:
            raise Wrong(f"You let a number pass that neither rounding nor cutting gives {case}.")
        if printed[-1] == "K":
            raise Wrong(f"You refuse a count that gives this very string {case}; K stands for a thousand.")
        if rounded and number == 1_250_000:
            raise Wrong(f"You know rounding, but a tie rounds up {case}.")
        if cut and not rounded:
            raise Wrong(f"You know rounding; papers also cut digits off {case}.")
        if rounded and not cut:
            raise Wrong(f"You know cutting off; papers also round {case}.")
        raise Wrong(f"You refuse a count that gives this very string {case}; are you comparing at the printed digits?")
    return len(cases)


def _bytes(shapes: list[tuple[int, int]], rank: int, b: int, k: int, h: int) -> int:
    pieces = sum(rank * (m + n) // b for m, n in shapes)
    return 4 * h * b + pieces * (4 * (k - 1) + k * (1 if h <= 256 else 2))


def largest_bank(function: Callable[..., Any]) -> int:
    """counting-2: the largest bank whose compact VB-LoRA file fits a budget of bytes."""
    base, square = [(768, 768)] * 24, [(64, 64)]
    cases = (
        (square, 2, 32, 2, 2000),
        (square, 1, 32, 3, 1000),
        (base, 4, 256, 2, 95_616),
        (base, 4, 256, 2, 95_615),
        (base, 4, 256, 2, 266_000),  # 256 vectors fit, and the 257th would need wider indices
        (base, 4, 256, 2, _bytes(base, 4, 256, 2, 257)),
        ([(4096, 4096), (11008, 4096)] * 32, 4, 256, 2, 2_409_472),
    )
    for shapes, rank, b, k, budget in cases:
        case = f"for {len(shapes)} layers of {sorted(set(shapes))}, r = {rank}, b = {b}, k = {k} and {budget:,} bytes"
        answer = require_integer(function(shapes, rank, b, k, budget), f"The bank size {case}")
        right = max(h for h in range(1, 65_537) if _bytes(shapes, rank, b, k, h) <= budget)
        if answer == right:
            continue
        pieces = sum(rank * (m + n) // b for m, n in shapes)
        if answer == budget // (4 * b):
            raise Wrong(f"The bank alone fills the budget {case}; the indices and weights need room too.")
        if answer == (budget - pieces * (4 * k + k)) // (4 * b) != right:
            raise Wrong(f"You store k weights a piece {case}; one follows from the others.")
        if answer > 256 and answer == (budget - pieces * (4 * (k - 1) + k)) // (4 * b):
            raise Wrong(f"Your indices take one byte each {case}; one byte names 256 vectors.")
        if answer < right <= 256 and answer == (budget - pieces * (4 * (k - 1) + 2 * k)) // (4 * b):
            raise Wrong(f"Your indices take two bytes each {case}; up to 256 vectors one is enough.")
        if answer < 1 or _bytes(shapes, rank, b, k, answer) > budget:
            raise Wrong(f"A bank of {answer:,} does not fit {case}.")
        raise Wrong(f"A bank of {answer:,} fits {case}, but a larger one does too.")
    return len(cases)


def depths(function: Callable[..., Any]) -> int:
    """counting-3: for which numbers of blocks LoRA's count gives a printed string."""
    llama = 2 * (4096 + 4096) * 2 + 3 * (4096 + 11008)
    cases = (
        ("5.00M", llama, 2),
        ("0.295M", 2 * 2 * 768, 8),
        ("1.0M", 4096, 8),
        ("0.3M", 2 * 2 * 768, 8),
        ("9.99M", 2 * 2 * 768, 1),
    )
    for printed, block, rank in cases:
        case = f"for {printed!r}, a sum of {block:,} in a block, and rank {rank}"
        answer = function(printed, block, rank)
        if not isinstance(answer, list):
            raise Wrong(f"Return a list of numbers of blocks; yours is of type {type(answer).__name__}.")
        for depth in answer:
            require_integer(depth, f"A number of blocks {case}")
        right = [depth for depth in range(1, 201) if any(_readings(rank * depth * block, printed).values())]
        if answer == right:
            continue
        if sorted(answer) == right:
            raise Wrong(f"The right numbers of blocks in the wrong order {case}; sort them.")
        if not answer:
            raise Wrong(f"You found none {case}; there {'is one' if len(right) == 1 else f'are {len(right)}'}.")
        if set(answer) < set(right):
            raise Wrong(f"Some numbers of blocks that give it are missing {case}.")
        raise Wrong(f"Some of your numbers of blocks do not give that string {case}.")
    return len(cases)


EXERCISES = {"counting-1": reproduces, "counting-2": largest_bank, "counting-3": depths}
