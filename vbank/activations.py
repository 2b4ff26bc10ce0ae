"""What a training step keeps in memory between forward and backward, in bytes, from shapes alone.

A layer with frozen weights needs no input for its backward: dx = W^T dy. So the accounts of Korthikanti et al. 2022
(section 4.1: 34 s b h + 5 a s^2 b bytes a layer), which train every weight, are too large here. What is left:

- the inputs of non-linear operations: normalisation, activation function, attention;
- the input x of every adapted layer whose A is trained, once for layers that share it (query, key and value);
- what the method itself makes: A x, and factors that are not parameters.

The lists below follow transformers 5 line by line; a test counts the bytes that autograd saves and finds the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vbank.methods.base import Config, Site
from vbank.methods.vera import SMALL_RANK

CAUSAL = ("gpt2", "llama", "mistral", "gemma")
GATED = ("llama", "mistral", "gemma")  # with RMSNorm and a gated MLP
STATISTIC = 4  # bytes: means, deviations and log-sums stay in float32


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer, read from its configuration."""

    family: str  # transformers' model_type
    hidden: int
    layers: int
    heads: int
    query: int  # heads x size of a head
    intermediate: int
    vocabulary: int
    dropout: float  # after attention output and MLP
    attention_dropout: float
    context: int  # the most tokens of a row; 0 of images, whose number is fixed

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Sizes from a configuration of transformers.

        Raises:
            ValueError: a family that is not accounted for.
        """
        if config.model_type not in FAMILIES:
            raise ValueError(f"no memory account for {config.model_type!r}; there is one for {', '.join(FAMILIES)}")
        heads, hidden = config.num_attention_heads, config.hidden_size
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        first = ("hidden_dropout_prob", "resid_pdrop")
        second = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
        return cls(
            config.model_type,
            hidden,
            config.num_hidden_layers,
            heads,
            heads * (getattr(config, "head_dim", None) or hidden // heads),
            inner,
            getattr(config, "vocab_size", 0),
            next((getattr(config, name) for name in first if hasattr(config, name)), 0.0),
            next((getattr(config, name) for name in second if hasattr(config, name)), 0.0),
            getattr(config, "max_position_embeddings", 0) - (2 if config.model_type == "roberta" else 0),
        )


@dataclass(frozen=True)
class Run:
    """What a step runs with: tokens, bytes of a number, and how attention is computed."""

    batch: int
    length: int
    size: int  # bytes of an activation
    adapter_size: int = 4  # bytes of a trained number
    mask_size: int = 1  # of a dropout mask's entry: 1 on CUDA; a CPU keeps the activation's size
    eager: bool = False  # attention that keeps its length x length scores
    padded: bool = True  # rows of unequal length, which need a mask
    autocast: bool = False  # normalisations in float32, products cast: QLoRA's way, of GATED families alone

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def stream(self) -> int:
        """Bytes of a number outside of products and attention: a 4-bit layer answers in the type of its input."""
        return 4 if self.autocast else self.size


# Which adapted layers read one tensor, and that tensor's width. The third entry: attention keeps it already.
Inputs = list[tuple[str, tuple[str, ...], bool]]
FAMILIES: dict[str, Inputs] = {
    **dict.fromkeys(
        GATED,
        [
            ("hidden", ("q_proj", "k_proj", "v_proj"), False),
            ("query", ("o_proj",), True),
            ("hidden", ("gate_proj", "up_proj"), False),
            ("intermediate", ("down_proj",), False),
        ],
    ),
    "gpt2": [
        ("hidden", ("c_attn",), False),
        ("query", ("attn.c_proj",), True),
        ("hidden", ("c_fc",), False),
        ("intermediate", ("mlp.c_proj",), False),
    ],
    "vit": [
        ("hidden", ("q_proj", "k_proj", "v_proj"), False),
        ("query", ("o_proj",), True),
        ("hidden", ("fc1",), False),
        ("intermediate", ("fc2",), False),
    ],
    **dict.fromkeys(
        ("bert", "roberta"),
        [
            ("hidden", ("query", "key", "value"), False),
            ("query", ("attention.output.dense",), True),
            ("hidden", ("intermediate.dense",), False),
            ("intermediate", ("output.dense",), False),
        ],
    ),
}


def norms(shape: Shape, run: Run) -> int:
    """Two normalisations of a layer, bytes a token.

    LayerNorm keeps its input, mean and deviation. RMSNorm computes in float32 and keeps that copy and one deviation.
    """
    if shape.family in GATED:
        return 2 * (4 * shape.hidden + STATISTIC)
    return 2 * (run.size * shape.hidden + 2 * STATISTIC)


def attention(shape: Shape, key: int, run: Run) -> int:
    """Query, key, value and what the softmax leaves, bytes a token; `key` is the width of the key projection.

    A fused kernel keeps its output and one float32 a head; with rows of unequal length also the mask that it adds, and
    the keys and values of a group once for each of its queries. Eager attention keeps the softmax, heads x length
    entries, and with dropout a mask and the dropped copy: the 5 a s^2 b of Korthikanti et al. 2022 at 2 bytes an entry.
    """
    width = shape.query if run.padded else key
    projections = run.size * (shape.query + 2 * width)
    if not run.eager:
        mask = run.size * run.length if run.padded else 0
        return projections + run.size * shape.query + STATISTIC * shape.heads + mask
    dropped = run.mask_size + run.size if shape.attention_dropout else 0
    return projections + shape.heads * run.length * (run.size + dropped)


def mlp(shape: Shape, run: Run) -> int:
    """The activation function, bytes a token.

    A gated MLP keeps gate, SiLU or GELU of it, and the other factor. GELU keeps its input; GPT-2's tanh form, written
    out in Python, keeps four tensors.
    """
    tensors = {"gpt2": 4, "bert": 1, "roberta": 1, "vit": 1}.get(shape.family, 3)
    return run.stream * tensors * shape.intermediate


def masks(shape: Shape, run: Run) -> int:
    """Dropout after attention and after the MLP, bytes a token."""
    return 2 * run.mask_size * shape.hidden if shape.dropout else 0


def inputs(shape: Shape, sites: Sequence[Site], method: Config | None, run: Run) -> int:
    """Inputs x of adapted layers, bytes a token; `method` None trains the layers' own weights.

    A's gradient needs x. VeRA's A is frozen and needs none. Dropout before A gives each layer a copy and a mask;
    autocast gives each layer a copy.
    """
    if method is not None and method.dropout:
        copy = 0 if method.method == "vera" else run.size
        return sum((copy + run.mask_size) * site.in_features for site in sites)
    if method is not None and method.method == "vera":
        return 0
    total = 0
    for width, names, kept in FAMILIES[shape.family]:
        readers = sum(ends(site, names) for site in sites)
        copies = readers if run.autocast else min(readers, 1)
        if not kept or run.eager:
            total += copies * run.size * getattr(shape, width)
    return total


def ends(site: Site, names: Sequence[str]) -> bool:
    """Whether a site is one of the named layers. BERT's two "output.dense" differ in what stands before."""
    module = site.name.partition(":")[0]
    if names == ("output.dense",) and module.endswith("attention.output.dense"):
        return False
    return any(module == name or module.endswith("." + name) for name in names)


