"""Checkers of the chapter *A first real fine-tune*."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vbank.exercises.checker import Wrong, require_integer, settle


def paired_difference(function: Callable[..., Any]) -> int:
    """finetune-1: difference of two accuracies on the same sentences, and its standard error."""
    generator = torch.Generator().manual_seed(41)
    cases = ((12, 0.9, 0.6), (40, 0.8, 0.8), (872, 0.85, 0.83), (872, 0.95, 0.94), (200, 0.5, 0.9))
    for sentences, one, two in cases:
        luck = torch.rand(sentences, generator=generator)  # shared, so that both stumble over the same sentences
        own = torch.rand(2, sentences, generator=generator)
        right_a = (0.7 * luck + 0.3 * own[0] < one).tolist()
        right_b = (0.7 * luck + 0.3 * own[1] < two).tolist()
        _compare_pair(function(right_a, right_b), right_a, right_b)
    return len(cases)


def _compare_pair(answer: Any, right_a: Sequence[bool], right_b: Sequence[bool]) -> None:
    n = len(right_a)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise Wrong("Return two numbers: the difference of the accuracies and its standard error.")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in answer):
        raise Wrong(f"Both should be finite plain numbers; yours are {answer!r}.")
    a, b = sum(right_a) / n, sum(right_b) / n
    case = f"for {n} sentences, of which the first model gets {sum(right_a)} right and the second {sum(right_b)}"
    given, spread = answer
    if not math.isclose(given, a - b, abs_tol=1e-9):
        if math.isclose(given, b - a, abs_tol=1e-9):
            raise Wrong(f"The difference has the wrong sign {case}: take the first minus the second.")
        if math.isclose(given, n * (a - b), abs_tol=1e-6):
            raise Wrong(f"The difference counts sentences {case}; divide by their number.")
        raise Wrong(f"The difference is wrong {case}.")
    differences = [int(one) - int(two) for one, two in zip(right_a, right_b, strict=True)]
    variance = sum((d - (a - b)) ** 2 for d in differences) / n
    # Dividing by n and by n - 1 are both in use.
    right = (math.sqrt(variance / n), math.sqrt(variance / (n - 1)))
    if any(math.isclose(spread, value, rel_tol=1e-6) for value in right):
        return
    unpaired = math.sqrt((a * (1 - a) + b * (1 - b)) / n)
    if math.isclose(spread, unpaired, rel_tol=0.01):
        raise Wrong(f"Your standard error takes the two models for independent {case}; they read the same sentences.")
    if math.isclose(spread, math.sqrt(a * (1 - a) / n), rel_tol=1e-6):
        raise Wrong(f"That is the standard error of the first accuracy alone {case}.")
    if any(math.isclose(spread, value * math.sqrt(n), rel_tol=1e-6) for value in right):
        raise Wrong(f"That is the standard deviation over sentences {case}; the mean of n has a smaller one.")
    if any(math.isclose(spread, value**2, rel_tol=1e-6) for value in right):
        raise Wrong(f"That is the variance {case}; a standard error is its root.")
    raise Wrong(f"The standard error is too {'large' if spread > right[1] else 'small'} {case}.")


def compact_bytes(function: Callable[..., Any]) -> int:
    """finetune-2: bytes of VB-LoRA's compact file for layers of given shapes (out_features, in_features)."""
    minilm = [(384, 384)] * 24 + [(1536, 384)] * 6 + [(384, 1536)] * 6
    cases: tuple[tuple[list[tuple[int, int]], int, int, int, int], ...] = (
        ([(8, 8)], 1, 4, 4, 2),
        (minilm, 4, 90, 128, 2),
        (minilm, 4, 256, 128, 3),
        (minilm, 4, 257, 128, 2),
        ([(768, 768)] * 24, 4, 90, 256, 1),
    )
    for shapes, rank, num_vectors, length, top_k in cases:
        answer = require_integer(function(shapes, rank, num_vectors, length, top_k), "The number of bytes")
        pieces = sum(rank * (m + n) // length for m, n in shapes)
        width = 1 if num_vectors <= 256 else 2
        bank, indices, weights = 4 * num_vectors * length, pieces * top_k, 4 * pieces * (top_k - 1)
        right = bank + indices * width + weights
        layers = f"{len(shapes)} layer{'' if len(shapes) == 1 else 's'}"
        case = f"for {layers}, r = {rank}, h = {num_vectors}, b = {length}, k = {top_k}"
        wrong_width = "The indices have the wrong size {}: take the smallest unsigned type that h indices fit."
        mistakes = (
            (bank, "That is the bank alone {}; how does the file know which vectors a sub-vector takes?"),
            (bank + 4 * pieces * num_vectors, "That is the resumable form with all logits {}."),
            (right + 4 * pieces, "You store k weights {}; they add up to 1, so one follows from the others."),
            *((bank + indices * size + weights, wrong_width) for size in (1, 2, 4, 8)),
            ((bank + weights) // 4 + indices * width, "You counted a float32 number as one byte {}."),
        )
        settle(answer, right, mistakes, "The number", case)
    return len(cases)


EXERCISES = {"finetune-1": paired_difference, "finetune-2": compact_bytes}
