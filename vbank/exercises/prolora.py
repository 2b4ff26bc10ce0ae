"""Checkers of the chapter *PRoLoRA*."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, recognise, require_integer, require_tensor, settle

same = partial(close, tolerance=1e-9)


def stride_of(rows: int, share: int) -> int:
    return max(rows // share, 1)


def copies(chunk: Tensor, length: int, share: int, stride: int, dim: int = 0) -> Tensor:
    """The chunk beside its copies, the i-th rolled by i * stride, cut to `length` columns."""
    return torch.cat([chunk.roll(i * stride, dims=dim) for i in range(share)], dim=1)[:, :length]


def expanded(function: Callable[..., Any]) -> int:
    """prolora-1: all of A from its chunk (R, ceil(length / share)), rotated, the last copy trimmed."""
    generator = torch.Generator().manual_seed(31)
    cases = ((4, 8, 1), (6, 12, 3), (4, 10, 3), (7, 11, 2), (8, 7, 3), (2, 8, 4), (3, 10, 7), (1, 5, 2))
    for rows, length, share in cases:
        width, stride = math.ceil(length / share), stride_of(rows, share)
        chunk = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        case = f"for a chunk of shape {(rows, width)}, length {length} and share {share}"
        answer = function(chunk, length, share)
        if isinstance(answer, Tensor) and length < width * share and tuple(answer.shape) == (rows, width * share):
            raise Wrong(f"The last copy is not trimmed {case}.")
        value = require_tensor(answer, (rows, length), f"A {case}", chunk.dtype)
        still = "With a share above R, floor(R / share) is 0 and nothing rotates {}; the stride is 0."
        one_amount = torch.cat([chunk] + [chunk.roll(stride, dims=0)] * (share - 1), dim=1)[:, :length]
        mistakes = (
            (copies(chunk, length, share, 0), still if share > rows else "The copies are not rotated {}."),
            (copies(chunk, length, share, -stride), "The copies are rotated the wrong way {}."),
            (
                copies(chunk, length, share, stride, dim=1),
                "The copies are rotated along the columns {}, not along the rank.",
            ),
            (one_amount, "All copies after the first are rotated by the same amount {}."),
            (copies(chunk, length, share, 1), "The stride is 1 {}; what does it depend on?"),
        )
        settle(value, copies(chunk, length, share, stride), mistakes, "A", case, same)
    return len(cases)


def total(shapes: Sequence[tuple[int, int]], free: int, shared: int, share: int, up: bool = True) -> int:
    """`free` whole rows and columns and `shared` ones of a chunk's width, rounded up or down, for each layer."""
    rounded = math.ceil if up else math.floor
    return sum(free * (m + n) + shared * (rounded(m / share) + rounded(n / share)) for m, n in shapes)


def likely_counts(shapes: Sequence[tuple[int, int]], rank: int, u: int, share: int) -> list[tuple[int, str]]:
    """Wrong counts and what is wrong with them."""
    sizes = sum(m + n for m, n in shapes)
    return [
        (total(shapes, u, rank - u, share, up=False), "The last copy is trimmed {}, but the chunk is not."),
        (total(shapes, u, rank, share), "You gave the chunks all ranks {}; how many of them are shared?"),
        (total(shapes, 0, rank, share), "The unshared ranks are missing {}."),
        (total(shapes, 0, rank - u, share), "The unshared rows and columns are missing {}."),
        (rank * sizes, "That is what LoRA trains {}."),
        (
            sum(u * (m + n) + (rank - u) * math.ceil((m + n) / share) for m, n in shapes),
            "A and B have chunks of their own {}, and each is rounded.",
        ),
        (u * sizes + math.ceil((rank - u) * sizes / share), "You rounded the sum {}; each chunk is rounded."),
        (total(shapes[:1], u, rank - u, share), "You counted one layer {}."),
    ]


def parameters(function: Callable[..., Any]) -> int:
    """prolora-2: trained numbers for layers (out_features, in_features), with rank, u and one share for A and B."""
    cases: tuple[tuple[list[tuple[int, int]], int, int, int], ...] = (
        ([(8, 12)], 4, 0, 2),
        ([(8, 12)], 4, 1, 4),
        ([(384, 384)] * 4 + [(1536, 384), (384, 1536)], 8, 2, 4),
        ([(10, 7), (7, 10)], 8, 1, 3),
        ([(4096, 4096), (11008, 4096)], 8, 1, 7),
        ([(16, 24)], 4, 4, 3),
        ([(16, 24)], 4, 0, 1),
    )
    for shapes, rank, u, share in cases:
        answer = function(shapes, rank, u, share)
        case = f"for rank {rank}, u = {u}, share {share} and the shapes {sorted(set(shapes))} ({len(shapes)} layers)"
        if isinstance(answer, float):
            raise Wrong(
                f"The count is {answer!r} {case}; a chunk has a whole number of columns, and numbers come whole."
            )
        answer = require_integer(answer, "The count")
        settle(answer, total(shapes, u, rank - u, share), likely_counts(shapes, rank, u, share), "The count", case)
    return len(cases)


Pattern = tuple[tuple[int, ...], ...]


def pattern(labels: Sequence[Sequence[Any]]) -> Pattern:
    """The same grouping with the labels renamed 0, 1, 2, ... in the order of their first appearance."""
    names: dict[Any, int] = {}
    return tuple(tuple(names.setdefault(label, len(names)) for label in row) for row in labels)


