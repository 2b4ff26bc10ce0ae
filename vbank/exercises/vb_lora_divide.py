"""Checkers of the chapter *VB-LoRA I: divide*."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, recognise, require_integer, require_tensor, settle

same = partial(close, tolerance=1e-8)


def divide(function: Callable[..., Any]) -> int:
    """vb-lora-divide-1: sub-vectors of A (r, n) part by part, shape (n / b, r, b), as in Algorithm 1."""
    generator = torch.Generator().manual_seed(41)
    cases = ((1, 6, 3), (2, 6, 3), (3, 12, 2), (4, 20, 5), (3, 9, 9), (2, 4, 1))
    for rank, inputs, length in cases:
        A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
        parts = inputs // length
        case = f"for A of shape {(rank, inputs)} and b = {length}"
        answer = function(A, length)
        if isinstance(answer, Tensor) and tuple(answer.shape) == (rank, parts, length) and rank != parts:
            raise Wrong(f"The shape is {(rank, parts, length)} {case}: the rank should come second.")
        value = require_tensor(answer, (parts, rank, length), f"Your answer {case}", A.dtype)
        right, shuffled = A.reshape(rank, parts, length).transpose(0, 1), A.reshape(parts, rank, length)
        strided = A.reshape(rank, length, parts).permute(2, 0, 1)
        mistakes = (
            (shuffled, "The shape is right {}, but the entry (part, rank) is not that part of that row of A."),
            (strided, f"A sub-vector should hold neighbours {{}}; yours takes every {parts}th entry."),
            (A.T.reshape(parts, rank, length), "The sub-vectors mix several rows {}; each should lie in one."),
        )
        settle(value, right, mistakes, "Your answer", case, same)
    return len(cases)


def reassemble(function: Callable[..., Any]) -> int:
    """vb-lora-divide-2: B (m, r) from a bank (h, b) and a choice (m / b, r) of one bank vector a sub-vector."""
    generator = torch.Generator().manual_seed(42)
    cases = ((2, 3, 1, 2), (5, 2, 3, 3), (4, 3, 2, 5), (7, 4, 4, 4), (3, 1, 6, 2), (6, 5, 1, 4))
    for vectors, length, parts, rank in cases:
        bank = torch.randn(vectors, length, generator=generator, dtype=torch.float64)
        choice = torch.randint(vectors, (parts, rank), generator=generator)
        outputs = parts * length
        case = f"for a bank of shape {(vectors, length)} and a choice of shape {(parts, rank)}"
        answer = function(bank, choice)
        if isinstance(answer, Tensor) and tuple(answer.shape) == (rank, outputs) and rank != outputs:
            raise Wrong(f"You return shape {(rank, outputs)} {case}; B has a column for each rank.")
        value = require_tensor(answer, (outputs, rank), f"B {case}", bank.dtype)
        pieces = bank[choice]  # (m / b, r, b)
        columns = pieces.transpose(1, 2)  # (m / b, b, r)
        mistakes = (
            (pieces.reshape(outputs, rank), "The sub-vectors lie along the rows of B {}; they belong in its columns."),
            (pieces.reshape(rank, outputs).T, "The columns of B hold sub-vectors that belong to other ranks {}."),
            (columns.flip(0).reshape(outputs, rank), "The parts stand in the wrong order {}."),
            (columns.flip(1).reshape(outputs, rank), "The bank vectors stand upside down {}."),
        )
        settle(value, columns.reshape(outputs, rank), mistakes, "B", case, same)
    return len(cases)


def lengths(function: Callable[..., Any]) -> int:
    """vb-lora-divide-3: every length b that divides all sizes of all layers (out_features, in_features), ascending."""
    cases: tuple[list[tuple[int, int]], ...] = (
        [(8, 8)],
        [(12, 8), (8, 12)],
        [(7, 5)],
        [(1536, 384), (384, 1536)],
        [(30, 45), (75, 30), (105, 15)],
        [(12, 18), (8, 20)],
        [(8, 8), (12, 12)],
        [(4096, 4096), (11008, 4096), (4096, 11008)],
    )
    for shapes in cases:
        answer = function(shapes)
        case = f"for the shapes {shapes}"
        if isinstance(answer, (int, float, str)) or not isinstance(answer, Sequence):
            raise Wrong(f"Return a list of all lengths {case}; yours is {answer!r} of type {type(answer).__name__}.")
        given = [require_integer(value, f"Each length {case}") for value in answer]
        common = math.gcd(*(size for shape in shapes for size in shape))
        right = [b for b in range(1, common + 1) if common % b == 0]
        if given == right:
            continue
        if sorted(given) == right:
            raise Wrong(f"The lengths {case} are right, but not in ascending order.")
        if 0 in given or any(value < 0 for value in given):
            raise Wrong(f"A length is at least 1; yours {case} contain {min(given)}.")
        if len(set(given)) < len(given):
            raise Wrong(f"A length occurs more than once {case}.")
        for value in given:
            for outputs, inputs in shapes:
                if outputs % value or inputs % value:
                    raise Wrong(f"{value} does not divide the sizes of a layer of shape {(outputs, inputs)}.")
        raise Wrong(f"Some length is missing {case}: you give {len(given)}.")
    return len(cases)


def bank_size(function: Callable[..., Any]) -> int:
    """vb-lora-divide-4: the largest bank that a number of bytes allows, next to indices and weights."""
    cases: tuple[tuple[list[tuple[int, int]], int, int, int, int], ...] = (
        ([(64, 64)] * 4, 2, 16, 2, 4_000),
        ([(768, 768)] * 24, 4, 256, 2, 100_000),
        ([(1024, 1024)] * 48, 4, 128, 2, 141_312),
        ([(96, 64), (64, 96)], 1, 8, 3, 1_480),
        ([(64, 64)] * 8, 4, 4, 2, 30_000),
        ([(64, 64)] * 8, 4, 4, 1, 6_160),
        ([(64, 64)] * 8, 4, 4, 1, 6_140),
        ([(64, 64)] * 8, 4, 4, 2, 9_300),
        ([(4096, 4096), (11008, 4096)], 4, 256, 2, 2_200_000),
        ([(64, 64)] * 4, 4, 4, 2, 100),
        ([(64, 64)], 1, 8, 3, 240),
    )
    for shapes, rank, length, k, size in cases:
        answer = require_integer(function(shapes, rank, length, k, size), "The bank size h")
        pieces = sum(rank * (m + n) for m, n in shapes) // length
        right = largest_bank(pieces, length, k, size)
        if answer == right:
            continue
        layers = f"{len(shapes)} layers of the shapes {sorted(set(shapes))}"
        case = f"for {layers}, r = {rank}, b = {length}, k = {k} and {size:,} bytes"
        if right == 0 and answer < 0:
            raise Wrong(f"The indices alone cost more than that {case}: no bank fits, so h is 0 and not negative.")
        if right == 0 and 0 < answer < k:
            raise Wrong(f"A sub-vector chooses k different vectors, and your bank of {answer} has fewer {case}.")
        mistakes = (
            (size // (4 * length), "The indices and weights of the sub-vectors cost bytes too {}."),
            (one_width(pieces, length, k, size, 1), "An index of one byte names 256 vectors and no more {}."),
            (one_width(pieces, length, k, size, 2), "Up to 256 vectors, an index takes one byte only {}."),
            (
                one_width(pieces, length, k, size - 4 * pieces, 1),
                "The k weights add up to one {}: one need not be kept.",
            ),
            (one_width(pieces, length, k, size, 4), "An index takes one or two bytes, not four {}."),
        )
        recognise(answer, mistakes, case)
        raise Wrong(f"Your h is too {'large: it would not fit' if answer > right else 'small: more would fit'} {case}.")
    return len(cases)


def one_width(pieces: int, length: int, k: int, size: int, width: int) -> int:
    """Largest h with indices of `width` bytes, whatever h is; negative if not even the indices fit."""
    return (size - pieces * (4 * (k - 1) + k * width)) // (4 * length)


def largest_bank(pieces: int, length: int, k: int, size: int) -> int:
    """Largest h whose bank, indices (1 byte up to h = 256, else 2) and k - 1 weights take at most `size` bytes."""
    wide = one_width(pieces, length, k, size, 2)
    h = wide if wide > 256 else min(256, one_width(pieces, length, k, size, 1))
    return h if h >= k else 0


EXERCISES = {
    "vb-lora-divide-1": divide,
    "vb-lora-divide-2": reassemble,
    "vb-lora-divide-3": lengths,
    "vb-lora-divide-4": bank_size,
}
