"""Measurements by others than the papers' authors: PEFT's own comparison of methods, and its pull request 3546.

`independent.toml` holds the figures and says where each was published.
"""

from __future__ import annotations

import datetime
import functools
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbank.suggestions import unknown

FILE = Path(__file__).parent / "independent.toml"


@dataclass(frozen=True)
class Run:
    """One published run: Llama 3.2 3B, trained on MetaMathQA for 5,000 steps, tested on GSM8K.

    Args:
        round: which round of runs, such as "2026-07"; "PR 3546" for the pull request.
        run: the result file's name, with / for --; of the pull request its settings.
        label: method and setting, as the book says it.
        colour: the method's key in `vbank.figures.METHOD_COLOURS`, "" if it is none of the book's.
        lr, decay: learning rate of all that is trained, and AdamW's weight decay.
        right, problems: test problems solved, and how many there were.
        loss: mean training loss of the last steps, in nats a token.
        made: the day of the run.
        source: address of what was published.
        seconds, bytes, trainable: time of training with its evaluations, size of the adapter's file, trained numbers;
            None where they were not published.
        num_vectors: of VB-LoRA's bank, None for other methods.
    """

    round: str
    run: str
    label: str
    colour: str
    lr: float
    decay: float
    right: int
    problems: int
    loss: float
    made: datetime.date
    source: str
    seconds: int | None = None
    bytes: int | None = None
    trainable: int | None = None
    num_vectors: int | None = None

    @property
    def accuracy(self) -> float:
        """Share of the problems solved."""
        return self.right / self.problems

    @property
    def error(self) -> float:
        """Standard error of the accuracy from the choice of problems alone: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.problems)


def runs(round: str | None = None) -> list[Run]:
    """The runs of PEFT's comparison that the book speaks of.

    Args:
        round: one of `rounds`; None for all, the oldest first.

    Raises:
        ValueError: an unknown round.
    """
    if round is not None and round not in rounds():
        raise ValueError(unknown("round", round, rounds()))
    return [run for run in _comparison() if round in (None, run.round)]


def rounds() -> list[str]:
    """The rounds of runs, the oldest first."""
    return list(dict.fromkeys(run.round for run in _comparison()))


def latest(name: str) -> Run:
    """The newest run of a result file, such as "vblora/llama-3.2-3B-default".

    Raises:
        ValueError: there is no such run here; close ones are suggested.
    """
    found = {run.run: run for run in _comparison()}  # a later round replaces the earlier
    if name not in found:
        raise ValueError(unknown("run", name, found))
    return found[name]


def repeats(name: str) -> list[Run]:
    """All rounds' runs of one result file, the oldest first: the same settings and seed, other versions of software.

    Raises:
        ValueError: there is no such run here; close ones are suggested.
    """
    latest(name)
    return [run for run in _comparison() if run.run == name]


def pull_request() -> list[Run]:
    """The five runs of VB-LoRA that PEFT's pull request 3546 reports, in its order."""
    content = _content()
    about = content["pull_request"]
    return [
        Run(
            round=f"PR {about['number']}",
            run=f"num_vectors={run['num_vectors']}, lr={run['lr']:g}",
            label=f"VB-LoRA, bank of {run['num_vectors']:,}",
            colour="VB-LoRA",
            decay=0.1,
            problems=content["problems"],
            made=about["made"],
            source=about["source"],
            **run,
        )
        for run in about["runs"]
    ]


@functools.cache
def _content() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@functools.cache
def _comparison() -> tuple[Run, ...]:
    content = _content()
    return tuple(
        Run(
            round=each["name"],
            problems=content["problems"],
            source=each["source"],
            num_vectors=256 if run["colour"] == "VB-LoRA" else None,
            **run,
        )
        for each in content["round"]
        for run in each["runs"]
    )
