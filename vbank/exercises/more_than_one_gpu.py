"""Checkers of the chapter *More than one GPU*."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, recognise, require_number, require_tensor, settle


def ring_seconds(function: Callable[..., Any]) -> int:
    """gpus-1: seconds of a ring all-reduce: 2 (n - 1) messages of a share of the bytes, one after the other."""
    cases = (
        (480_000_000, 4, 300e9, 5e-6),
        (6_400_000, 8, 25e9, 2e-5),
        (27_000_000_000, 2, 12.5e9, 1e-4),
        (1_000, 64, 50e9, 1e-5),
        (1_000_000, 1, 50e9, 1e-5),
    )
    same = partial(math.isclose, rel_tol=1e-9, abs_tol=1e-15)
    for size, n, bandwidth, latency in cases:
        answer = require_number(function(size, n, bandwidth, latency), "The time")
        messages = 2 * (n - 1)
        sent, waited = messages * size / n / bandwidth, messages * latency  # seconds
        right = sent + waited
        if same(answer, right):
            continue
        if n == 1:
            raise Wrong("One GPU has nobody to exchange anything with: the time is 0.")
        case = f"for {size:,} bytes on {n} GPUs"
        mistakes = (
            (sent, "You left out the latency {}: every message costs it."),
            (sent + latency, "You paid the latency once {}; the messages follow one another, so each pays it."),
            (n * sent + waited, "Every message is as long as the whole gradient {}; it is one of n shares."),
            (right / 2, "That is half of it {}: the shares go round once to be added up, once to be handed out."),
            (8 * sent + waited, "The bandwidth is in bytes, not in bits {}."),
        )
        recognise(answer, mistakes, case, same)
        raise Wrong(f"The time is too {'long' if answer > right else 'short'} {case}.")
    return len(cases)


def mean_gradient(function: Callable[..., Any]) -> int:
    """gpus-2: the gradient of the mean over all rows, from each process's mean gradient and number of rows."""
    draw = torch.Generator().manual_seed(31)
    cases = ([4, 4], [8, 8, 8, 1], [5, 4, 4], [3, 0], [16])
    for rows in cases:
        gradients = [torch.randn(6, generator=draw) for _ in rows]
        for gradient, count in zip(gradients, rows, strict=True):
            if not count:
                gradient.zero_()
        answer = require_tensor(function(gradients, list(rows)), (6,), "The gradient")
        _compare_gradient(answer, gradients, rows)
    return len(cases)


def _compare_gradient(answer: Tensor, gradients: Sequence[Tensor], rows: Sequence[int]) -> None:
    summed = sum((n * g for n, g in zip(rows, gradients, strict=True)), torch.zeros(6))
    each = torch.stack(list(gradients))
    mistakes = (
        (summed, "You summed over the rows {}; the loss is their mean, so divide by all of them."),
        (each.sum(0), "You summed the gradients {}; a step would then grow with the number of processes."),
        (each.mean(0), "Every process has one vote {}; a row should have one. Weigh by the rows."),
    )
    case = f"for processes with {', '.join(map(str, rows))} rows"
    settle(answer, summed / sum(rows), mistakes, "The gradient", case, close)


EXERCISES = {"gpus-1": ring_seconds, "gpus-2": mean_gradient}
