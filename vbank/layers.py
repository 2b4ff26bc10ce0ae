"""The kinds of linear layers that an update can sit on, and how to read and replace their weights.

`nn.Linear`, transformers' `Conv1D` (weight stored as (in, out)) and bitsandbytes' `Linear4bit` and `Linear8bitLt`.
The last three are recognised by name, so that this module needs torch alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

QUANTISED = ("Linear4bit", "Linear8bitLt")

FUSED_MAMBA = (("out_proj",), "target 'in_proj'")
MAP = (("k_proj", "k_linear"), "target its query projection")
WHOLE = "train it whole with train="
POSITIONS = (("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"), WHOLE)
BYPASSED = {  # class -> its layers whose weight it may read without calling them, and what to do instead
    "MultiheadAttention": (("out_proj",), "use an attention that calls its projections"),
    "MambaMixer": (("x_proj", "dt_proj", "out_proj"), "target 'in_proj'"),
    "FalconMambaMixer": (("x_proj", "dt_proj", "out_proj"), "target 'in_proj'"),
    "JambaMambaMixer": (("dt_proj",), "target 'in_proj', 'x_proj' or 'out_proj'"),
    "Mamba2Mixer": FUSED_MAMBA,
    "BambaMixer": FUSED_MAMBA,
    "FalconH1Mixer": FUSED_MAMBA,
    "GraniteMoeHybridMambaLayer": FUSED_MAMBA,
    "NemotronHMamba2Mixer": FUSED_MAMBA,
    "Zamba2MambaMixer": FUSED_MAMBA,
    "WavLMAttention": (("q_proj", "k_proj", "v_proj", "out_proj"), "target 'intermediate_dense' or 'output_dense'"),
    "LSHSelfAttention": (("query_key", "value"), "target 'dense'"),
    "MobileBertLMPredictionHead": (("dense", "decoder"), "target layers of the encoder"),
    "NeoMMEForMaskedLM": (("unembedding_projection",), "target layers of the encoder"),
    "TDNNLayer": (("kernel",), WHOLE),
    "LongcatFlashTopkRouter": (("classifier",), WHOLE),
    "Gemma3nTextAltUp": (("correction_coefs",), WHOLE),
    "LayoutLMv2Encoder": POSITIONS,
    "LayoutLMv3Encoder": POSITIONS,
    "PPDocLayoutV2ReadingOrderEncoder": POSITIONS,
    "DetrMHAttentionMap": MAP,
    "ConditionalDetrMHAttentionMap": MAP,
    "DabDetrMHAttentionMap": MAP,
    "MaskFormerDetrMHAttentionMap": MAP,
}


def _is(module: nn.Module, *names: str) -> bool:
    return any(cls.__name__ in names for cls in type(module).__mro__)


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer whose weight is stored as (in, out)."""
    return _is(module, "Conv1D") and hasattr(module, "nf")


def is_quantised(module: nn.Module) -> bool:
    """A bitsandbytes layer, whose weight is packed integers."""
    return _is(module, *QUANTISED)


def is_eight_bit(module: nn.Module) -> bool:
    """An 8-bit layer of bitsandbytes; unlike a 4-bit one it does not know which type it was quantised from."""
    return _is(module, "Linear8bitLt")


def is_linear(module: nn.Module) -> bool:
    """A layer of one of these kinds."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that an update can be attached to, by name: those that are called."""
    layers = {name: module for name, module in model.named_modules() if is_linear(module)}
    return {name: layer for name, layer in layers.items() if bypass(model, name) is None}


def bypass(model: nn.Module, name: str) -> str | None:
    """Why an update on the layer called `name` could be ignored: its parent may read the weight without a call.

    Some do so always, others in training where fused kernels are installed.
    """
    path, _, child = name.rpartition(".")
    parent = model.get_submodule(path)
    for cls in type(parent).__mro__:
        layers, instead = BYPASSED.get(cls.__name__, ((), ""))
        if child in layers:
            return f"{cls.__name__} may read its weight without calling it, so an update would be ignored; {instead}"
    return None


def features(module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a layer."""
    if is_conv1d(module):
        return module.weight.shape[0], module.nf
    return module.in_features, module.out_features


def dense_weight(module: Any) -> Tensor:
    """The layer's weight as (out, in) in floating point; a quantised one is dequantised, an 8-bit one to float32.

    Raises:
        ValueError: an 8-bit layer that has not been quantised yet, which happens on its move to the accelerator.
    """
    weight = module.weight
    if _is(module, "Linear4bit"):
        from bitsandbytes import functional

        if weight.quant_state is None:
            return weight.data
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    if is_eight_bit(module):
        codes, scales = module.state.CB, module.state.SCB
        codes, scales = (weight.CB, weight.SCB) if codes is None else (codes, scales)
        if codes is None or scales is None:
            raise ValueError(
                "an 8-bit layer holds no quantised weight yet; move the model to its device, or run it once, first"
            )
        return codes.float() * (scales.float() / 127.0)[:, None]  # row-wise absmax scaling
    return weight.data.T if is_conv1d(module) else weight.data


class DequantisedLinear(nn.Linear):
    """Stands in for a quantised layer; like that layer it takes x of any type and answers in the same."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


def to_training_layout(module: Any) -> Any:
    """Keep a 4-bit layer in the layout that gradients pass; returns what `restore_layout` needs, None for other layers.

    On CPUs with AVX-512 BF16, bitsandbytes rearranges the weight of a layer in its first evaluation, for a kernel that
    has no gradient, and never turns it back.
    """
    if not (_is(module, "Linear4bit") and getattr(module, "support_avx512bf16_for_cpu", False)):
        return None
    module.support_avx512bf16_for_cpu = False
    data, state = module.weight.data, module.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        from bitsandbytes import functional

        unpack = functional._convert_weight_packed_for_cpu_inverse
        module.weight.data, module.weight.quant_state = unpack(data, copy.copy(state))
        return data, state
    return ()


def restore_layout(module: Any, before: Any) -> None:
    """Let bitsandbytes choose the layer's layout again."""
    module.support_avx512bf16_for_cpu = True
    if before:
        module.weight.data, module.weight.quant_state = before


def with_weight(module: Any, weight: Tensor) -> Tensor | nn.Linear:
    """What must be put in place so that the layer has this (out, in) weight.

    Returns the tensor for `weight.data` where the layer keeps floating-point weights, else a linear layer to stand in
    for the quantised one.
    """
    if not is_quantised(module):
        return weight.T.contiguous() if is_conv1d(module) else weight
    bias = module.bias
    kind = {"device": weight.device, "dtype": weight.dtype}
    with torch.device("meta"):
        dense = DequantisedLinear(*features(module), bias=bias is not None)
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().to(**kind), requires_grad=False)
    return dense.train(module.training)
