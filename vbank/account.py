"""What a training run will need, before it is started: bytes on the device, and time.

Every term is a formula over shapes; nothing is allocated. Left out: what the device's driver and libraries hold
(0.3 to 0.6 GiB of a GPU) and what the allocator keeps in reserve, which `Account.fits` allows for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vbank import activations, architectures
from vbank.activations import CAUSAL, GATED, Run, Shape
from vbank.methods.base import Config, Site
from vbank.methods.vb_lora import VBLoRA
from vbank.recipes import BASELINES
from vbank.selected_adamw import state_bytes
from vbank.suggestions import unknown
from vbank.targets import Targets, resolve

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number
# Bytes of optimizer state a trained number: two averages in float32, or in 8 bits with a float32 for 256 of them. The
# latter is a lower bound: bitsandbytes keeps a tensor of fewer than 4,096 numbers, as most of VeRA's are, in 32 bits.
STATES = {"adamw": 8.0, "paged_adamw_32bit": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "selected_adamw": 8.0}
EVER_CHOSEN = 64  # see `memory`
QUANTISE = ("none", "nf4", "int8")
ATTENTION = ("sdpa", "eager")
MIB, GIB = 2**20, 2**30
# Dense matrix products in FLOP/s (no sparsity), of the data sheets' SXM cards; float32 without TF32, PyTorch's default.
DEVICES = {
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
}


@dataclass(frozen=True)
class Account:
    """Bytes that a run holds at its peak. Printing it gives a table.

    Args:
        title: what was asked for.
        held: what is there at the peak whatever the step does: weights, adapter, gradients, optimizer, activations.
        passing: what comes and goes: the logits with their gradients, and the backward of one layer. They are not
            there at the same time, so that only the larger counts.
        trained: numbers that the optimizer moves.
        pageable: bytes of optimizer state that a paged optimizer can put into the computer's memory.
    """

    title: str
    held: dict[str, int]
    passing: dict[str, int]
    trained: int
    pageable: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes at the peak: all that is held, and the larger of what passes."""
        return sum(self.held.values()) + max(self.passing.values())

    def fits(self, gib: float, reserve: float = 1.0) -> bool:
        """Whether the peak fits a device of `gib` GiB, `reserve` of them for driver, libraries and fragments."""
        return self.total <= (gib - reserve) * GIB

    def as_dict(self) -> dict[str, Any]:
        """The account as plain JSON values, in bytes."""
        named = {"held": self.held, "passing": self.passing, "total": self.total, "pageable": self.pageable}
        return {"settings": self.settings, "trained": self.trained, **named}

    def __str__(self) -> str:
        larger = max(self.passing, key=self.passing.__getitem__)
        rows = [(name, size, "") for name, size in self.held.items()]
        rows += [(name, size, "" if name == larger else "  (not at the peak)") for name, size in self.passing.items()]
        width = max(len(name) for name, *_ in rows)
        lines = [self.title, f"{'':{width}}  {'MiB':>10}"]
        lines += [f"{name:{width}}  {size / MIB:>10,.1f}{note}" for name, size, note in rows]
        lines += ["-" * (width + 12), f"{'at the peak':{width}}  {self.total / MIB:>10,.1f}"]
        if self.pageable:
            lines.append(f"{'of it pageable':{width}}  {self.pageable / MIB:>10,.1f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Body:
    """A model on the meta device and the linear maps in its blocks."""

    model: nn.Module
    shape: Shape
    linear: list[Site]

    @property
    def key(self) -> int:
        """Width of the key projection; smaller than the query's with grouped-query attention."""
        widths = [site.out_features for site in self.linear if activations.ends(site, ("k_proj", "key"))]
        return widths[0] if widths else self.shape.query


def body(architecture: Any) -> Body:
    """An architecture by name, or a configuration of transformers, built without weights.

    Raises:
        ValueError: an unknown name, or a family that is not accounted for.
    """
    if isinstance(architecture, str):
        family = architectures.build(architecture, num_hidden_layers=1).config.model_type  # type: ignore[union-attr]
        model = architectures.build(architecture, language_model=family in CAUSAL)
    else:
        import transformers

        causal = architecture.model_type in CAUSAL
        kind: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind.from_config(architecture)
    return Body(model, Shape.of(model.config), [part.site for part in resolve(model, "all-linear")])


def memory(
    architecture: Any,
    config: Config | str,
    targets: Targets = "all-linear",
    batch: int = 1,
    length: int = 512,
    quantise: str = "none",
    compute: str = "fp32",
    checkpointing: bool = False,
    optimizer: str = "adamw",
    *,
    double_quantise: bool = True,
    adapter: str = "fp32",
    attention: str = "sdpa",
    classes: int = 2,
    mask_size: int = 1,
    padded: bool = True,
    autocast: bool | None = None,
    ever_chosen: float = EVER_CHOSEN,
) -> Account:
    """The peak of a training step in which gradients are held, as with accumulation.

    Of n trained numbers, c bytes each: gradients c n; AdamW's two averages 2 c n, in 32 bits 8 n, in 8 bits
    2 (1 + 4/256) n; `vbank.SelectedAdamW` holds for P of VB-LoRA's logits (4 + 2 c) P, or from about a half of the
    logits on 2 c n, as AdamW. The other terms stand where they are computed: `weights`, `numbers`, `spared`,
    `vbank.activations`, `logits` and `transient`.

    Args:
        architecture: one of `architectures.ARCHITECTURES`, or a configuration of transformers.
        config: a method, or "full", "bitfit" or "head".
        targets: as for `vbank.attach`.
        batch: rows of a step, before accumulation.
        length: tokens of a row, padding included.
        quantise: "none", "nf4" or "int8", for the linear layers in the blocks.
        compute: "fp32", "bf16" or "fp16": the type of all other weights and of the activations.
        checkpointing: keep each layer's input alone and run the layer again in the backward.
        optimizer: one of `STATES`.
        double_quantise: quantise NF4's own scales.
        adapter: type of the trained numbers, their gradients and their optimizer state.
        attention: "sdpa", a fused kernel, or "eager", which keeps the scores.
        classes: of a classification head.
        mask_size: bytes of an entry of a dropout mask: 1 on CUDA, on a CPU that of an activation.
        padded: whether rows of unequal length share a batch; images never do.
        autocast: normalisations in float32 and products cast, as `vbank run` trains quantised weights in half
            precision; None: where the weights are quantised. In Llama's relatives alone.
        ever_chosen: of "selected_adamw": bank vectors that a sub-vector chooses in the whole training, a mean; P is N
            times that. In 500 steps of MiniLM on SST-2, 16 to 26 of 90 as of 2,048 were measured
            (benchmarks/training_memory.py, part "tried"); more steps bring more, so the default leaves room.

    Raises:
        ValueError: an unknown name or type, a number below 1, rows longer than the model reads, or targets that match
            nothing.
    """
    names = (("quantise", quantise, QUANTISE), ("optimizer", optimizer, STATES), ("attention", attention, ATTENTION))
    for kind, value, known in (*names, ("compute", compute, SIZES), ("adapter", adapter, SIZES)):
        if value not in known:
            raise ValueError(unknown(kind, value, known))
    found = body(architecture)
    check(found, config, batch=batch, length=length, ever_chosen=ever_chosen)
    size, method = SIZES[compute], config if isinstance(config, Config) else None
    shape = found.shape
    padded = padded and shape.family != "vit"
    if autocast is None:
        autocast = quantise != "none" and compute != "fp32" and shape.family in GATED
    if autocast and shape.family not in GATED:
        raise ValueError(f"autocast is accounted for in {', '.join(GATED)}, not in {shape.family}; leave it out")
    run = Run(batch, length, size, SIZES[adapter], mask_size, attention == "eager", padded, autocast)
    sites = [part.site for part in resolve(found.model, targets)] if method else found.linear
    held = weights(found, quantise, size, double_quantise)
    number = SIZES[adapter] if method else size
    own, head, frozen = numbers(found, config, sites, classes)
    trained = own + head
    held["adapter and head"] = number * (head + frozen + (own if method else 0))  # a baseline's own are the weights
    dense, chosen, kept_for = spared(method, sites, ever_chosen) if optimizer == "selected_adamw" else (0, 0, 0)
    held["gradients"] = number * (trained - dense + chosen)
    own_type = number / 4 if optimizer in ("adamw", "selected_adamw") else 1
    states = round(STATES[optimizer] * (trained - dense) * own_type) + state_bytes(kept_for, dense, number)
    held["optimizer state"] = states
    layers = activations.by_layer(sites)
    kept = [
        activations.layer(shape, found.key, layers.get(i, []), method, run, full=config == "full")
        for i in range(shape.layers if config != "head" else 0)
    ]
    inputs = shape.layers * run.tokens * shape.hidden * run.stream if kept else 0
    again = max(kept, default=0) if checkpointing else 0
    held["activations"] = (inputs if checkpointing else sum(kept)) + activations.composition(sites, method, run)
    passing = {
        "logits and gradients": logits(shape, run),
        "one layer's backward": again + transient(found, quantise, run),
    }
    who = method.title if method else str(config)
    where = architecture if isinstance(architecture, str) else shape.family
    how = [compute, *([quantise] if quantise != "none" else []), *(["checkpointing"] if checkpointing else [])]
    title = f"{who} on {where}, {batch} x {length} tokens, {', '.join(how)}"
    settings = {"batch": batch, "length": length, "quantise": quantise, "compute": compute, "adapter": adapter}
    settings |= {"checkpointing": checkpointing, "optimizer": optimizer, "attention": attention}
    pageable = states if optimizer.startswith("paged") else 0
    return Account(title, held, passing, trained, pageable, settings)


def check(found: Body, config: Config | str, length: int, **counts: float) -> None:
    """Refuses what neither memory nor operations can be reckoned for.

    Raises:
        ValueError: an unknown baseline, a number below 1, or rows longer than the model reads.
    """
    if isinstance(config, str) and config not in BASELINES:
        raise ValueError(unknown("baseline", config, BASELINES))
    for name, value in {**counts, "length": length}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    longest = found.shape.context
    if longest and length > longest:
        raise ValueError(f"length is {length}; this {found.shape.family} reads {longest} tokens at most, so shorten it")


def weights(found: Body, quantise: str, size: int, double_quantise: bool = True) -> dict[str, int]:
    """Bytes of the base model by kind of layer.

    NF4 takes 4 bits a weight and a float32 scale for 64 weights; double quantisation keeps that scale in 8 bits and a
    float32 for 256 of them: 4 + 8/64 + 32/(64 * 256) = 4.127 bits (Dettmers et al. 2023, section 3). int8 takes one
    byte and a float32 a row. All else is held in the compute type.
    """
    bits = {"none": 8.0 * size, "int8": 8.0, "nf4": 4 + 8 / 64 + 32 / (64 * 256) if double_quantise else 4 + 32 / 64}
    inside = {f"{site.name}.weight" for site in found.linear}
    kinds = dict.fromkeys(("linear layers in blocks", "embeddings", "output layer", "norms and biases"), 0.0)
    for name, parameter in found.model.named_parameters():  # a tied output layer appears once, as the embedding
        if name in inside:
            rows = 4 * parameter.shape[0] if quantise == "int8" else 0
            kinds["linear layers in blocks"] += parameter.numel() * bits[quantise] / 8 + rows
        elif not absent(name, found.shape):
            kind = "norms and biases" if parameter.dim() < 2 else "output layer" if "lm_head" in name else "embeddings"
            kinds[kind] += parameter.numel() * size
    return {name: round(number) for name, number in kinds.items() if number}


def absent(name: str, shape: Shape) -> bool:
    """Whether a parameter of the body is missing in the classifier: of all families, only BERT's keeps the pooler."""
    return name.startswith("pooler") and shape.family != "bert"


def numbers(found: Body, config: Config | str, sites: Sequence[Site], classes: int) -> tuple[int, int, int]:
    """Numbers that the method or baseline trains, those of the head, and those that the method holds frozen."""
    hidden = found.shape.hidden
    head = 0 if found.shape.family in CAUSAL else classes * (hidden + 1)
    if found.shape.family == "roberta":
        head += hidden * (hidden + 1)  # its head has a dense layer of its own
    if isinstance(config, str):
        parameters = {name: p.numel() for name, p in found.model.named_parameters() if not absent(name, found.shape)}
        wanted = {"full": ("",), "bitfit": (".bias",), "head": ()}[config]
        return sum(n for name, n in parameters.items() if name.endswith(wanted)), head, 0
    own = sum(group.trained for group in config.storage(sites).values())
    if config.method != "vera":
        return own, head, 0
    sizes = [(site.in_features, site.out_features) for site in sites]  # A and B: no parameters, but they are there
    largest = (max(size[0] for size in sizes), max(size[1] for size in sizes))
    return own, head, config.rank * sum(a + b for a, b in ([largest] if getattr(config, "shared", True) else sizes))


def spared(method: Config | None, sites: Sequence[Site], ever_chosen: float) -> tuple[int, int, int]:
    """Of `vbank.SelectedAdamW`: the logits N h, those with a gradient N k, and those ever chosen, N `ever_chosen`.

    Raises:
        ValueError: no VB-LoRA with selection "top_k".
    """
    if not isinstance(method, VBLoRA) or method.selection != "top_k":
        raise ValueError("'selected_adamw' trains VB-LoRA with selection 'top_k'; take optimizer 'adamw'")
    subs = sum(sum(method.sub_vectors(site)) for site in sites)
    h, k = method.num_vectors, method.top_k
    return subs * h, subs * k, round(subs * min(max(ever_chosen, k), h))


def logits(shape: Shape, run: Run) -> int:
    """Logits of a language model at the start of the backward, bytes: 12 a token and a word of the vocabulary.

    The loss is computed in float32: the log-softmax, its gradient from the loss, and the gradient of the logits. A
    classifier's logits are nothing beside it.
    """
    return 12 * run.tokens * shape.vocabulary if shape.family in CAUSAL else 0


def transient(found: Body, quantise: str, run: Run) -> int:
    """What the backward of one layer makes and drops, bytes: gradients of its widest activations, a dense weight.

    Three gradients as wide as the MLP; a quantised weight is unpacked into the compute type, one layer at a time.
    """
    dense = max(site.in_features * site.out_features for site in found.linear) if quantise != "none" else 0
    return run.stream * 3 * run.tokens * found.shape.intermediate + run.size * dense


def flops(
    architecture: Any,
    config: Config | str,
    targets: Targets = "all-linear",
    tokens: int = 1,
    length: int = 512,
    checkpointing: bool = False,
) -> int:
    """Floating-point operations of training on `tokens` tokens in rows of `length`.

    A weight costs 2 operations a token in the forward and 2 for the gradient of its input; the 2 for its own gradient
    are saved where it is frozen: 4 N, not 6 N, a token (Kaplan et al. 2020, section 2.1, for the 6 N). A and B cost all
    6, but for VeRA's, which are frozen. Attention multiplies query with key and weights with value: 4 * length * width
    forward, twice that backward. Checkpointing repeats the forward of the blocks.

    Left out, as each is small beside these or not of matrix products: composing VB-LoRA's A and B from the bank,
    unpacking quantised weights, VeRA's d and b, normalisations, a classifier's head, and the optimizer.

    Args:
        architecture, config, targets: as for `memory`.
        tokens: all that the training reads, padding included: rows times length times epochs.
        length: tokens of a row.
        checkpointing: as for `memory`.

    Returns:
        Operations, a multiplication and an addition counted as two.

    Raises:
        ValueError: an unknown name, a number below 1, rows longer than the model reads, or targets that match nothing.
    """
    found = body(architecture)
    check(found, config, length=length, tokens=tokens)
    method = config if isinstance(config, Config) else None
    frozen = sum(site.in_features * site.out_features for site in found.linear)
    output = found.shape.vocabulary * found.shape.hidden if found.shape.family in CAUSAL else 0
    sites = [part.site for part in resolve(found.model, targets)] if method else []
    thin = sum(method.rank * (site.in_features + site.out_features) for site in sites) if method else 0
    thin_trained = method is not None and method.method != "vera"
    scores = 4 * length * found.shape.query * found.shape.layers
    forward = 2 * (frozen + thin) + scores
    if config == "head":
        return tokens * forward
    backward = 2 * frozen * (2 if config == "full" else 1) + 2 * thin * (2 if thin_trained else 1) + 2 * scores
    ends = output * (6 if config == "full" else 4)
    return tokens * (forward * (2 if checkpointing else 1) + backward + ends)


def seconds(operations: float, device: str = "A100", compute: str = "bf16", share: float = 0.4) -> float:
    """Time for a number of operations at a share of a device's peak: t = F / (share * peak).

    Args:
        operations: F, from `flops`.
        device: one of `DEVICES`.
        compute: the type of the matrix products.
        share: of the peak that is reached. Large dense products reach 0.4 to 0.6; short rows, quantised weights and
            thin matrices reach far less, so that this is a bound, not a forecast.

    Returns:
        t in seconds.

    Raises:
        ValueError: an unknown device or type, or a share outside 0 to 1.
    """
    if device not in DEVICES:
        raise ValueError(unknown("device", device, DEVICES))
    if compute not in SIZES:
        raise ValueError(unknown("compute", compute, SIZES))
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie above 0 and at most at 1")
    return operations / (share * DEVICES[device][compute])
