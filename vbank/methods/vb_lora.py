"""VB-LoRA: A and B cut into sub-vectors, each a top-k admixture of vectors from one bank (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbank.methods.base import Config, Method, Site, Storage, dense
from vbank.methods.chosen import Chosen
from vbank.methods.composition import Composition
from vbank.methods.selection import SELECTIONS, STOCHASTIC, at_least_float32, weigh


@dataclass(frozen=True)
class VBLoRA(Config):
    """dW = B A, whose rows and columns are cut into sub-vectors u = sum_s w_s alpha_s of bank vectors alpha_s.

    w = softmax(TopK(logits, k)) (Li et al. 2024, equation 3.3). The bank (h, b) serves the whole model; each of the
    N = rank * sum (in + out) / b sub-vectors has h logits of its own. Bank ~ U(-0.02, 0.02), logits ~ N(0, 0.01^2);
    the update is not zero at the start. Trains h b + N h scalars and stores h b + N (k - 1) and N k indices of
    1 byte (h <= 256) or 2 (section 3.4). There is no alpha: the bank sets the scale.

    Gradients have no gradients of their own (``create_graph=True``), for PyTorch has no second derivative of
    `embedding_bag`; `torch.func.grad`, `jacrev` and `vmap` over them work.

    Args:
        rank: rank r of the update.
        num_vectors: h, vectors in the bank; at most 65,536, what a 2-byte index can name.
        vector_length: b, length of a sub-vector; divides every in_features and out_features.
        top_k: k, bank vectors in one sub-vector; 1 to h.
        selection: "top_k", or one of Table 5's alternatives: "select_all", "noisy_top_k", "gumbel_softmax",
            "straight_through".
        bank_bound: the bank is drawn from U(-bank_bound, bank_bound).
        logits_std: the logits are drawn from N(0, logits_std^2).
        dropout: dropout on x before A (keyword only).

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import vbank
        >>> sites = [vbank.Site(f"layer{i}", 768, 768) for i in range(12)]
        >>> config = vbank.VBLoRA(rank=4, num_vectors=90, vector_length=256, top_k=2)
        >>> vbank.count_sites(config, sites).trainable, vbank.count_sites(config, sites).stored
        (48960, 23472.0)
    """

    num_vectors: int = 90
    vector_length: int = 256
    top_k: int = 2
    selection: str = "top_k"
    bank_bound: float = 0.02
    logits_std: float = 0.01

    method: ClassVar[str] = "vb-lora"
    title: ClassVar[str] = "VB-LoRA"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("num_vectors", "vector_length", "top_k")
        if self.num_vectors > 2**16:
            raise ValueError(f"VB-LoRA: num_vectors is {self.num_vectors}; an index names at most {2**16} vectors")
        if self.top_k > self.num_vectors:
            raise ValueError(
                f"VB-LoRA: top_k is {self.top_k} but the bank has num_vectors = {self.num_vectors}; a sub-vector cannot"
                " choose more vectors than there are"
            )
        self._require_choice("selection", SELECTIONS)
        self._require_positive("bank_bound", "logits_std")

    @property
    def stored_k(self) -> int:
        """Indices that one stored sub-vector needs: k, or h where all are selected."""
        return self.num_vectors if self.selection == "select_all" else self.top_k

    @property
    def index_dtype(self) -> torch.dtype:
        """The smallest unsigned type that names every bank vector."""
        return torch.uint8 if self.num_vectors <= 256 else torch.uint16

    def sub_vectors(self, site: Site) -> tuple[int, int]:
        """How many sub-vectors make up the site's A and its B."""
        return (
            self.rank * site.in_features // self.vector_length,
            self.rank * site.out_features // self.vector_length,
        )

    def check(self, sites: Sequence[Site]) -> None:
        super().check(sites)
        b = self.vector_length
        bad = [s for s in sites if s.in_features % b or s.out_features % b]
        if bad:
            sizes = sorted({size for s in sites for size in (s.in_features, s.out_features)})
            fitting = [n for n in range(1, sizes[0] + 1) if all(size % n == 0 for size in sizes)]
            raise ValueError(
                f"VB-LoRA: vector_length {b} does not divide the sizes of "
                + ", ".join(f"{s.name} ({s.in_features} -> {s.out_features})" for s in bad)
                + f"; lengths that divide all layers: {', '.join(map(str, fitting))}"
            )

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        h, k = self.num_vectors, self.stored_k
        subs = sum(sum(self.sub_vectors(s)) for s in sites)
        width = self.index_dtype.itemsize
        return {
            "bank": dense(h * self.vector_length, itemsize),
            "logits": Storage(subs * h, subs * (k - 1 + k * width / 4), subs * ((k - 1) * itemsize + k * width)),
        }

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> VBLoRAMethod:
        return VBLoRAMethod(self, sites, dtype=dtype, device=device)


