"""Checkers of the chapter *More than one GPU*."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_number, require_tensor


def ring_seconds(function: Callable[..., Any]) -> int:
    """gpus-1: seconds of a ring all-reduce: 2 (n - 1) messages of a share of the bytes, one after the other."""
    cases = (
        (480_000_000, 4, 300e9, 5e-6),
        (6_400_000, 8, 25e9, 2e-5),
        (27_000_000_000, 2, 12.5e9, 1e-4),
        (1_000, 64, 50e9, 1e-5),
        (1_000_000, 1, 50e9, 1e-5),
    )
    for size, n, bandwidth, latency in cases:
        answer = require_number(function(size, n, bandwidth, latency), "The time")
        messages, share = 2 * (n - 1), size / n / bandwidth
        if math.isclose(answer, messages * (share + latency), rel_tol=1e-9, abs_tol=1e-15):
            continue
        case = f"for {size:,} bytes on {n} GPUs"
        if n == 1:
            raise Wrong("One GPU has nobody to exchange anything with: the time is 0.")
        if math.isclose(answer, messages * share, rel_tol=1e-9):
            raise Wrong(f"You left out the latency {case}: every message costs it.")
        if math.isclose(answer, messages * share + latency, rel_tol=1e-9):
            raise Wrong(f"You paid the latency once {case}; the messages follow one another, so each pays it.")
        if math.isclose(answer, messages * (size / bandwidth + latency), rel_tol=1e-9):
            raise Wrong(f"Every message is as long as the whole gradient {case}; it is one of n shares.")
        if math.isclose(answer, messages / 2 * (share + latency), rel_tol=1e-9):
            raise Wrong(f"That is half of it {case}: the shares go round once to be added up, once to be handed out.")
        if math.isclose(answer, 8 * messages * share + messages * latency, rel_tol=1e-9):
            raise Wrong(f"The bandwidth is in bytes, not in bits {case}.")
        raise Wrong(f"The time is too {'long' if answer > messages * (share + latency) else 'short'} {case}.")
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
    right, case = summed / sum(rows), f"for processes with {', '.join(map(str, rows))} rows"
    if close(answer, right):
        return
    if close(answer, summed):
        raise Wrong(f"You summed over the rows {case}; the loss is their mean, so divide by all of them.")
    if close(answer, torch.stack(list(gradients)).sum(0)):
        raise Wrong(f"You summed the gradients {case}; a step would then grow with the number of processes.")
    if close(answer, torch.stack(list(gradients)).mean(0)):
        raise Wrong(f"Every process has one vote {case}; a row should have one. Weigh by the rows.")
    raise Wrong(f"The gradient is wrong {case}.")


EXERCISES = {"gpus-1": ring_seconds, "gpus-2": mean_gradient}
