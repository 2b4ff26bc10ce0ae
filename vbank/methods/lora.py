"""LoRA: each layer has its own A and B (Hu et al. 2022, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vbank.methods.base import Method, ScaledConfig, Site, Storage, dense, kaiming_bound


@dataclass(frozen=True)
class LoRA(ScaledConfig):
    """dW = (alpha / rank) * B A, with A and B the layer's own (Hu et al. 2022, equation 3).

    A ~ U(-1/sqrt(in), 1/sqrt(in)) and B = 0, so that the update is zero at the start. Trains and stores
    rank * (in + out) scalars a layer.

    Args:
        rank: rank r of the update.
        alpha: numerator of the scale alpha / rank; None means a scale of 1.
        dropout: dropout on x before A (keyword only).

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import vbank
        >>> sites = [vbank.Site(f"layer{i}", 768, 768) for i in range(12)]
        >>> vbank.count_sites(vbank.LoRA(rank=8, alpha=16), sites).trainable
        147456
    """

    alpha: float | None = None

    method: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        return {
            "A": dense(self.rank * sum(s.in_features for s in sites), itemsize),
            "B": dense(self.rank * sum(s.out_features for s in sites), itemsize),
        }

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> LoRAMethod:
        return LoRAMethod(self, sites, dtype=dtype, device=device)


class LoRAMethod(Method):
    """The layers' own pairs: A_i (rank, in) and B_i (out, rank)."""

    config: LoRA

    def __init__(self, config: LoRA, sites: Sequence[Site], *, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__(config, sites)
        r = config.rank
        self.A = nn.ParameterList(torch.empty(r, s.in_features, dtype=dtype, device=device) for s in self.sites)
        self.B = nn.ParameterList(torch.zeros(s.out_features, r, dtype=dtype, device=device) for s in self.sites)
        for A, site in zip(self.A, self.sites, strict=True):
            bound = kaiming_bound(site.in_features)
            nn.init.uniform_(A, -bound, bound)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        i = self.index[name]
        return self.A[i], self.B[i]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"A": list(self.A), "B": list(self.B)}
