"""What every task is: rows from a source, a model for them, an encoding, and a score."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbank.tasks.sources import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vbank.recipes import ModelSettings, TaskSettings

Row = dict[str, Any]
Announce = Callable[[str], object]


@dataclass(frozen=True)
class TaskData:
    """Rows of one task and where they came from.

    Args:
        name: of the task.
        source: in words, such as "local folder glue/cola in VBANK_DATA"; "generated ..." for a stand-in.
        train: rows to train on.
        validation: rows to measure on.
        key: what of a row the fingerprint takes, as JSON values; None takes the whole row. Images give a digest of
            their pixels.
    """

    name: str
    source: str
    train: list[Row]
    validation: list[Row]
    key: Callable[[Row], Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any row, so that runs on different data are never taken for the same."""
        digest = hashlib.sha256()
        for row in (*self.train, *self.validation):
            digest.update(json.dumps(self.key(row) if self.key else row, sort_keys=True).encode())
        return digest.hexdigest()[:12]


class Task(ABC):
    """One task: the runner (`vbank.run`) asks for its parts in the order in which they stand here.

    Attributes:
        name: as recipes and `vbank.tasks.find` name it.
        metric: the key, among those of `score` and `measure`, that the ledger reports.
    """

    name: str
    metric: str

    @abstractmethod
    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """All rows, from the first source that has them.

        Args:
            source: "local", "hub" or "generated" insists on one of them.
            announce: takes a line of text that names the source.

        Raises:
            DataError: an unknown or absent source, or rows that cannot be read.
        """

    def select(self, data: TaskData, settings: TaskSettings) -> TaskData:
        """The rows of one run: `settings.train_size` training rows drawn by `subset_seed`, `holdout` of them held out.

        Raises:
            DataError: fewer rows than asked for, or a setting that the task does not know.
        """
        if settings.samples_per_class:
            raise DataError(
                f"task {self.name!r} knows no task.samples_per_class (it is {settings.samples_per_class}); set"
                " task.train_size"
            )
        return hold_out(data, settings.train_size, settings.subset_seed, settings.holdout)

    @abstractmethod
    def model(self, settings: ModelSettings) -> tuple[nn.Module, Any]:
        """The model before any adapter, and its tokenizer or image processor; through `vbank.tasks.weights`.

        Raises:
            DataError: weights that cannot be had.
        """

    @abstractmethod
    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> Any:
        """Rows as the model takes them: a list of dicts with `labels` and, for text, `input_ids`; or a torch `Dataset`.

        Raises:
            DataError: a row that cannot be encoded.
        """

    @abstractmethod
    def collator(self, processor: Any) -> Callable[[list[Row]], dict[str, Tensor]]:
        """What makes a batch of encoded rows, padded to the longest."""

    def score(self, predictions: Tensor, labels: Tensor) -> dict[str, float] | None:
        """Metrics of the validation rows after every epoch, from logits (rows, classes) and labels (rows,).

        A task that leaves this method alone is watched by its validation loss.
        """
        return None

    def measure(
        self, model: nn.Module, processor: Any, rows: Sequence[Row], settings: TaskSettings, folder: Path
    ) -> dict[str, float]:
        """Metrics once after training, by generating; on the main process alone.

        Args:
            model: the trained model, in evaluation mode, not wrapped.
            processor: as `model` gave it.
            rows: the validation rows, all of them; `settings.generate` says for how many prompts to generate, 0 all.
            settings: the recipe's [task].
            folder: where predictions.jsonl is to be written; it may hold that of an earlier, killed attempt.
        """
        return {}

    @property
    def scored(self) -> bool:
        """Whether `score` says something after every epoch."""
        return type(self).score is not Task.score


def subset(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """`size` rows drawn without replacement, fixed by the seed; 0 takes all. Smaller subsets open larger ones.

    Raises:
        DataError: the size is below 0 or above the number of rows.
    """
    if not 0 <= size <= len(rows):
        raise DataError(f"asked for {size:,} training rows of {len(rows):,}; take 1 to {len(rows):,}, or 0 for all")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[: size or len(rows)]]


def hold_out(data: TaskData, train_size: int = 0, subset_seed: int = 0, holdout: int = 0) -> TaskData:
    """The training subset of a run; with `holdout` its last rows replace the validation split, for model selection.

    Raises:
        DataError: more rows asked for than there are, or held out than leave something to train on.
    """
    rows = subset(data.train, train_size, subset_seed)
    if not 0 <= holdout < len(rows):
        raise DataError(f"holdout of {holdout:,} leaves nothing of {len(rows):,} training rows; take less")
    if not holdout:
        return replace(data, train=rows)
    return replace(data, train=rows[:-holdout], validation=rows[-holdout:])
