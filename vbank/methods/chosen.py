"""The chosen logits of every sub-vector as parameters of their own, so that autograd never makes a gradient (N, h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Chosen(nn.Module):
    """The k largest of the logits (N, h) of each sub-vector: their values, a leaf (N, k), and which they are.

    Between two optimizer steps logits do not change, so neither does the choice, and gradients of several batches add
    up in the same k places. The values are a copy: the logits hold the truth, and what is saved. They are a parameter,
    so that data parallelism averages their gradients and `clip_grad_norm_` finds them; a state_dict leaves them out.

    Args:
        logits: (N, h).
        k: how many are chosen.
    """

    indices: Tensor

    def __init__(self, logits: Tensor, k: int) -> None:
        super().__init__()
        self.k = k
        self.values = nn.Parameter(logits.new_empty(len(logits), k))
        # Neither parameter nor buffer: data parallelism would send a buffer into the graph of a former forward.
        self.indices = torch.empty(len(logits), k, dtype=torch.long, device=logits.device)
        self.version: int | None = None  # of the logits that were chosen from
        self.choose(logits)

    def choose(self, logits: Tensor) -> None:
        """Choose anew. In place, so that a backward through the former choice fails and is not misread."""
        with torch.no_grad():
            values, indices = logits.topk(self.k, dim=-1)  # (N, k) both, in descending order
            self.values.copy_(values)
            self.indices.copy_(indices)
        self.version = logits._version

    def follow(self, logits: Tensor) -> None:
        """Choose anew if the logits were written to, such as by `load_state_dict`.

        Raises:
            ValueError: gradients of the former choice wait for a step.
        """
        if torch.compiler.is_compiling() or self.version == logits._version:
            return
        if self.values.grad is not None:
            raise ValueError(
                "the logits were changed while gradients of the former choice wait; call optimizer.step() or"
                " optimizer.zero_grad() before the change"
            )
        self.choose(logits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.indices = fn(self.indices)
        self.version = None  # another type may order the logits otherwise
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: all of it follows from the logits."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, and nothing is missed."""


def dense_name(name: str) -> str:
    """The name of the parameter that holds the truth: for the values of `Chosen` that of the logits, else `name`."""
    whole = name.removesuffix("chosen.values")
    return name if whole == name else f"{whole}logits"
