"""Checker of the chapter *The cost of a copy*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vbank.exercises.checker import Wrong, require_integer, settle


def training_bytes(function: Callable[..., Any]) -> int:
    """cost-1: bytes of weights, gradients and Adam state; frozen in bfloat16, trained in float32."""
    cases = ((1_000, 0), (0, 1_000), (22_000_000, 150_000), (7, 13), (6_738_415_616, 39_976_960))
    for frozen, trained in cases:
        answer = require_integer(function(frozen, trained), "The number of bytes")
        case = f"for {frozen:,} frozen and {trained:,} trained parameters"
        unaware = "Too many bytes {}: a frozen weight has no gradient and no optimizer state."
        mistakes = (
            (4 * frozen + 16 * trained, "Too many bytes {}: the frozen weights are bfloat16, not float32."),
            (2 * frozen + 12 * trained, "Too few bytes {}: Adam keeps more than one number a trained parameter."),
            (2 * frozen + 8 * trained, "Too few bytes {}: something besides weight and gradient is kept."),
            (16 * (frozen + trained), unaware),
            (18 * frozen + 16 * trained, unaware),
        )
        settle(answer, 2 * frozen + 16 * trained, mistakes, "The number of bytes", case)
    return len(cases)


def customers(function: Callable[..., Any]) -> int:
    """cost-2: how many customers fit on a card, as full copies and as adapters beside one shared model."""
    cases = ((100, 30, 7), (100, 100, 1), (99, 100, 1), (80 * 10**9, 13 * 10**9, 3 * 10**6), (50, 7, 43), (24, 8, 8))
    for card, model, adapter in cases:
        answer = function(card, model, adapter)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two numbers: full copies, then adapters.")
        copies, adapters = (require_integer(value, "The number of customers") for value in answer)
        case = f"for a card of {card:,} bytes, a model of {model:,} and adapters of {adapter:,}"
        if copies != card // model:
            if adapters == card // model:
                raise Wrong(f"The order is the other way round {case}: full copies come first.")
            too = "many" if copies > card // model else "few"
            raise Wrong(f"Too {too} full copies {case}; a part of one serves nobody.")
        if adapters < 0:
            raise Wrong(f"A negative number of customers {case}: what if the model does not fit?")
        mistakes = (
            (card // adapter, "Too many adapters {}: something else has to be on the card as well."),
            (card // (model + adapter), "Too few adapters {}: they share one model."),
        )
        settle(adapters, max(card - model, 0) // adapter, mistakes, "The number of adapters", case)
    return len(cases)


EXERCISES = {"cost-1": training_bytes, "cost-2": customers}
