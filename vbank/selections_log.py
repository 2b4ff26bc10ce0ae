"""What VB-LoRA's sub-vectors select while they are trained, recorded in one small file.

A recording has the k indices of every sub-vector and their weights. The file keeps of each recording only the
sub-vectors that choose other vectors than before, or whose weights have moved by more than 8/255 since they were last
kept; weights are rounded to 1/255. Beside them stands the bank before and after training, in float16.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vbank import shards
from vbank.methods.base import Method
from vbank.methods.selection import SELECTIONS
from vbank.methods.vb_lora import VBLoRAMethod, all_weights

if TYPE_CHECKING:
    from vbank.recipes import Recipe

FORMAT = 1
FILE = "selections.safetensors"  # in a checkpoint; beside a record of the ledger it bears the record's name
ABOUT = "vbank.selections"  # key of the description among the file's metadata
TENSORS = ("steps", "kept", "indices", "weights", "bank_before", "bank_after")
LEVELS, TOLERANCE = 255, 8

Recording = tuple[Tensor, Tensor, Tensor]  # which rows it keeps (N,), their indices and their rounded weights


def refuse_impossible(recipe: Recipe) -> None:
    """Refuse, before anything is read, to log a method that selects nothing.

    Raises:
        ValueError: the method is not VB-LoRA, or selects every vector.
    """
    config = recipe.method.config()
    if config is None or config.method != "vb-lora":
        raise ValueError(f"{recipe.name}: train.log_selections is for vb-lora, not {recipe.method.name}; set it to 0")
    if recipe.method.settings.get("selection") == "select_all":
        raise ValueError(f"{recipe.name}: select_all leaves nothing for train.log_selections to tell; set it to 0")


@dataclass(frozen=True)
class Selections:
    """A log as `read` gives it: T recordings of N sub-vectors, each with k of h bank vectors of length b.

    Args:
        steps: (T,) steps of the optimizer done at each recording, ascending; the first is 0.
        indices: (T, N, k) the bank vectors chosen, in descending order of weight.
        weights: (T, N, k) their weights, each but the largest to within 1/30; the largest is one minus the others.
        bank_before, bank_after: (h, b) the bank at the first and at the last recording, rounded to float16.
        sites: names of the adapted layers, in order.
        spans: rows of each site: A's from the first number to the second, B's from there to the third.
    """

    steps: Tensor
    indices: Tensor
    weights: Tensor
    bank_before: Tensor
    bank_after: Tensor
    sites: tuple[str, ...]
    spans: tuple[tuple[int, int, int], ...]

    @property
    def num_vectors(self) -> int:
        """h, vectors in the bank."""
        return self.bank_after.shape[0]


class Recorder:
    """Records a method's selections during training, and goes on from the file that a stopped run left.

    Args:
        method: what `vbank.attach(...).method` is for VB-LoRA.
        every: steps of the optimizer from one recording to the next.

    Raises:
        ValueError: the method has no logits that could change.

    Example:
        >>> import torch, vbank
        >>> from vbank import selections_log
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> config = vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4, top_k=2)
        >>> recorder = selections_log.Recorder(vbank.attach(model, config, ["0"]).method, every=1)
        >>> recorder.record(0)  # then after each step of the optimizer
        >>> recorder.log().indices.shape  # recordings, sub-vectors, k
        torch.Size([1, 8, 2])
    """

    def __init__(self, method: Method, every: int) -> None:
        if not isinstance(method, VBLoRAMethod) or method.logits is None:
            raise ValueError(f"a log of selections is for a VB-LoRA in training, not for this {method.config.title}")
        self.method, self.logits, self.every = method, method.logits, every
        self.steps: list[int] = []
        self.kept: list[Recording] = []
        self.last: tuple[Tensor, Tensor] | None = None  # indices (N, k) and weights (N, k - 1) as last kept
        self.banks: list[Tensor] = []  # first and last

    def record(self, step: int) -> None:
        """Look at the selection; to be called by all processes together."""
        config = self.method.config
        with torch.no_grad():
            logits, bank = shards.whole(self.logits), shards.whole(self.method.bank)
            indices, weights = SELECTIONS[config.selection](logits, config.top_k, False)  # as at inference: no noise
        indices = indices.to("cpu", torch.int32)
        rounded = (weights[:, 1:].float() * LEVELS).round().to("cpu", torch.uint8)
        rows = torch.ones(len(indices), dtype=torch.bool)
        if self.last is not None:
            moved = (rounded.int() - self.last[1].int()).abs() > TOLERANCE
            rows = (indices != self.last[0]).any(1) | moved.any(1)
        self.steps.append(step)
        self.kept.append((rows, indices[rows], rounded[rows]))
        if self.last is not None:  # what was not kept stands as it was, so that small steps add up
            indices, rounded = (
                torch.where(rows[:, None], *pair) for pair in zip((indices, rounded), self.last, strict=True)
            )
        self.last = indices, rounded
        self.banks = [*self.banks[:1], bank.to("cpu", torch.float16, copy=True)]

    def log(self) -> Selections:
        """What was recorded so far, as `read` gives it from the file that `write` would write.

        Raises:
            ValueError: nothing was recorded yet.
        """
        if not self.kept:
            raise ValueError("nothing was recorded yet; call record(step) before you ask for the log")
        sites = tuple(site.name for site in self.method.sites)
        before, after = (bank.float() for bank in (self.banks[0], self.banks[-1]))
        return _selections(self.steps, self.kept, before, after, sites, self.method.spans)

    def write(self, path: Path) -> None:
        """Write what was recorded so far; the same recordings give the same bytes."""
        rows, indices, weights = zip(*self.kept, strict=True)
        values = {
            "steps": torch.tensor(self.steps, dtype=torch.int32),
            "kept": torch.from_numpy(np.packbits(torch.stack(rows).numpy(), axis=1)),
            "indices": torch.cat(indices).to(self.method.config.index_dtype),
            "weights": torch.cat(weights),
            "bank_before": self.banks[0],
            "bank_after": self.banks[-1].clone(),  # two tensors of a file must not be one
        }
        about = {
            "format": FORMAT,
            "every": self.every,
            "sites": [site.name for site in self.method.sites],
            "spans": self.method.spans,
        }
        save_file(values, path, metadata={ABOUT: json.dumps(about)})

    def resume(self, path: Path) -> None:
        """Go on from a file that `write` left in a checkpoint.

        Raises:
            ValueError: the checkpoint has no such file, or a damaged one.
        """
        if not path.is_file():
            raise ValueError(
                f"{path.parent} was written without train.log_selections; set it to 0, or remove {path.parent.parent}"
                " and run again"
            )
        tensors, _ = _tensors(path)
        self.steps = tensors["steps"].tolist()
        self.kept = list(_recordings(tensors))
        indices, weights = _filled(self.kept)
        self.last, self.banks = (indices[-1], weights[-1]), [tensors["bank_before"], tensors["bank_after"]]

    def summary(self, path: Path) -> dict[str, int]:
        """What the ledger says about the file."""
        return {"every": self.every, "recordings": len(self.steps), "bytes": path.stat().st_size}


def read(path: str | os.PathLike[str]) -> Selections:
    """Read a log.

    Args:
        path: what a run with `train.log_selections` left beside its record, ``<run>.safetensors``.

    Raises:
        ValueError: the file is missing, damaged or no such log; the message names it.

    Example:
        >>> import vbank
        >>> from vbank import selections_log
        >>> config = vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4, top_k=2)
        >>> recorder = selections_log.Recorder(config.build([vbank.Site("0", 8, 8)]), every=10)
        >>> recorder.record(0)
        >>> recorder.write("run.safetensors")
        >>> selections_log.read("run.safetensors").num_vectors
        6
    """
    tensors, about = _tensors(Path(path))
    before, after = (tensors[key].float() for key in ("bank_before", "bank_after"))
    return _selections(tensors["steps"], _recordings(tensors), before, after, about["sites"], about["spans"])


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its description, checked as far as the rest relies on it."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such log of selections; make one with --set train.log_selections=10")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {key: file.get_tensor(key) for key in TENSORS}
        tensors["indices"] = tensors["indices"].int()  # of uint16 there are few operations
        known, (*_, (_, _, count)) = about["format"] == FORMAT, about["spans"]
        tensors["kept"] = torch.from_numpy(np.unpackbits(tensors["kept"].numpy(), axis=1, count=count)).bool()
        recordings, choices = len(tensors["steps"]), int(tensors["kept"].sum())
        whole = 0 < recordings == len(tensors["kept"]) and bool(tensors["kept"][0].all())
        whole &= choices == len(tensors["indices"]) == len(tensors["weights"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no log of selections; restore it, or remove it and run again") from None
    if not known:
        raise ValueError(f"{path} has format {about['format']}, this version reads {FORMAT}; update vbank")
    if not whole:
        raise ValueError(f"{path} is damaged; restore it, or remove it and run again")
    return tensors, about


def _recordings(tensors: dict[str, Tensor]) -> Iterator[Recording]:
    counts = tensors["kept"].sum(1).tolist()
    return zip(tensors["kept"], tensors["indices"].split(counts), tensors["weights"].split(counts), strict=True)


def _filled(recordings: Iterable[Recording]) -> tuple[Tensor, Tensor]:
    """Of all recordings: indices (T, N, k) and rounded weights (T, N, k - 1)."""
    (_, indices, weights), *later = recordings
    filled = [(indices, weights)]
    for rows, *new in later:
        indices, weights = indices.clone(), weights.clone()
        indices[rows], weights[rows] = new
        filled.append((indices, weights))
    first, second = zip(*filled, strict=True)
    return torch.stack(first), torch.stack(second)


def _selections(
    steps: Any, recordings: Iterable[Recording], before: Tensor, after: Tensor, sites: Iterable[str], spans: Any
) -> Selections:
    indices, rounded = _filled(recordings)
    weights = all_weights(rounded.flatten(0, 1).float() / LEVELS).view(indices.shape)
    rows = tuple((start, middle, end) for start, middle, end in spans)
    return Selections(torch.as_tensor(steps).long(), indices.long(), weights, before, after, tuple(sites), rows)
