"""What all checkers share: the verdict, and the words for what is wrong with an answer."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.guard import Wrong, guarded

__all__ = [
    "Verdict",
    "Wrong",
    "close",
    "judge",
    "recognise",
    "require_integer",
    "require_number",
    "require_tensor",
    "settle",
]


@dataclass(frozen=True)
class Verdict:
    """What `check` found; true if the answer is right."""

    name: str
    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{self.name}: {'right' if self.right else 'not yet'}. {self.message}"


def judge(
    name: str, exercise: Callable[[Callable[..., Any]], int], function: Callable[..., Any], seconds: float
) -> Verdict:
    """Runs an exercise's cases; `exercise` raises Wrong or returns how many cases it tried.

    A call may take `seconds`; after three times as long no further call begins.
    """
    if not callable(function):
        return Verdict(name, False, f"Give me the function itself; this is of type {type(function).__name__}.")
    start = time.monotonic()

    def call(*arguments: Any) -> Any:
        if time.monotonic() - start > 3 * seconds:
            raise Wrong(f"Your function is too slow: its cases took more than {3 * seconds:g} seconds together.")
        return guarded(function, seconds, *arguments)

    state = torch.get_rng_state()
    try:
        cases = exercise(call)
    except Wrong as wrong:
        return Verdict(name, False, str(wrong))
    except Exception as error:  # the exercise stumbled over a value of a kind that it does not expect
        return Verdict(name, False, f"The checker cannot use what your function returned: {str(error)[:200]}")
    finally:
        torch.set_rng_state(state)
    return Verdict(name, True, f"{cases} unseen cases agree.")


def require_tensor(value: Any, shape: tuple[int, ...], what: str, dtype: torch.dtype | None = None) -> Tensor:
    """The value as a tensor of that shape and type; Wrong if it is not one."""
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} should be a tensor; yours is of type {type(value).__name__}.")
    if value.layout != torch.strided or value.is_nested:
        raise Wrong(f"{what} should be an ordinary dense tensor; yours is nested or of layout {value.layout}.")
    if value.device.type != "cpu":
        raise Wrong(f"{what} should be on the CPU, as the inputs are; yours is on {value.device}.")
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} should have shape {shape}; yours has {tuple(value.shape)}.")
    if dtype is not None and value.dtype != dtype:
        raise Wrong(f"{what} should be of type {dtype}; yours is {value.dtype}.")
    if not torch.isfinite(value).all():
        raise Wrong(f"{what} holds NaN or infinite values.")
    return value.detach()


def require_integer(value: Any, what: str) -> int:
    """The value as an int; Wrong if it is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"{what} should be an int; yours is {str(value)[:60]} of type {type(value).__name__}.")
    return value


def require_number(value: Any, what: str) -> float:
    """The value as a finite float: a plain number or a tensor with a single one."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{what} should be a number; yours is of type {type(value).__name__}.")
    if not math.isfinite(value):
        raise Wrong(f"{what} is {value}, not a finite number.")
    return float(value)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal up to a tolerance relative to the larger entry."""
    return bool((a - b).abs().max() <= tolerance * max(float(b.abs().max()), 1e-12))


def settle(
    answer: Any,
    right: Any,
    mistakes: Iterable[tuple[Any, str]],
    what: str,
    case: str,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> None:
    """Raises Wrong unless the answer agrees with what is right; says which mistake it is, or else how it is off.

    Args:
        answer: the reader's number or tensor.
        right: what it should be.
        mistakes: see `recognise`.
        what: name of the answer, such as ``"The share"``; begins the message if it is none of the mistakes.
        case: the inputs in words, such as ``"for n = 3"``.
        same: whether two values agree: `==` for integers, else ``partial(math.isclose, ...)``, `close` and the like.
    """
    if same(answer, right):
        return
    recognise(answer, mistakes, case, same)
    if isinstance(answer, Tensor):
        raise Wrong(f"{what} has the right shape but wrong values {case}.")
    raise Wrong(f"{what} is too {'large' if answer > right else 'small'} {case}.")


def recognise(
    answer: Any, mistakes: Iterable[tuple[Any, str]], case: str, same: Callable[[Any, Any], bool] = operator.eq
) -> None:
    """Raises Wrong with the words of the first mistake that the answer agrees with; does nothing if it is none.

    A mistake is the value that it leads to and a sentence with `{}` where the case belongs.
    """
    for value, words in mistakes:
        if same(answer, value):
            raise Wrong(words.format(case))
