"""How a sub-vector chooses from the bank: logits -> indices and weights.

Every function takes logits (N, h) and k and returns indices (N, j) and weights (N, j), one row a sub-vector, so that
the sub-vector is the weighted sum of j bank vectors. The weights of a row sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Selection = Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]

NOISE_STD = math.log(2)  # softplus(0), where the learned scale of Shazeer et al. 2017, equation 4, starts
TEMPERATURE = 1 / 3  # of the Gumbel-softmax in VB-LoRA's Table 5
SMALL_BANK = 128  # below, topk on a CPU sorts otherwise (h < 64 k) and takes three times as long as two passes of max


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type that weights are summed in: a sum to one needs more digits than half precision has."""
    return torch.promote_types(dtype, torch.float32)


def weigh(values: Tensor) -> Tensor:
    """Softmax of the chosen logits (N, k), taken in float32 at least."""
    return values.softmax(dim=-1, dtype=at_least_float32(values.dtype)).to(values.dtype)


def largest(logits: Tensor, k: int) -> Tensor:
    """Indices (N, k) of the k largest logits (N, h) of each row, in descending order of their values."""
    logits = logits.detach()
    if k != 2 or logits.shape[-1] >= SMALL_BANK or logits.device.type != "cpu":
        return logits.topk(k, dim=-1).indices
    first = logits.max(dim=-1, keepdim=True).indices
    second = logits.scatter(-1, first, -math.inf).max(dim=-1, keepdim=True).indices
    return torch.cat([first, second], dim=-1)


def top_k(logits: Tensor, k: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """w = softmax(TopK(logits, k)): the k largest logits, the others at -inf (VB-LoRA, equation 3.3).

    The indices come in descending order of weight, so weight 0 is the largest and never below 1/k.
    """
    indices = largest(logits, k)  # (N, k)
    return indices, weigh(logits.gather(-1, indices))


def select_all(logits: Tensor, k: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """A softmax over the whole bank: top-k with k = h (VB-LoRA, Table 5, "Select All")."""
    return top_k(logits, logits.shape[-1], training)


def noisy_top_k(logits: Tensor, k: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """Top-k of logits plus normal noise while training; plain top-k after (VB-LoRA, Table 5).

    The noise is epsilon * ln 2 with epsilon ~ N(0, 1). Shazeer et al. 2017 (equation 4) learn its scale, the softplus
    of further logits that start at zero; here it stays where it starts.
    """
    return top_k(logits + NOISE_STD * torch.randn_like(logits) if training else logits, k)


def _draw(logits: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """softmax((logits + Gumbel noise) / tau) over the whole bank (Jang et al. 2017, equation 2), indices 0 to h - 1.

    Noise and softmax are taken in float32 at least.
    """
    wide = logits.to(at_least_float32(logits.dtype))
    weights = F.gumbel_softmax(wide, tau=TEMPERATURE, hard=hard).to(logits.dtype)  # (N, h)
    return torch.arange(weights.shape[-1], device=weights.device).expand_as(weights), weights


def gumbel_softmax(logits: Tensor, k: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """Gumbel-softmax over the whole bank while training; top-k after (VB-LoRA, Table 5: tau = 1/3, k = 1 and 2)."""
    return _draw(logits, hard=False) if training else top_k(logits, k)


def straight_through(logits: Tensor, k: int, training: bool = False) -> tuple[Tensor, Tensor]:
    """One-hot draws with the Gumbel-softmax's gradient while training; top-k after (VB-LoRA, Table 5: tau = 1/3)."""
    return _draw(logits, hard=True) if training else top_k(logits, k)


STOCHASTIC = ("noisy_top_k", "gumbel_softmax", "straight_through")  # draw anew in every call while training

SELECTIONS: dict[str, Selection] = {
    "top_k": top_k,
    "select_all": select_all,
    "noisy_top_k": noisy_top_k,
    "gumbel_softmax": gumbel_softmax,
    "straight_through": straight_through,
}
