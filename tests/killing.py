"""Makes a run in a child process that kills itself, as kill -9 would, at the n-th call of a function."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import tiny_task

from vbank import ledger, training
from vbank import run as runner
from vbank.recipes import Recipe
from vbank.tasks import generation

POINTS: dict[str, tuple[object, str]] = {
    "step": (training.AdapterTrainer, "training_step"),
    "evaluation": (training.AdapterTrainer, "evaluate"),
    "save": (training, "save_file"),
    "rename": (training.os, "rename"),
    "removal": (training.shutil, "rmtree"),
    "measure": (tiny_task.Backwards, "measure"),
    "answers": (generation, "_answers"),
    "adapter": (runner, "size_on_disk"),
    "record": (ledger, "write"),
    "cleanup": (runner, "_remove_checkpoints"),
}


def killed_at(point: str, times: int, recipe: Recipe, out: Path, silent: Callable[[str], object]) -> None:
    child = os.fork()
    if not child:
        owner, name = POINTS[point]
        real, calls = getattr(owner, name), []

        def fatal(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) == times:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, fatal)
        runner.run(recipe, 0, out, announce=silent)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"the run ended before it could be killed at {point} {times}"
