"""A guarded call of a reader's function: whatever goes wrong in it becomes a message."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import inspect
import io
import itertools
import os
import random
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Wrong(Exception):
    """The reader's answer is wrong; the message says how."""


class TimeUp(BaseException):
    """Ends a call that takes too long. No Exception: a reader's `except Exception` must not catch it."""


class Kept(io.TextIOBase):
    """Standard output that keeps its first characters."""

    def __init__(self, limit: int = 300) -> None:
        self.text, self.limit = "", limit

    def write(self, text: str) -> int:
        self.text += text[: max(self.limit - len(self.text), 0)]
        return len(text)


def guarded(function: Callable[..., Any], seconds: float, *arguments: Any) -> Any:
    """Calls the reader's function on copies of the arguments; what it raises or changes becomes Wrong."""
    _require_signature(function, arguments)
    given, output = copy.deepcopy(arguments), Kept()
    try:
        with _state_kept(), contextlib.redirect_stdout(output), time_limit(seconds):
            result = function(*given)
    except Wrong as wrong:
        raise Wrong(f"{wrong}{_printed(output)}") from None
    except TimeUp:
        raise Wrong(
            f"Your function was still running after {seconds:g} seconds; does a loop ever end?"
            f" (inputs: {describe(arguments)}){_printed(output)}"
        ) from None
    except KeyboardInterrupt:  # the reader's own wish
        raise
    except BaseException as error:  # SystemExit, GeneratorExit and asyncio's CancelledError are no Exception
        raise Wrong(
            f"Your function raised {type(error).__name__}: {_shortened(str(error))}{_line(error, function)}"
            f" (inputs: {describe(arguments)}).{_printed(output)}"
        ) from error
    for position, (before, after) in enumerate(zip(arguments, given, strict=True)):
        if not unchanged(before, after):
            name = _parameter(function, position)
            raise Wrong(f"Your function changed its input number {position + 1}{name}; return a new value instead.")
    if result is None:
        raise Wrong(f"Your function returned nothing; does it end with a return?{_printed(output)}")
    if inspect.iscoroutine(result):
        result.close()
        raise Wrong("Your function is an async function; write it with a plain def.")
    if isinstance(result, Iterator):
        raise Wrong(f"Your function returned an iterator of type {type(result).__name__}; return its values.")
    return result


def _require_signature(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise Wrong(
            f"Your function has the parameters {signature}, but it is called with {len(arguments)} arguments"
            f" ({describe(arguments)}): {error}."
        ) from None


def _parameter(function: Callable[..., Any], position: int) -> str:
    """The name of the parameter that takes an argument, in brackets; nothing where it has no name of its own."""
    try:
        names = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ""
    if position >= len(names) or any(parameter.kind == parameter.VAR_POSITIONAL for parameter in names[: position + 1]):
        return ""
    return f" ({names[position].name})"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUp in this thread after so many seconds, and again every tenth of a second.

    In the main thread of a Unix system a signal does it, elsewhere a second thread. Either has to wait while compiled
    code runs: a second notice then says how to stop it.
    """
    notice = threading.Timer(3 * seconds, _announce, [seconds])
    notice.daemon = True
    notice.start()
    try:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
            with _signalled(seconds):
                yield
        else:
            with _interrupted(seconds):
                yield
    finally:
        notice.cancel()


def _announce(seconds: float) -> None:
    print(
        f"The call still runs, long after its limit of {seconds:g} seconds, and cannot be ended from here."
        " Interrupt the kernel; if that does not help either, restart it.",
        file=sys.stderr,
    )


@contextlib.contextmanager
def _signalled(seconds: float) -> Iterator[None]:
    signals = itertools.count()

    def stop(_: int, frame: types.FrameType | None) -> None:
        if next(signals) >= 2:
            _stop_in_handlers(frame)
        raise TimeUp

    tracer = sys.gettrace()
    before = signal.signal(signal.SIGALRM, stop)
    try:  # two layers: the last signal may arrive within the inner `finally`
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if sys.gettrace() is not tracer:
            sys.settrace(tracer)


def _stop_in_handlers(frame: types.FrameType | None) -> None:
    """Lets the next line of the reader's code raise TimeUp too.

    A bare `except:` inside `while True:` catches every TimeUp. Its own first line is the next one, and what is raised
    there leaves the loop.
    """

    def trace(_: types.FrameType, event: str, __: Any) -> Any:
        if event == "line":
            raise TimeUp
        return trace

    frames = []
    while frame is not None and frame.f_code is not guarded.__code__:
        frames.append(frame)
        frame = frame.f_back
    for own in frames:
        if own.f_code.co_filename == frames[-1].f_code.co_filename:
            own.f_trace = trace
    sys.settrace(lambda *_: None)  # with none set, Python asks no frame


@contextlib.contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Plants TimeUp in this thread from another one, which CPython raises at the next instruction in Python."""
    thread, done = threading.get_ident(), threading.Event()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeUp))
            wait = 0.1

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:  # two layers, as above
        try:
            yield
        finally:
            done.set()
    finally:
        done.set()
        watcher.join()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, lambda value: torch.set_default_device(None)),
    "whether torch records gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "the current folder": (os.getcwd, os.chdir),
}


@contextlib.contextmanager
def _state_kept() -> Iterator[None]:
    """Puts random states and settings back; Wrong if the call changed a setting."""
    states = torch.get_rng_state(), random.getstate()
    settings = {name: read() for name, (read, _) in SETTINGS.items()}
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        changed = [name for name, value in settings.items() if SETTINGS[name][0]() != value]
        for name in changed:
            SETTINGS[name][1](settings[name])
    if changed:
        raise Wrong(f"Your function changed {changed[0]} for everything after it; leave that as it was.")


def unchanged(before: Any, after: Any) -> bool:
    """Whether two values are equal, inside containers too; objects that define no equality count as equal."""
    if type(before) is not type(after):
        return False
    if isinstance(before, Tensor):
        kinds = [(t.shape, t.dtype, t.device, t.requires_grad, t.is_leaf) for t in (before, after)]
        if kinds[0] != kinds[1] or not unchanged(before.grad, after.grad):
            return False
        both_nan = (before != before) & (after != after)
        return bool(((before == after) | both_nan).all())
    if isinstance(before, nn.Module):
        return unchanged(before.state_dict(), after.state_dict()) and before.training == after.training
    if isinstance(before, Mapping):
        return list(before) == list(after) and all(unchanged(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(unchanged, before, after))
    if type(before).__eq__ is object.__eq__:
        return True
    return bool(before == after) or (before != before and after != after)  # NaN


def describe(arguments: Sequence[Any]) -> str:
    """Shapes of tensors and values of anything else, shortened, for messages."""
    return _shortened(", ".join(map(_described, arguments)))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, list) or type(value) is tuple:
        left, right = "[]" if isinstance(value, list) else "()"
        shown = [_described(item) for item in value[:4]] + ["..."] * (len(value) > 4)
        return f"{left}{', '.join(shown)}{right}" + (f" of {len(value)}" if len(value) > 4 else "")
    if isinstance(value, (str, Mapping)) and len(value) > 60:
        return f"a {type(value).__name__} of length {len(value)}"
    return _shortened(repr(value), 60)


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ..."


def _printed(output: Kept) -> str:
    text = output.text.strip()
    return f" It printed: {text}{' ...' if len(output.text) >= output.limit else ''}" if text else ""


def _line(error: BaseException, function: Callable[..., Any]) -> str:
    """The line of the reader's code that raised, where Python still has it."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file and frame.line]
    return f" at `{frames[-1].line}`" if frames else ""
