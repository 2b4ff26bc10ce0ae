"""The chosen logits of every sub-vector as parameters of their own, so that autograd never makes a gradient (N, h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from vbank.methods.selection import largest


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
        self.made_from: tuple[Tensor, int] | None = None  # the logits and their version; a tuple is no parameter
        self.choose(logits)

    def choose(self, logits: Tensor) -> None:
        """Choose anew. In place, so that a backward through the former choice fails and is not misread."""
        with torch.no_grad():
            indices = largest(logits, self.k)  # (N, k), in descending order
            self.values.copy_(logits.gather(-1, indices))
            self.indices.copy_(indices)
        self.made_from = (logits, logits._version)

    def follow(self, logits: Tensor) -> None:
        """Choose anew if the logits are another tensor, or of another version: one that was written to.

        Not noticed: a write through `.data`, which raises no version, and, by a compiled forward, any write.

        Raises:
            ValueError: gradients of the former choice wait for a step.
        """
        if torch.compiler.is_compiling():
            return
        if self.made_from is None or self.made_from[0] is not logits or self.made_from[1] != logits._version:
            self.refuse_waiting()
            self.choose(logits)

    def refuse_waiting(self) -> None:
        """Refuse another choice while gradients of this one wait.

        Raises:
            ValueError: they do.
        """
        if self.values.grad is not None:
            raise ValueError(
                "the logits change while gradients of the former choice wait; call optimizer.step() or"
                " optimizer.zero_grad(set_to_none=True) before that"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.indices = fn(self.indices)
        self.made_from = None  # another type may order the logits otherwise
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: all of it follows from the logits."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, and nothing is missed."""


def dense_name(name: str) -> str:
    """The name of the parameter that holds the truth: for the values of `Chosen` that of the logits, else `name`."""
    whole = name.removesuffix("chosen.values")
    return name if whole == name else f"{whole}logits"
