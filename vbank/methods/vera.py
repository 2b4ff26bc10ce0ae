"""VeRA: one frozen random pair for the whole model, scaled row by row (Kopiczko et al. 2024, section 3)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbank.methods.base import Config, Method, Site, Storage, dense, is_number, product

SMALL_RANK = 64  # up to here b B is made, so that no (..., out) values are kept for the gradient of b
INITS = ("kaiming_uniform", "kaiming_normal", "uniform")


@dataclass(frozen=True)
class VeRA(Config):
    """dW = diag(b) B diag(d) A, with A and B random, frozen and shared (Kopiczko et al. 2024, equation 2).

    A: (rank, largest in), B: (largest out, rank), drawn in this order from a CPU generator with `seed`; a smaller
    layer takes their first columns and rows. d = `d_init` and b = 0 at the start. Trains rank + out scalars a
    layer and stores them and the seed.

    Args:
        rank: rank r of the pair.
        d_init: initial value of every entry of d (section 4.1: 0.1).
        seed: seed of the frozen pair, 0 to 2**63 - 1.
        init: distribution of the frozen pair (Table 6 b): "kaiming_uniform" with bound sqrt(6 / fan_in),
            "kaiming_normal" with deviation sqrt(2 / fan_in), "uniform" on [0, 0.1].
        shared: one pair for all layers, or one of its own for each (Table 7).
        train_b: train b; False is the paper's "only d": b is absent and d starts at zero (Table 6 a).
        train_d: train d; False is the paper's "only b": d is absent.
        dropout: dropout on x before A (keyword only).

    Raises:
        ValueError: a setting is out of its range, or neither b nor d is trained.

    Example:
        >>> import vbank
        >>> sites = [vbank.Site(f"layer{i}", 768, 768) for i in range(12)]
        >>> vbank.count_sites(vbank.VeRA(rank=256), sites).trainable
        12288
    """

    d_init: float = 0.1
    seed: int = 0
    init: str = "kaiming_uniform"
    shared: bool = True
    train_b: bool = True
    train_d: bool = True

    method: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_flag("shared", "train_b", "train_d")
        if not (is_number(self.d_init) and math.isfinite(self.d_init)):
            raise ValueError(f"VeRA: d_init is {self.d_init!r}; it must be a finite number")
        if self.train_b and self.train_d and self.d_init == 0:
            raise ValueError(
                "VeRA: d_init is 0, and b starts at 0, so no gradient would ever move them; choose 0.1, say"
            )
        self._require_count("seed", least=0)
        if self.seed >= 2**63:
            raise ValueError(f"VeRA: seed is {self.seed}; it must lie below 2**63")
        self._require_choice("init", INITS)
        if not (self.train_b or self.train_d):
            raise ValueError("VeRA: train_b and train_d are both False, so nothing would be trained; set one of them")

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        counts = {}
        if self.train_d:
            counts["d"] = dense(self.rank * len(sites), itemsize)
        if self.train_b:
            counts["b"] = dense(sum(s.out_features for s in sites), itemsize)
        return counts

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> VeRAMethod:
        return VeRAMethod(self, sites, dtype=dtype, device=device)


def largest(sites: Sequence[Site]) -> tuple[int, int]:
    """Sizes of a pair that serves all sites: the largest in_features and the largest out_features."""
    return max(s.in_features for s in sites), max(s.out_features for s in sites)


class ScaledPair(Method):
    """A pair A, B with scales: d on the rank side, b on the output side. VeRA freezes the pair, Tied-LoRA trains it."""

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """The site's unscaled A (rank, in) and B (out, rank)."""
        raise TypeError(f"{type(self).__name__} does not say where its pair comes from")

    def scales(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """The site's d (rank,) and b (out,); None where a scale is absent, that is, all ones."""
        raise TypeError(f"{type(self).__name__} does not name its scales")

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        (A, B), (d, b) = self.pair(name), self.scales(name)
        return A if d is None else d[:, None] * A, B if b is None else b[:, None] * B

    def update(self, x: Tensor, name: str, onto: Tensor | None = None) -> Tensor:
        (A, B), (d, b) = self.pair(name), self.scales(name)
        z = F.linear(self.dropout(x), A.to(x))  # (..., rank)
        z = z if d is None else z * d.to(z)
        if b is None:
            return product(z, B, self.scale, onto)
        if B.requires_grad or self.config.rank <= SMALL_RANK:  # B's gradient is wanted, or costs little
            return product(z, b[:, None] * B, self.scale, onto)
        # else scale the activations: rank + out products a token, and no product of the shape of B's gradient
        y = F.linear(z, B.to(z)) * b.to(z)  # (..., out_features)
        return y if onto is None else onto + y.to(onto.dtype)


class VeRAMethod(ScaledPair):
    """The frozen pair (regenerated from the seed, never stored) and each site's trained d and b."""

    config: VeRA

    def __init__(self, config: VeRA, sites: Sequence[Site], *, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__(config, sites)
        generator = torch.Generator().manual_seed(config.seed)
        shapes = [largest(sites)] if config.shared else [(s.in_features, s.out_features) for s in sites]
        meta = torch.empty(0, device=device).is_meta
        for i, (fan_in, out) in enumerate(shapes):
            for letter, shape in (("A", (config.rank, fan_in)), ("B", (out, config.rank))):
                value = torch.empty(shape, device="meta") if meta else draw(shape, config.init, generator)
                self.register_buffer(f"{letter}{i}", value.to(dtype=dtype, device=device), persistent=False)
        d_init = config.d_init if config.train_b else 0.0  # with b absent, d must carry the zero start
        kind = {"dtype": dtype, "device": device}
        self.d = nn.ParameterList(torch.full((config.rank,), d_init, **kind) for _ in sites if config.train_d)
        self.b = nn.ParameterList(torch.zeros(s.out_features, **kind) for s in sites if config.train_b)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        i = self.index[name]
        site, which = self.sites[i], 0 if self.config.shared else i
        A, B = getattr(self, f"A{which}"), getattr(self, f"B{which}")
        return A[:, : site.in_features], B[: site.out_features]

    def scales(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        i = self.index[name]
        return (self.d[i] if self.config.train_d else None, self.b[i] if self.config.train_b else None)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"d": list(self.d), "b": list(self.b)}
        return {name: parameters for name, parameters in groups.items() if parameters}

    def record(self) -> dict[str, Any]:
        return {"checksum": self.checksum()}

    def verify(self, record: Mapping[str, Any]) -> None:
        if record.get("checksum") != self.checksum():
            raise ValueError(
                f"VeRA: the frozen matrices drawn here from seed {self.config.seed} have another checksum than those of"
                " the file, so the adapter would give other outputs. This PyTorch draws other random numbers than the"
                " one that saved it: save again there with frozen=True, which stores the matrices"
            )

    def frozen_tensors(self) -> dict[str, Tensor]:
        """The frozen matrices by name, for a file that must not depend on the random generator."""
        return dict(self.named_buffers())

    def read_frozen(self, tensors: Mapping[str, Tensor]) -> None:
        """Take frozen matrices from a file instead of those drawn here."""
        for key, value in self.named_buffers():
            value.copy_(tensors[key])

    def checksum(self) -> str:
        """SHA-256 over the frozen matrices as float32 bytes."""
        digest = hashlib.sha256()
        for _, value in sorted(self.named_buffers()):
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()


def draw(shape: tuple[int, int], init: str, generator: torch.Generator) -> Tensor:
    """A frozen random matrix (rows, columns); the fan-in is the number of columns.

    Always drawn in float32 on the CPU, whatever PyTorch's defaults are: one seed is to give one pair.
    """
    fan_in, value = shape[1], torch.empty(shape, dtype=torch.float32, device="cpu")
    if init == "kaiming_uniform":
        bound = math.sqrt(6.0 / fan_in)
        return value.uniform_(-bound, bound, generator=generator)
    if init == "kaiming_normal":
        return value.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
    return value.uniform_(0.0, 0.1, generator=generator)