def between(sites: Sequence[Site], method: Config, run: Run) -> int:
    """What lies between A and B and after B, bytes a token.

    B's gradient needs z = A x (rank). VeRA's and Tied-LoRA's d needs z, and their b, as part of b B, needs d z (rank);
    at a large rank VeRA's b scales the outputs and needs B z (out_features).
    """
    d, b = scales(method)
    scaled = method.method in ("vera", "tied-lora")
    total = 0
    for site in sites:
        if method.method == "vera" and method.rank > SMALL_RANK:
            total += d * method.rank + b * site.out_features
        else:
            total += (d + b if scaled else 1) * method.rank
    return run.size * total


def scales(method: Config) -> tuple[bool, bool]:
    """Whether the method scales after A (VeRA's d, Tied-LoRA's u) and after B (b, v)."""
    if method.method == "vera":
        return bool(getattr(method, "train_d", True)), bool(getattr(method, "train_b", True))
    return (method.method == "tied-lora",) * 2


def factors(sites: Sequence[Site], method: Config, run: Run) -> int:
    """Factors A and B that are not parameters themselves, bytes (whatever the number of tokens).

    In another precision than the adapter's, every method casts A and B, and VeRA and Tied-LoRA their scales. In the
    same, PRoLoRA builds both from chunks, VeRA (at a small rank) and Tied-LoRA build b B, and VB-LoRA rearranges B from
    its sub-vectors.
    """
    d, b = scales(method)
    activations_scaled = method.method == "vera" and method.rank > SMALL_RANK
    total = 0
    for site in sites:
        a_side, b_side = method.rank * site.in_features, method.rank * site.out_features
        if run.size != run.adapter_size:
            total += run.size * (a_side + b_side + d * method.rank + (b and activations_scaled) * site.out_features)
        elif method.method == "prolora":
            total += run.size * (a_side + b_side)
        elif b and not activations_scaled:
            total += run.size * b_side
        elif method.method == "vb-lora" and method.rank > 1 and site.out_features > getattr(method, "vector_length", 0):
            total += run.size * b_side
    return total


def composition(sites: Sequence[Site], method: Config | None, run: Run) -> int:
    """VB-LoRA's sub-vectors, made once for all layers, bytes: values and, layer by layer, their gradients.

    rank * sum (in + out) numbers, twice, and top_k indices (8 bytes) and weights for each sub-vector.
    """
    if method is None or method.method != "vb-lora":
        return 0
    numbers = method.rank * sum(site.in_features + site.out_features for site in sites)
    chosen = numbers // getattr(method, "vector_length", 1) * getattr(method, "stored_k", 1)
    return 2 * run.adapter_size * numbers + (8 + run.adapter_size) * chosen


def layer(shape: Shape, key: int, sites: Sequence[Site], method: Config | None, run: Run, full: bool = False) -> int:
    """Bytes that the graph of one transformer layer keeps.

    Args:
        shape: of the model.
        key: width of the key projection.
        sites: adapted linear maps of this layer; with `full`, all its linear maps.
        method: the method; None for a baseline.
        run: tokens and precisions.
        full: every weight is trained: then every linear map keeps its input, and RMSNorm its output before the weight.
    """
    a_token = norms(shape, run) + attention(shape, key, run) + mlp(shape, run) + masks(shape, run)
    fixed = 8 * shape.hidden if shape.family == "gemma" else 0  # 1 + weight of two norms, in float32
    if method is not None:
        a_token += inputs(shape, sites, method, run) + between(sites, method, run)
        fixed += factors(sites, method, run)
    elif full:
        a_token += inputs(shape, sites, None, run)
        a_token += {"llama": 2 * run.size, "mistral": 2 * run.size, "gemma": 8}.get(shape.family, 0) * shape.hidden
    return run.tokens * a_token + fixed


def by_layer(sites: Sequence[Site]) -> dict[int, list[Site]]:
    """Sites by the number of their transformer layer, the first number in a module's name."""
    found: dict[int, list[Site]] = {}
    for site in sites:
        number = re.search(r"(?:^|\.)(\d+)\.", site.name)
        found.setdefault(int(number.group(1)) if number else 0, []).append(site)
    return found
