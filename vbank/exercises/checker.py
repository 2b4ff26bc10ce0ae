"""What all checkers share: a guarded call of the reader's function, and the words for what is wrong."""

from __future__ import annotations

import copy
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Wrong(Exception):
    """The reader's answer is wrong; the message says how."""


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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a call that loops, where it can be interrupted: in the main thread of a Unix system."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Wrong(f"Your function was still running after {seconds:g} seconds; does a loop ever end?")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(
    name: str, exercise: Callable[[Callable[..., Any]], int], function: Callable[..., Any], seconds: float
) -> Verdict:
    """Runs an exercise's cases; `exercise` raises Wrong or returns how many cases it tried."""
    if not callable(function):
        return Verdict(name, False, f"Give me the function itself; this is of type {type(function).__name__}.")
    state = torch.get_rng_state()
    try:
        cases = exercise(functools.partial(guarded, function, seconds))
    except Wrong as wrong:
        return Verdict(name, False, str(wrong))
    finally:
        torch.set_rng_state(state)
    return Verdict(name, True, f"{cases} unseen cases agree.")


def guarded(function: Callable[..., Any], seconds: float, *arguments: Any) -> Any:
    """Calls the reader's function; what it raises, and inputs that it changes, become Wrong."""
    given = copy.deepcopy(arguments)
    try:
        with time_limit(seconds):
            result = function(*given)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"Your function raised {type(error).__name__}: {error} (inputs: {describe(arguments)}).") from error
    for position, (before, after) in enumerate(zip(arguments, given, strict=True), start=1):
        same = torch.equal(before, after) if isinstance(before, Tensor) else before == after
        if not same:
            raise Wrong(f"Your function changed its input number {position}; return a new value instead.")
    if result is None:
        raise Wrong("Your function returned nothing; does it end with a return?")
    return result


def describe(arguments: tuple[Any, ...]) -> str:
    """Shapes of tensors and values of anything else, for messages."""
    words = [f"tensor of shape {tuple(a.shape)}" if isinstance(a, Tensor) else repr(a) for a in arguments]
    return ", ".join(words)


def require_tensor(value: Any, shape: tuple[int, ...], what: str, dtype: torch.dtype | None = None) -> Tensor:
    """The value as a tensor of that shape and type; Wrong if it is not one."""
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} should be a tensor; yours is of type {type(value).__name__}.")
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
        raise Wrong(f"{what} should be an int; yours is {value!r} of type {type(value).__name__}.")
    return value


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal up to a tolerance relative to the larger entry."""
    return bool((a - b).abs().max() <= tolerance * max(float(b.abs().max()), 1e-12))