def compose(indices: Tensor, weights: Tensor, bank: Tensor) -> Tensor:
    """All sub-vectors from the bank: row n is sum_j weights[n, j] * bank[indices[n, j]].

    indices, weights: (N, k); bank: (h, b); returns (N, b).
    """
    return F.embedding_bag(indices, bank, per_sample_weights=weights.to(bank.dtype), mode="sum")


def all_weights(rest: Tensor) -> Tensor:
    """Weights (N, k) from the k - 1 that a compact file holds: the largest, which stands first, is one minus them."""
    largest = (1.0 - rest.sum(dim=-1, keepdim=True, dtype=at_least_float32(rest.dtype))).clamp(min=0.0)
    return torch.cat([largest.to(rest), rest], dim=-1)


class VBLoRAMethod(Method):
    """The bank (h, b) and the logits (N, h) of all sub-vectors, composed once a pass for all sites.

    A method read from a compact file holds `indices` and `weights` in place of logits and cannot be trained.
    """

    config: VBLoRA
    bank: nn.Parameter
    logits: nn.Parameter | None
    chosen: Chosen | None  # what autograd differentiates in place of the logits, after `train_chosen`
    indices: Tensor
    weights: Tensor

    def __init__(self, config: VBLoRA, sites: Sequence[Site], *, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__(config, sites)
        self.spans: list[tuple[int, int, int]] = []  # rows of each site: A from..middle, B middle..end
        end = 0
        for site in self.sites:
            in_a, in_b = config.sub_vectors(site)
            self.spans.append((end, end + in_a, end + in_a + in_b))
            end += in_a + in_b
        kind = {"dtype": dtype, "device": device}
        bound, h, b = config.bank_bound, config.num_vectors, config.vector_length
        self.bank = nn.Parameter(torch.empty(h, b, **kind).uniform_(-bound, bound))
        self.logits = nn.Parameter(torch.empty(end, h, **kind).normal_(0.0, config.logits_std))
        self.chosen = None
        self.composition = Composition()

    @property
    def frozen(self) -> bool:
        return self.logits is None

    @property
    def selected(self) -> tuple[Tensor, Tensor]:
        """The choice that inference uses: indices (N, k) in descending order of weight, and weights (N, k)."""
        if self.logits is None:
            return self.indices.long(), all_weights(self.weights)
        return SELECTIONS[self.config.selection](self.logits, self.config.top_k, False)

    def compose(self, start: int = 0, end: int | None = None) -> Tensor:
        """The sub-vectors start..end of all sites, shape (end - start, b)."""
        if self.logits is None:
            indices, weights = self.selected
            indices, weights = indices[start:end], weights[start:end]
        elif self.chosen is not None:
            if self.chosen.k != self.config.top_k:
                raise ValueError(
                    f"VB-LoRA: top_k is {self.config.top_k}, but {self.chosen.k} logits of each sub-vector are trained;"
                    " make a new SelectedAdamW"
                )
            self.chosen.follow(self.logits)
            indices, weights = self.chosen.indices[start:end], weigh(self.chosen.values[start:end])
        else:
            select = SELECTIONS[self.config.selection]
            indices, weights = select(self.logits[start:end], self.config.top_k, self.training)
        return compose(indices, weights, self.bank)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        i = self.index[name]
        site, r = self.sites[i], self.config.rank
        u_a, u_b = self.composition.rows(self, i)  # the sub-vectors of A (r in/b, b) and of B (out r/b, b)
        A = u_a.reshape(r, site.in_features)
        B = u_b.view(-1, r, self.config.vector_length).transpose(0, 1).reshape(r, site.out_features).T
        return A, B

    @property
    def draws(self) -> bool:
        """Whether the next composition depends on random numbers."""
        return self.training and self.config.selection in STOCHASTIC

    def begin_pass(self) -> None:
        self.composition.begin()

    def end_pass(self) -> None:
        self.composition.end()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"bank": [self.bank]}
        return groups if self.logits is None else groups | {"logits": [self.logits]}

    def leaves(self) -> list[nn.Parameter]:
        return super().leaves() if self.chosen is None else [self.bank, self.chosen.values]

    def train_chosen(self, on: bool = True) -> None:
        """Let autograd differentiate the k chosen logits of each sub-vector, (N, k), in place of all, (N, h).

        For an optimizer that knows it, such as `vbank.SelectedAdamW`: it must write its steps into the logits and
        choose anew. The gradients are those of the logits; the ones left out are zero.
        """
        if self.logits is None or on == (self.chosen is not None):
            return
        if on:
            self.chosen = Chosen(self.logits, self.config.top_k)
            self.chosen.values.requires_grad_(self.logits.requires_grad)
            self.logits.requires_grad_(False)
            self.logits.grad = None
        else:
            assert self.chosen is not None
            self.logits.requires_grad_(self.chosen.values.requires_grad)
            self.chosen = None

    def choose(self) -> None:
        """After `train_chosen`, choose anew from the logits as they are: for writes that no forward notices.

        Raises:
            ValueError: gradients of the former choice wait for a step.
        """
        if self.logits is not None and self.chosen is not None:
            self.chosen.refuse_waiting()
            self.chosen.choose(self.logits)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        written = f"{prefix}logits" in state_dict
        if written and self.chosen is not None:
            self.chosen.refuse_waiting()  # before anything is changed
        super()._load_from_state_dict(state_dict, prefix, *args)
        if written:
            self.choose()  # a compiled forward would not notice

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.chosen is not None and self.chosen.values.grad is None:
            self.choose()  # likewise; where gradients wait, the next forward says so
        return self

    def tensors(self) -> dict[str, Tensor]:
        if self.logits is None:
            raise ValueError(
                "VB-LoRA: this adapter was loaded from a compact file, which holds no logits, so a resumable file"
                ' cannot be written; save it with form="compact", or load it with trainable=True'
            )
        return {"bank": self.bank, "logits": self.logits}

    def compact_tensors(self) -> dict[str, Tensor]:
        """Bank, indices in the smallest unsigned type, and the k - 1 smaller weights (Li et al. 2024, section 3.4).

        The largest weight is left out, because 1 minus the others then loses no digits. Where k is of the order of the
        inverse of the precision (hundreds, in bfloat16), the rounded others can exceed 1; it is then taken as 0.
        """
        if self.logits is None:
            return {"bank": self.bank, "indices": self.indices, "weights": self.weights}
        indices, weights = self.selected
        return {
            "bank": self.bank,
            "indices": indices.to(self.config.index_dtype),
            "weights": weights[:, 1:].contiguous(),
        }

    def reopened(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `tensors` would hold, from `compact_tensors`: logits that make the stored choice, with its weights.

        A softmax sees differences alone, so the chosen logits of a sub-vector are z_j = c + log w_j. A weight below
        the rounding of one counts as that rounding, which the outputs do not show and the logarithm can bear. No file
        tells what the other logits were: they are the ones that this method was drawn with, so the queue behind the
        chosen starts anew. The constant c puts the smallest chosen logit above all others of its sub-vector by a third
        of the median step from one chosen logit to the next, at least by `logits_std`. That is about the distance in
        trained adapters, where it grows with the weights' differences: many steps of the optimizer, but not all.
        """
        wide, k = at_least_float32(self.bank.dtype), tensors["indices"].shape[-1]
        weights = all_weights(tensors["weights"].to(wide))  # (N, k)
        steps = weights.clamp(min=torch.finfo(wide).eps / 2).log()
        above = steps - steps.amin(dim=-1, keepdim=True)  # the smallest chosen logit at 0
        margin = max(self.config.logits_std, above.amax(dim=-1).median().item() / (3 * max(k - 1, 1)))
        with torch.no_grad():
            others = self.tensors()["logits"].to(wide).scatter(-1, tensors["indices"].long(), -torch.inf)  # (N, h)
            highest = others.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)  # no others where k = h
            logits = others.scatter(-1, tensors["indices"].long(), highest + margin + above)
        return {"bank": tensors["bank"], "logits": logits.to(self.bank.dtype)}

    def read(self, tensors: Mapping[str, Tensor], form: str) -> None:
        if form == "resumable":
            super().read(tensors, form)
            return
        dtype = self.bank.dtype
        self.bank = nn.Parameter(tensors["bank"].to(dtype, copy=True), requires_grad=False)  # it may have been meta
        self.logits = None
        self.register_buffer("indices", tensors["indices"])
        self.register_buffer("weights", tensors["weights"].to(dtype))
        self.composition = Composition()
