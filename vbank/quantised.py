"""QLoRA's base model: weights held in 4 or 8 bits by bitsandbytes, frozen, with adapters beside them.

Dettmers et al. 2023, section 3: weights in NF4, the quantisation constants quantised again ("double quantisation"),
products computed in a wider type. transformers' Trainer refuses a quantised model without a PEFT adapter;
`vbank.attach` tells it that there is something to train, and `vbank.detach` takes that back. After a merge, `detach`
also tells transformers which layers are quantised no more.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vbank.layers import is_linear, is_quantised

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


def admit_to_trainer(model: nn.Module) -> None:
    """Tell transformers' Trainer that a quantised model has something to train.

    It refuses one that has no PEFT adapter unless the quantiser says that it can be trained as it is, which holds once
    adapters are attached.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and not getattr(quantiser, "is_qat_trainable", False):
        kind = type(quantiser)
        quantiser.__class__ = type(kind.__name__, (kind,), {"is_qat_trainable": True, "_vbank_base": kind})


def withdraw_from_trainer(model: nn.Module) -> None:
    """Undo `admit_to_trainer`."""
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and hasattr(type(quantiser), "_vbank_base"):
        quantiser.__class__ = type(quantiser)._vbank_base


def declare_dense(model: nn.Module) -> None:
    """Tell transformers which layers a merge has dequantised, so that a saved model can be read again.

    They join `llm_int8_skip_modules`, the layers that reading leaves as they are. With no quantised layer left, the
    model is a quantised one no more.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return
    layers = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if is_linear(m)]
    if any(is_quantised(layer) for _, layer in layers):
        settings = copy.deepcopy(quantiser.quantization_config)  # the caller's may serve other models
        dense = [name for name, layer in layers if not is_quantised(layer)]
        settings.llm_int8_skip_modules = list(dict.fromkeys([*(settings.llm_int8_skip_modules or []), *dense]))
        quantiser.quantization_config = settings
        model.config.quantization_config = settings  # type: ignore[union-attr]
        return
    quantiser.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(flag, None)
    for module in model.modules():  # each part of a model has its configuration
        if hasattr(getattr(module, "config", None), "_is_quantized"):
            del module.config._is_quantized  # type: ignore[union-attr]
