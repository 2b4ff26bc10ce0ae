"""What the sections of a recipe hold: their keys, types and defaults, and which values are possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vbank.methods import METHODS
from vbank.methods.base import Config

BASELINES = ("full", "bitfit", "head")  # every weight trained; the biases; the head alone
NOT_RECORDED = ("seeds", "save_steps", "log_selections")  # keys of [train] on which no number of a run depends
Range = tuple[str, Callable[[float], bool]]


@dataclass(frozen=True)
class TaskSettings:
    """Which rows: a task, a training subset fixed by its own seed, and what is held out of it."""

    name: str
    source: str = "any"
    train_size: int = 0  # 0: all
    subset_seed: int = 0
    holdout: int = 0  # training rows kept back; they then replace the validation split
    max_length: int = 128
    samples_per_class: int = 0  # images: 0: all
    prompt: str = "alpaca"
    generate: int = 0  # validation prompts to generate for after training; 0: all
    max_new_tokens: int = 64
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class ModelSettings:
    """Which weights, how they are held in memory, and which modules are trained whole."""

    name: str
    head: list[str] = field(default_factory=lambda: ["classifier"])
    quantise: str = "none"
    double_quantise: bool = True
    compute: str = "fp32"  # type of the weights; of a quantised model, that of its products
    checkpointing: bool = False
    dropout: float | None = None  # of every dropout layer; None: as the weights come with it


@dataclass(frozen=True)
class MethodSettings:
    """Which method on which layers, at which learning rates; `settings` are the method's own."""

    name: str
    lr: dict[str, float]
    targets: list[str] | str = "all-linear"
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Config | None:
        """The method's configuration; None for the baselines."""
        return None if self.name in BASELINES else METHODS[self.name](**self.settings)


@dataclass(frozen=True)
class TrainSettings:
    """How to train, and which epoch to report."""

    epochs: int
    batch_size: int  # rows of a forward pass, over all processes together
    eval_batch_size: int = 64
    accumulation: int = 1  # batches before an optimizer step
    max_steps: int = 0  # optimizer steps in all, whatever `epochs` says; 0: as many as the epochs have
    warmup: float = 0.0  # share of all steps
    warmup_steps: int = 0  # instead of the share
    optimizer: str = "adamw"
    label_smoothing: float = 0.0
    schedule: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    report: str = "last"  # or "best": the epoch whose metric is highest; its numbers and its adapter are kept
    save_steps: int = 0  # further checkpoints within an epoch; 0: one an epoch
    log_selections: int = 0  # steps from one recording of what VB-LoRA selects to the next; 0: none
    seeds: int = 1


@dataclass(frozen=True)
class SearchSettings:
    """Learning rates to choose from, each tried once on held-out training rows."""

    holdout: int = 0
    epochs: int = 0
    lr: list[dict[str, float]] = field(default_factory=list)


CHOICES = {
    "train.schedule": ("linear", "cosine", "constant", "constant_with_warmup"),
    "train.precision": ("fp32", "bf16", "fp16"),
    "train.report": ("last", "best"),
    "train.optimizer": ("adamw", "paged_adamw_32bit", "adamw_8bit", "selected_adamw"),
    "task.prompt": ("alpaca", "chat"),
    "model.quantise": ("none", "nf4", "int8"),
    "model.compute": ("fp32", "bf16", "fp16"),
}
# What a setting may be, in words and as a test that no infinity and no NaN passes.
AT_LEAST_1: Range = ("at least 1", lambda value: 1 <= value < math.inf)
AT_LEAST_0: Range = ("a finite number of at least 0", lambda value: 0 <= value < math.inf)
FINITE: Range = ("a finite number", math.isfinite)
RANGES: dict[str, Range] = {
    **dict.fromkeys(("task.max_length", "train.epochs", "train.batch_size"), AT_LEAST_1),
    **dict.fromkeys(("train.eval_batch_size", "train.seeds"), AT_LEAST_1),
    **dict.fromkeys(("task.train_size", "task.holdout", "train.save_steps", "train.weight_decay"), AT_LEAST_0),
    **dict.fromkeys(("search.holdout", "search.epochs"), AT_LEAST_0),
    **dict.fromkeys(("train.accumulation", "task.num_beams", "task.max_new_tokens"), AT_LEAST_1),
    **dict.fromkeys(("train.max_steps", "train.warmup_steps", "task.no_repeat_ngram_size"), AT_LEAST_0),
    **dict.fromkeys(("task.generate", "task.samples_per_class"), AT_LEAST_0),
    "train.log_selections": AT_LEAST_0,
    "task.length_penalty": FINITE,
    "model.dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "train.label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "train.warmup": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "train.max_grad_norm": ("a finite number above 0", lambda value: 0 < value < math.inf),
}
