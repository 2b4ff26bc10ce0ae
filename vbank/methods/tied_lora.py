"""Tied-LoRA: one trained pair for the whole model, scaled row by row (Renduchintala et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vbank.methods.base import ScaledConfig, Site, Storage, dense, kaiming_bound
from vbank.methods.vera import ScaledPair, largest


@dataclass(frozen=True)
class TiedLoRA(ScaledConfig):
    """dW = (alpha / rank) * diag(v) B diag(u) A, with A and B trained and shared by all layers.

    A: (rank, largest in) is drawn as LoRA's, B: (largest out, rank) = 0, u: (rank,) and v: (out,) are ones a layer.
    A smaller layer takes the pair's first columns and rows. Trains and stores rank * (largest in + largest out)
    + sum of (rank + out) scalars (Renduchintala et al. 2024; VB-LoRA's Table 1 counts it with square layers).

    Args:
        rank: rank r of the pair.
        alpha: numerator of the scale alpha / rank; None means a scale of 1.
        dropout: dropout on x before A (keyword only).

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import vbank
        >>> sites = [vbank.Site(f"layer{i}", 768, 768) for i in range(12)]
        >>> vbank.count_sites(vbank.TiedLoRA(rank=8), sites).trainable
        21600
    """

    alpha: float | None = None

    method: ClassVar[str] = "tied-lora"
    title: ClassVar[str] = "Tied-LoRA"

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        in_features, out_features = largest(sites)
        return {
            "A": dense(self.rank * in_features, itemsize),
            "B": dense(self.rank * out_features, itemsize),
            "u": dense(self.rank * len(sites), itemsize),
            "v": dense(sum(s.out_features for s in sites), itemsize),
        }

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> TiedLoRAMethod:
        return TiedLoRAMethod(self, sites, dtype=dtype, device=device)


class TiedLoRAMethod(ScaledPair):
    """The trained pair and each site's scales u (rank,) and v (out,)."""

    config: TiedLoRA

    def __init__(self, config: TiedLoRA, sites: Sequence[Site], *, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__(config, sites)
        in_features, out_features = largest(sites)
        kind = {"dtype": dtype, "device": device}
        bound = kaiming_bound(in_features)
        self.A = nn.Parameter(torch.empty(config.rank, in_features, **kind).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(out_features, config.rank, **kind))
        self.u = nn.ParameterList(torch.ones(config.rank, **kind) for _ in self.sites)
        self.v = nn.ParameterList(torch.ones(s.out_features, **kind) for s in self.sites)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        site = self.sites[self.index[name]]
        return self.A[:, : site.in_features], self.B[: site.out_features]

    def scales(self, name: str) -> tuple[Tensor, Tensor]:
        i = self.index[name]
        return self.u[i], self.v[i]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"A": [self.A], "B": [self.B], "u": list(self.u), "v": list(self.v)}
