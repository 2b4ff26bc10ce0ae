"""Data sets, weights and metrics of the experiments; `find` gives a task by its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vbank.suggestions import unknown
from vbank.tasks.sources import DataError

if TYPE_CHECKING:
    from vbank.tasks.base import Task

# module:attribute, imported when asked for: some need packages that others do not. A task of your own is one more line.
TABLE = {
    "sst2": "vbank.tasks.glue:SST2",
    "sst2-sentences": "vbank.tasks.glue:SST2_SENTENCES",
    "cola": "vbank.tasks.glue:COLA",
    "mrpc": "vbank.tasks.glue:MRPC",
    "qnli": "vbank.tasks.glue:QNLI",
    "rte": "vbank.tasks.glue:RTE",
    "stsb": "vbank.tasks.glue:STSB",
    "e2e": "vbank.tasks.e2e:E2E",
    "alpaca": "vbank.tasks.instruct:ALPACA",
    "metamath": "vbank.tasks.mathematics:METAMATH",
    "cifar100": "vbank.tasks.images:CIFAR100",
    "food101": "vbank.tasks.images:FOOD101",
    "flowers102": "vbank.tasks.images:FLOWERS102",
    "resisc45": "vbank.tasks.images:RESISC45",
    "digits-turned": "vbank.tasks.images:DIGITS_TURNED",
}


def names() -> list[str]:
    """All tasks."""
    return list(TABLE)


def find(name: str) -> Task:
    """The task called `name`.

    Raises:
        DataError: there is none; the message names a close one.
    """
    if name not in TABLE:
        raise DataError(unknown("task", name, names()))
    module, _, attribute = TABLE[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)
    return task
