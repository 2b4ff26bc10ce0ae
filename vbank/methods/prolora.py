"""PRoLoRA: a small chunk repeated along the hidden dimension, each copy rotated along the rank (Wang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vbank.methods.base import Method, ScaledConfig, Site, Storage, dense, kaiming_bound


@dataclass(frozen=True)
class PRoLoRA(ScaledConfig):
    """dW = (alpha / rank) * [B_u | B_0; B_1; ...] [A_u; A_0 | A_1 | ...] (Wang et al. 2024, equation 4).

    A_i = roll(A_0, i * s_A) and B_i = roll(B_0, i * s_B) along the rank, with strides s = max(floor(R / share), 1)
    over the R = rank - unshared_rank shared ranks. A_0: (R, ceil(in / share_a)), B_0: (ceil(out / share_b), R); the
    last copy is trimmed. CLoRA is ``unshared_rank=0, rotate=False``, RoLoRA ``unshared_rank=0``, and LoRA
    ``unshared_rank=rank``. Trains and stores u (in + out) + R (ceil(in / share_a) + ceil(out / share_b)) a layer.

    Args:
        rank: rank r of the update, shared and unshared together.
        alpha: numerator of the scale alpha / rank; None means a scale of 1.
        unshared_rank: u, the ranks that keep rows and columns of their own; 0 to rank.
        share_a: c_A, how many copies of the chunk make up A; m in the paper.
        share_b: c_B, how many copies of the chunk make up B; n in the paper.
        rotate: rotate the copies; False leaves them equal (Table 2, "-r").
        rectified: draw the chunk of A with the whole matrix's fan-in (equation 5); False takes the chunk's own
            (Table 2, "-i").
        dropout: dropout on x before A (keyword only).

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import vbank
        >>> sites = [vbank.Site(f"layer{i}", 768, 768) for i in range(12)]
        >>> vbank.count_sites(vbank.PRoLoRA(rank=8, unshared_rank=1, share_a=8, share_b=8), sites).trainable
        34560
    """

    unshared_rank: int = 0
    share_a: int = 1
    share_b: int = 1
    alpha: float | None = None
    rotate: bool = True
    rectified: bool = True

    method: ClassVar[str] = "prolora"
    title: ClassVar[str] = "PRoLoRA"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("unshared_rank", least=0)
        self._require_count("share_a", "share_b")
        self._require_flag("rotate", "rectified")
        if self.unshared_rank > self.rank:
            raise ValueError(
                f"PRoLoRA: unshared_rank is {self.unshared_rank}, more than rank {self.rank}; the unshared ranks are"
                " part of the rank, so choose 0 to rank"
            )

    @property
    def shared_rank(self) -> int:
        """R = rank - unshared_rank."""
        return self.rank - self.unshared_rank

    def check(self, sites: Sequence[Site]) -> None:
        super().check(sites)
        short = [
            f"{s.name} ({size} {side})"
            for s in sites
            for size, share, side in (
                (s.in_features, self.share_a, "inputs, share_a"),
                (s.out_features, self.share_b, "outputs, share_b"),
            )
            if share > size
        ]
        if self.shared_rank and short:
            raise ValueError(
                f"PRoLoRA: share_a {self.share_a} and share_b {self.share_b} exceed the size that they divide in"
                f" {', '.join(short)}; choose smaller ones or leave these layers out"
            )

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        u, shared = self.unshared_rank, self.shared_rank
        a = sum(u * s.in_features + shared * math.ceil(s.in_features / self.share_a) for s in sites)
        b = sum(u * s.out_features + shared * math.ceil(s.out_features / self.share_b) for s in sites)
        return {"A": dense(a, itemsize), "B": dense(b, itemsize)}

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> PRoLoRAMethod:
        return PRoLoRAMethod(self, sites, dtype=dtype, device=device)


def order_of(rank: int, share: int, rotate: bool) -> Tensor:
    """Which row of the chunk each row of each copy is, (R * share,): row j of copy i is row j - i * stride.

    stride = max(floor(R / share), 1) along the rank (Wang et al. 2024, text after equation 3, with R for r as after
    equation 4), and 0 without rotation.
    """
    stride = max(rank // share, 1) if rotate else 0
    return ((torch.arange(rank)[:, None] - torch.arange(share) * stride) % rank).flatten()


def repeat(chunk: Tensor, length: int, order: Tensor) -> Tensor:
    """Copies of a chunk (R, width) side by side, each rolled along the rank as `order` says, cut to (R, length)."""
    if len(order) == chunk.shape[0]:  # one copy
        return chunk
    return chunk.index_select(0, order).view(chunk.shape[0], -1)[:, :length]


class PRoLoRAMethod(Method):
    """Each site's chunks A_0, B_0 and its unshared A_u, B_u."""

    config: PRoLoRA
    order_a: Tensor
    order_b: Tensor

    def __init__(self, config: PRoLoRA, sites: Sequence[Site], *, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__(config, sites)
        u, shared = config.unshared_rank, config.shared_rank
        kind = {"dtype": dtype, "device": device}
        meta = torch.empty(0, device=device).is_meta  # shapes alone, of any rank
        for side, share in (("order_a", config.share_a), ("order_b", config.share_b)):
            order = torch.empty(shared * share, dtype=torch.long, device="meta" if meta else None)
            order = order_of(shared, share, config.rotate) if shared and not meta else order
            self.register_buffer(side, order.to(device), persistent=False)
        self.A_unshared, self.B_unshared = nn.ParameterList(), nn.ParameterList()
        self.A_chunk, self.B_chunk = nn.ParameterList(), nn.ParameterList()
        for site in self.sites:
            bound = kaiming_bound(site.in_features)
            if u:  # no empty parameters: an optimizer step or DDP would wait for their gradients
                self.A_unshared.append(nn.Parameter(torch.empty(u, site.in_features, **kind).uniform_(-bound, bound)))
                self.B_unshared.append(nn.Parameter(torch.zeros(site.out_features, u, **kind)))
            if shared:
                width_a = math.ceil(site.in_features / config.share_a)
                width_b = math.ceil(site.out_features / config.share_b)
                bound = bound if config.rectified else kaiming_bound(width_a)
                self.A_chunk.append(nn.Parameter(torch.empty(shared, width_a, **kind).uniform_(-bound, bound)))
                self.B_chunk.append(nn.Parameter(torch.zeros(width_b, shared, **kind)))

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        i, config = self.index[name], self.config
        site, A, B = self.sites[i], [], []
        if config.unshared_rank:
            A.append(self.A_unshared[i])  # (u, in)
            B.append(self.B_unshared[i])  # (out, u)
        if config.shared_rank:
            A.append(repeat(self.A_chunk[i], site.in_features, self.order_a))  # (R, in)
            B.append(repeat(self.B_chunk[i].T, site.out_features, self.order_b).T)  # (out, R)
        return (A[0], B[0]) if len(A) == 1 else (torch.cat(A), torch.cat(B, dim=1))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"A": [*self.A_unshared, *self.A_chunk], "B": [*self.B_unshared, *self.B_chunk]}
