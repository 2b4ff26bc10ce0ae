"""Whether two expressions are equal, asked of math-verify in a process that may be killed.

What a model writes is not to be trusted. math-verify reads LaTeX with a grammar and calls `eval` on nothing but
digits and operators, but sympy may take hours over a short expression. So it runs in a process of its own, with
limits on time and memory; an expression that goes beyond them counts as not equal.

Run as a script, this file is that process: it reads pairs as lines of JSON and writes verdicts.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from typing import Any

ALARM = 2  # whole seconds for reading an expression, and for comparing two
SECONDS = 8.0  # then the process is killed
START_SECONDS = 120.0  # imports, on a busy machine
GIBIBYTES = 4  # of address space
PLACES = 12  # decimals to which a decimal must agree with an exact expression


class Symbolic:
    """math-verify behind a pipe; started when first asked, and again after it had to be killed.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        require()
        self.seconds, self.killed = seconds, 0
        self.process: subprocess.Popen[str] | None = None
        self.replies: queue.Queue[str] = queue.Queue()
        self.lock = threading.Lock()
        atexit.register(self.close)

    def equal(self, answer: str, reference: str) -> bool:
        """Whether two expressions in LaTeX are equal; False too where time or memory ran out."""
        with self.lock:
            if self.process is None:
                self._start()
            process = self.process
            assert process is not None and process.stdin is not None
            try:
                process.stdin.write(json.dumps([answer, reference]) + "\n")
                process.stdin.flush()
                return bool(json.loads(self.replies.get(timeout=self.seconds)))
            except (queue.Empty, OSError, json.JSONDecodeError):
                self.killed += 1
                self.close()
                return False

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        self.replies = queue.Queue()
        # -P: the folder of this file does not come before the installed packages
        command = [sys.executable, "-P", __file__]
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, encoding="utf-8", **pipe)
        threading.Thread(target=_listen, args=(self.process.stdout, self.replies), daemon=True).start()
        try:
            self.replies.get(timeout=START_SECONDS)
        except queue.Empty:
            self.close()
            raise RuntimeError("math-verify did not start; see whether 'import math_verify' works") from None


def _listen(stream: Any, replies: queue.Queue[str]) -> None:
    for line in stream:
        replies.put(line)
    replies.put("")  # the process has ended: no JSON


@functools.cache
def symbolic() -> Symbolic:
    """The one comparer of this Python process."""
    return Symbolic()


def require() -> None:
    """Raises ModuleNotFoundError, with the way out, where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ModuleNotFoundError(
            "scoring answers in mathematics needs math-verify: pip install 'vbank[math]'", name="math_verify"
        )


def serve() -> None:
    """Answers lines of JSON [answer, reference] with true or false, until there are no more."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
    except (ImportError, ValueError, OSError):  # no such limit on this system: the time must do
        pass
    alarm = ALARM if os.name == "posix" else None
    print("ready", flush=True)
    for line in sys.stdin:
        answer, reference = (parse(f"${text}$", parsing_timeout=alarm) for text in json.loads(line))
        try:
            same = bool(answer and reference) and verify(
                reference, answer, float_rounding=PLACES, timeout_seconds=alarm
            )
        except Exception:  # sympy raises what it likes
            same = False
        print(json.dumps(bool(same)), flush=True)


if __name__ == "__main__":
    serve()
