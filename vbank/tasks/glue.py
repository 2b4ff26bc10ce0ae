"""GLUE: the six tasks of the papers, single sentences and pairs, and SST-2 in its two versions.

| task | texts | label | metric |
|---|---|---|---|
| cola | a sentence | 1: well formed | Matthews correlation |
| sst2, sst2-sentences | a phrase or sentence of a film review | 1: praise | accuracy |
| mrpc | two sentences from the news | 1: they mean the same | accuracy |
| qnli | a question and a sentence | 0: the sentence holds the answer | accuracy |
| rte | a text and a hypothesis | 0: the text entails the hypothesis | accuracy |
| stsb | two sentences | how alike they are, a number from 0 to 5 | Pearson correlation |

Metrics as in VB-LoRA's Table 1 and VeRA's Table 2. GLUE's own page also reports F1 for MRPC; the papers do not.
The labels of the Hub's test splits are hidden (-1), so everything is measured on the validation splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vbank.suggestions import unknown
from vbank.tasks.base import Announce, Row, Task, TaskData, hold_out, subset
from vbank.tasks.generated import generate
from vbank.tasks.sources import DataError, load_hub, load_local, offline
from vbank.tasks.weights import load_classifier

if TYPE_CHECKING:
    from vbank.recipes import ModelSettings, TaskSettings

__all__ = [
    "COLA",
    "MRPC",
    "QNLI",
    "RTE",
    "SST2",
    "SST2_SENTENCES",
    "STSB",
    "GlueTask",
    "accuracy",
    "hold_out",
    "load",
    "matthews",
    "pearson",
    "subset",
]

SOURCES = ("any", "local", "hub", "generated")


def accuracy(predicted: torch.Tensor, label: torch.Tensor) -> float:
    """Share of predictions that equal the label; both of shape (examples,)."""
    return (predicted == label).double().mean().item()


def pearson(predicted: torch.Tensor, label: torch.Tensor) -> float:
    """Pearson correlation of two vectors of shape (examples,); 0 when either is constant."""
    if predicted.unique().numel() < 2 or label.unique().numel() < 2:
        return 0.0
    return torch.corrcoef(torch.stack([predicted.double(), label.double()]))[0, 1].item()


def matthews(predicted: torch.Tensor, label: torch.Tensor) -> float:
    """Matthews correlation of two 0/1 vectors of shape (examples,); 0 when either is constant.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), which is Pearson's correlation of 0/1 vectors.
    """
    return pearson(predicted, label)


@dataclass(frozen=True)
class GlueTask(Task):
    """A GLUE task before any row is read."""

    name: str
    local: str  # folder under VBANK_DATA
    hub: tuple[str, str | None]  # data set and configuration
    grammar: str  # of the last resort
    measured: Callable[[torch.Tensor, torch.Tensor], float]
    columns: tuple[str, ...] = ("sentence",)
    labels: int | tuple[float, float] = 2  # how many classes, or the range of a score
    rename: dict[str, str] = field(default_factory=dict)  # the Hub's column -> ours

    @property
    def metric(self) -> str:  # type: ignore[override]
        """Name of the metric."""
        return self.measured.__name__

    @property
    def regression(self) -> bool:
        """Whether the label is a score, learned with one output and the squared error."""
        return isinstance(self.labels, tuple)

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """Reads the task from the first source that has it: VBANK_DATA, the Hub, generated sentences.

        `source` other than "any" insists on one of them; the one used is handed to `announce` as a line of text.
        Raises DataError for an unknown source, for corrupt rows, for a data set that the Hub has and that cannot be
        loaded, and when the source insisted on is absent.
        """
        if source not in SOURCES:
            raise DataError(unknown("source", source, SOURCES))
        splits, used = None, ""
        if source in ("any", "local"):
            splits = load_local(self.local, self.columns, self.labels)
            used = f"local folder {self.local} in VBANK_DATA"
        if splits is None and source in ("any", "hub"):
            splits = load_hub(*self.hub, self.rename, self.columns, self.labels)
            used = f"Hugging Face Hub {self.hub[0]}"
        if splits is None and source in ("any", "generated"):
            splits, used = generate(self.grammar), "generated sentences (a stand-in, not the real data set)"
        if splits is None:
            if source == "local":
                way = f"set VBANK_DATA to a folder with {self.local}"
            elif offline():
                way = f"HF_HUB_OFFLINE is set and {self.hub[0]} is not in the cache; unset it"
            else:
                way = "the Hub does not answer; try again"
            raise DataError(f"task {self.name!r}: source {source!r} is absent; {way}, or use source 'any'")
        data = TaskData(self.name, used, splits["train"], splits["validation"])
        if announce:
            announce(f"data: {self.name} from {used}: {len(data.train):,} train, {len(data.validation):,} validation")
        return data

    def model(self, settings: ModelSettings) -> tuple[Any, Any]:
        """An encoder with a fresh head: one output a class, or a single one for a score."""
        return load_classifier(settings.name, 1 if isinstance(self.labels, tuple) else self.labels, settings)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> list[Row]:
        """Rows as token ids, cut at `settings.max_length`, a pair at the end of its longer text; no padding yet."""
        rows = list(rows)
        texts = [[row[column] for row in rows] for column in self.columns]
        coded = processor(*texts, truncation=True, max_length=settings.max_length, return_attention_mask=False)
        return [{key: coded[key][i] for key in coded} | {"labels": row["label"]} for i, row in enumerate(rows)]

    def collator(self, processor: Any) -> Any:
        """Pads on the tokenizer's side."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor)

    def score(self, predictions: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """The metric of the class with the largest logit (rows, classes), or of the score itself (rows, 1)."""
        predicted = predictions.reshape(len(labels)) if self.regression else predictions.argmax(dim=-1)  # (rows,)
        return {self.metric: self.measured(predicted, labels)}


def _glue(name: str, grammar: str, measured: Any, columns: tuple[str, ...] = ("sentence",), **more: Any) -> GlueTask:
    return GlueTask(name, f"glue/{name}", ("nyu-mll/glue", name), grammar, measured, columns, **more)


PAIR = ("sentence1", "sentence2")
COLA = _glue("cola", "acceptability", matthews)
MRPC = _glue("mrpc", "paraphrase", accuracy, PAIR)
QNLI = _glue("qnli", "answer", accuracy, ("question", "sentence"))
RTE = _glue("rte", "entailment", accuracy, PAIR)
STSB = _glue("stsb", "similarity", pearson, PAIR, labels=(0.0, 5.0))
# The Hub's GLUE cuts SST-2 into 67k phrases; the 6,920 whole sentences are another training set: two tasks.
SST2 = GlueTask("sst2", "glue/sst2-phrases", ("nyu-mll/glue", "sst2"), "sentiment", accuracy)
SST2_SENTENCES = GlueTask(
    "sst2-sentences", "glue/sst2", ("SetFit/sst2", None), "sentiment", accuracy, rename={"text": "sentence"}
)
TASKS = {task.name: task for task in (COLA, SST2, SST2_SENTENCES, MRPC, QNLI, RTE, STSB)}


def load(name: str, source: str = "any", announce: Announce | None = print) -> TaskData:
    """The rows of a task of this module, by its name; raises DataError for an unknown one."""
    if name not in TASKS:
        raise DataError(unknown("task", name, TASKS))
    return TASKS[name].load(source, announce)
