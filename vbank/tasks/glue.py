"""Sentence classification: SST-2 in its two versions, and CoLA."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vbank.suggestions import unknown
from vbank.tasks.generated import generate
from vbank.tasks.sources import DataError, Row, load_hub, load_local

SOURCES = ("any", "local", "hub", "generated")


def accuracy(predicted: torch.Tensor, label: torch.Tensor) -> float:
    """Share of predictions that equal the label; both of shape (examples,)."""
    return (predicted == label).double().mean().item()


def matthews(predicted: torch.Tensor, label: torch.Tensor) -> float:
    """Matthews correlation of two 0/1 vectors of shape (examples,); 0 when either is constant."""
    if predicted.unique().numel() < 2 or label.unique().numel() < 2:
        return 0.0
    return torch.corrcoef(torch.stack([predicted.double(), label.double()]))[0, 1].item()


@dataclass(frozen=True)
class Task:
    """What a task is, before any row is read."""

    name: str
    local: str  # folder under VBANK_DATA
    hub: tuple[str, str | None]  # data set and configuration
    grammar: str  # of the last resort
    metric: Callable[[torch.Tensor, torch.Tensor], float]
    columns: tuple[str, ...] = ("sentence",)
    classes: int = 2
    rename: dict[str, str] = field(default_factory=dict)  # the Hub's column -> ours


# The Hub's GLUE cuts SST-2 into 67k phrases; the 6,920 whole sentences are another training set: two tasks.
TASKS = {
    task.name: task
    for task in (
        Task("sst2-sentences", "glue/sst2", ("SetFit/sst2", None), "sentiment", accuracy, rename={"text": "sentence"}),
        Task("sst2", "glue/sst2-phrases", ("nyu-mll/glue", "sst2"), "sentiment", accuracy),
        Task("cola", "glue/cola", ("nyu-mll/glue", "cola"), "acceptability", matthews),
    )
}


@dataclass(frozen=True)
class TaskData:
    """Rows of one task and where they came from."""

    task: Task
    source: str
    train: list[Row]
    validation: list[Row]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any row, so that runs on different data are never taken for the same."""
        digest = hashlib.sha256()
        for row in (*self.train, *self.validation):
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()[:12]


def load(name: str, source: str = "any", announce: Callable[[str], object] | None = print) -> TaskData:
    """Reads a task from the first source that has it: VBANK_DATA, the Hub, generated sentences.

    `source` other than "any" insists on one of them; the one used is handed to `announce` as a line of text.
    Raises DataError for an unknown task or source, for corrupt rows, and when the source insisted on is absent.
    """
    for kind, value, known in (("task", name, tuple(TASKS)), ("source", source, SOURCES)):
        if value not in known:
            raise DataError(unknown(kind, value, known))
    task = TASKS[name]
    splits, used = None, ""
    if source in ("any", "local"):
        splits, used = load_local(task.local, task.columns, task.classes), f"local folder {task.local} in VBANK_DATA"
    if splits is None and source in ("any", "hub"):
        splits, used = load_hub(*task.hub, task.rename, task.columns, task.classes), f"Hugging Face Hub {task.hub[0]}"
    if splits is None and source in ("any", "generated"):
        splits, used = generate(task.grammar), "generated sentences (a stand-in, not the real data set)"
    if splits is None:
        way = f"set VBANK_DATA to a folder with {task.local}" if source == "local" else "the Hub does not answer"
        raise DataError(f"task {name!r}: source {source!r} is absent; {way}, or use source 'any'")
    data = TaskData(task, used, splits["train"], splits["validation"])
    if announce:
        announce(f"data: {name} from {used}: {len(data.train):,} train, {len(data.validation):,} validation")
    return data


def subset(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """`size` rows drawn without replacement, fixed by the seed; 0 takes all. Smaller subsets open larger ones.

    Raises DataError when the size is below 0 or above the number of rows.
    """
    if not 0 <= size <= len(rows):
        raise DataError(f"asked for {size:,} training rows of {len(rows):,}; take 1 to {len(rows):,}, or 0 for all")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[: size or len(rows)]]


def hold_out(data: TaskData, train_size: int = 0, subset_seed: int = 0, holdout: int = 0) -> TaskData:
    """The training subset of a run; with `holdout` its last rows replace the validation split, for model selection."""
    rows = subset(data.train, train_size, subset_seed)
    if not 0 <= holdout < len(rows):
        raise DataError(f"holdout of {holdout:,} leaves nothing of {len(rows):,} training rows; take less")
    if not holdout:
        return TaskData(data.task, data.source, rows, data.validation)
    return TaskData(data.task, data.source, rows[:-holdout], rows[-holdout:])