def grid(share_a: int, share_b: int, label: Callable[[int, int], int]) -> Pattern:
    return pattern([[label(i, j) for j in range(share_a)] for i in range(share_b)])


def right_pattern(rows: int, share_a: int, share_b: int) -> Pattern:
    a, b = stride_of(rows, share_a), stride_of(rows, share_b)
    return grid(share_a, share_b, lambda i, j: (j * a - i * b) % rows)


def likely_patterns(rows: int, share_a: int, share_b: int) -> list[tuple[Pattern, str]]:
    """Wrong groupings and what is wrong with them; with few blocks some agree, so the most telling words come first."""
    a, b = stride_of(rows, share_a), stride_of(rows, share_b)
    floor_a, floor_b, most = rows // share_a, rows // share_b, max(share_a, share_b)
    round_a, round_b = max(round(rows / share_a), 1), max(round(rows / share_b), 1)
    difference = "The difference of the block numbers does not decide {}; what about the strides?"
    labels: list[tuple[Callable[[int, int], int], str]] = [
        (
            lambda i, j: (j * a + i * b) % rows,
            "Your equal blocks lie along the other diagonals {}; which way does B's rotation count?",
        ),
        (lambda i, j: (j * round_a - i * round_b) % rows, "The strides are rounded the wrong way {}."),
        (lambda i, j: j * a - i * b, "Some equal blocks have different labels {}: a rotation by R changes nothing."),
        (
            lambda i, j: (j * floor_a - i * floor_b) % rows,
            "A stride is at least 1 {}, also where the share is larger than R.",
        ),
        (lambda i, j: (j - i) % most, difference),
        (lambda i, j: (j - i) % share_a, difference),
        (lambda i, j: j - i, difference),
        (lambda i, j: 0, "All labels are equal {}; that is CLoRA, without rotation."),
    ]
    return [(grid(share_a, share_b, label), words) for label, words in labels]


def equal_blocks(function: Callable[..., Any]) -> int:
    """prolora-3: a label a block (i, j) of RoLoRA's update, equal where the blocks are equal for every chunk."""
    cases = (
        (4, 2, 2),
        (6, 3, 3),
        (8, 4, 2),
        (8, 2, 4),
        (7, 3, 3),
        (6, 3, 2),
        (2, 3, 3),
        (5, 1, 3),
        (9, 4, 3),
        (8, 3, 3),
    )
    for rows, share_a, share_b in cases:
        case = f"for R = {rows}, {share_a} copies in A and {share_b} in B"
        answer = function(rows, share_a, share_b)
        answer = answer.tolist() if isinstance(answer, Tensor) else answer
        if not isinstance(answer, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in answer):
            raise Wrong(
                f"Return a list of rows, each a list of labels; yours is of type {type(answer).__name__} {case}."
            )
        lengths = [len(row) for row in answer]
        if lengths != [share_a] * share_b:
            turned = share_a != share_b and lengths == [share_b] * share_a
            hint = "; rows of blocks come from B, columns from A" if turned else ""
            raise Wrong(f"There should be {share_b} rows of {share_a} labels {case}; yours have {lengths}{hint}.")
        strange = [
            label for row in answer for label in row if isinstance(label, Tensor) or not isinstance(label, Hashable)
        ]
        if strange:
            raise Wrong(f"Make each label a number or a string {case}; one is of type {type(strange[0]).__name__}.")
        found = pattern(answer)
        if found == right_pattern(rows, share_a, share_b):
            continue
        recognise(found, likely_patterns(rows, share_a, share_b), case)
        raise Wrong(f"The wrong blocks have equal labels {case}.")
    return len(cases)


def fold(gradient: Tensor, share: int, stride: int) -> Tensor:
    """The copies' parts of a gradient (R, length), the i-th rolled back by i * stride, added up."""
    width = math.ceil(gradient.shape[1] / share)
    result = torch.zeros(gradient.shape[0], width, dtype=gradient.dtype)
    for i, part in enumerate(gradient.split(width, dim=1)):
        result[:, : part.shape[1]] += part.roll(-i * stride, dims=0)
    return result


def folded(function: Callable[..., Any]) -> int:
    """prolora-4: the gradient of a chunk from the gradient of the whole A that it expands to."""
    generator = torch.Generator().manual_seed(34)
    cases = ((4, 8, 1), (6, 12, 3), (4, 10, 3), (7, 11, 2), (2, 8, 4), (3, 10, 7))  # R, length, share
    for rows, length, share in cases:
        width, stride = math.ceil(length / share), stride_of(rows, share)
        gradient = torch.randn(rows, length, generator=generator, dtype=torch.float64)
        case = f"for a gradient of shape {(rows, length)} and share {share}"
        value = require_tensor(function(gradient, share), (rows, width), f"The chunk's gradient {case}", gradient.dtype)
        columns = torch.arange(length)
        right = fold(gradient, share, stride)
        mistakes = (
            (fold(gradient, share, 0), "The copies are not turned back before they are added {}."),
            (fold(gradient, share, -stride), "The copies are turned on, not back {}."),
            (right / share, "The copies are averaged {}; each of them moves the output."),
            (gradient[:, :width], "The gradient of the first copy alone is there {}."),
            (fold(gradient * (columns < length // width * width), share, stride), "The trimmed copy is missing {}."),
        )
        settle(value, right, mistakes, "The chunk's gradient", case, same)
    return len(cases)


EXERCISES = {
    "prolora-1": expanded,
    "prolora-2": parameters,
    "prolora-3": equal_blocks,
    "prolora-4": folded,
}
