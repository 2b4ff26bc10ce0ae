"""Checker of the chapter *The cost of a copy*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vbank.exercises.checker import Wrong, require_integer


def training_bytes(function: Callable[..., Any]) -> int:
    """cost-1: bytes of weights, gradients and Adam state; frozen in bfloat16, trained in float32."""
    cases = ((1_000, 0), (0, 1_000), (22_000_000, 150_000), (7, 13), (6_738_415_616, 39_976_960))
    for frozen, trained in cases:
        answer = require_integer(function(frozen, trained), "The number of bytes")
        case = f"for {frozen:,} frozen and {trained:,} trained parameters"
        right = 2 * frozen + 16 * trained
        if answer == right:
            continue
        if answer == 4 * frozen + 16 * trained:
            raise Wrong(f"Too many bytes {case}: the frozen weights are bfloat16, not float32.")
        if answer == 2 * frozen + 12 * trained:
            raise Wrong(f"Too few bytes {case}: Adam keeps more than one number a trained parameter.")
        if answer == 2 * frozen + 8 * trained:
            raise Wrong(f"Too few bytes {case}: something besides weight and gradient is kept.")
        if answer in (16 * (frozen + trained), 18 * frozen + 16 * trained):
            raise Wrong(f"Too many bytes {case}: a frozen weight has no gradient and no optimizer state.")
        raise Wrong(f"Too {'many' if answer > right else 'few'} bytes {case}.")
    return len(cases)


EXERCISES = {"cost-1": training_bytes}
