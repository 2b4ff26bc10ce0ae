"""Several processes that train one model together, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")

PATIENCE = timedelta(days=2)  # the others wait while the main process generates


def rank() -> int:
    """Number of this process; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes; each must call this. With one process there is nothing to do."""
    if count() > 1:
        from accelerate import PartialState

        on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        PartialState(cpu=on_cpu, timeout=PATIENCE)


def agreed(value: T) -> T:
    """The main process's value, in all processes."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    join()
    box = [value]
    broadcast_object_list(box)
    return box[0]
