"""QLoRA's base model: weights held in 4 or 8 bits by bitsandbytes, frozen, with adapters beside them.

Dettmers et al. 2023, section 3: weights in NF4, the quantisation constants quantised again ("double quantisation"),
products computed in a wider type. transformers' Trainer refuses a quantised model without a PEFT adapter;
`vbank.attach` tells it that there is something to train, and `vbank.detach` takes that back.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vbank.layers import is_quantised

if TYPE_CHECKING:
    from vbank.recipes import Recipe

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantisation(settings: Any) -> Any:
    """transformers' BitsAndBytesConfig for a recipe's [model] whose `quantise` is "nf4" or "int8".

    A fresh head (`settings.head`) stays as it is: it is trained whole. Without one, transformers leaves out the output
    layer.

    Raises:
        ValueError: bitsandbytes is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"model.quantise={settings.quantise!r} needs bitsandbytes: pip install 'vbank[qlora]'")
    from transformers import BitsAndBytesConfig

    whole = list(settings.head) or None
    # FSDP spreads floating-point tensors alone, so there the codes lie in the bytes of such a tensor.
    shared = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if settings.quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=settings.double_quantise,
        bnb_4bit_compute_dtype=COMPUTE[settings.compute],
        bnb_4bit_quant_storage=COMPUTE[settings.compute] if shared else torch.uint8,
        llm_int8_skip_modules=whole,
    )


def device_map() -> dict[str, Any]:
    """The whole model on this process's device, where bitsandbytes must quantise it."""
    if torch.cuda.is_available():
        return {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return {"": "cpu"}


def refuse_impossible(recipe: Recipe) -> None:
    """Refuse what cannot work with a quantised model, before it is read.

    Raises:
        ValueError: a baseline that trains quantised weights.
    """
    if recipe.model.quantise != "none" and recipe.method.name in ("full", "bitfit"):
        raise ValueError(
            f"{recipe.name}: method {recipe.method.name!r} cannot train {recipe.model.quantise} weights; take an"
            " adapter, or model.quantise='none'"
        )


def steady_norms(model: nn.Module, autocast: bool) -> None:
    """Normalisations in float32, as QLoRA's code has them, where autocast brings the types of a product together.

    Without autocast they stay in the compute type, and so does every activation.
    """
    if not (autocast and any(is_quantised(module) for module in model.modules())):
        return
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        if "norm" in kind and not any(module.children()) and not name.startswith("vbank."):
            module.to(torch.float32)
