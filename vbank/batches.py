"""Which rows make a batch, and which of them a process takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class LengthBuckets(Sampler[list[int]]):
    """Batches in a random order, each of rows of like length, so that little is padded.

    The order is a function of seed and epoch alone, which is what lets a run resume in the middle of an epoch. The rows
    of an optimizer step depend on `batch_size` * `accumulation` alone: half the batch, accumulated twice, is the same.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows of a batch.
        seed: of the order.
        accumulation: batches of an optimizer step.
        steps_per_pool: rows are sorted within a pool of this many steps, drawn anew each epoch.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, accumulation: int = 1, steps_per_pool: int = 16
    ) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.step = batch_size * accumulation  # rows
        self.pool = self.step * steps_per_pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.step)
        return whole * (self.step // self.batch_size) - (-rest // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=draw).tolist()
        steps = []
        for start in range(0, len(order), self.pool):
            pool = sorted(order[start : start + self.pool], key=self.lengths.__getitem__)
            steps += [pool[i : i + self.step] for i in range(0, len(pool), self.step)]
        full = [step for step in steps if len(step) == self.step]
        short = [step for step in steps if len(step) < self.step]  # at most one; it must come last
        drawn = torch.randperm(len(full), generator=draw).tolist()
        for step in [*(full[index] for index in drawn), *short]:
            for i in range(0, len(step), self.batch_size):
                yield step[i : i + self.batch_size]


class Share(Sampler[list[int]]):
    """Of each batch, the rows of one process: every `processes`-th, from its own rank on.

    A batch with fewer rows than processes goes whole to each of them, so that all take the same number of steps.
    """

    def __init__(self, batch_sampler: Any, rank: int, processes: int) -> None:
        self.batch_sampler, self.rank, self.processes = batch_sampler, rank, processes

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batch_sampler:
            yield batch[self.rank :: self.processes] if len(batch) >= self.processes else batch
