"""AdamW in the forms that recipes name, over the parameter groups that `vbank.param_groups` gives."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vbank.selected_adamw import SelectedAdamW

Groups = list[dict[str, Any]]

NAMES = ("adamw", "paged_adamw_32bit", "adamw_8bit", "selected_adamw")


def refuse_impossible(name: str) -> None:
    """Refuse an optimizer that this machine cannot run.

    Raises:
        ValueError: a paged optimizer without a CUDA device, bitsandbytes is missing, or an optimizer of whole
            parameters where FSDP spreads them.
    """
    if name == "selected_adamw" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "train.optimizer='selected_adamw' does not train parameters that FSDP has spread; set"
            " train.optimizer='adamw', which computes the same"
        )
    if name in ("adamw", "selected_adamw"):
        return
    if name.startswith("paged") and not torch.cuda.is_available():
        raise ValueError(
            f"train.optimizer={name!r} pages its state between GPU and CPU, and there is no CUDA device; set"
            " train.optimizer='adamw', which computes the same"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"train.optimizer={name!r} needs bitsandbytes: pip install 'vbank[qlora]'")


def build(name: str, groups: Groups, model: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer of a recipe's train.optimizer, on the groups that `vbank.param_groups` gave for the model.

    "paged_adamw_32bit" keeps AdamW's two moments in memory that the driver moves to the CPU when the GPU is full
    (Dettmers et al. 2023, section 3); "adamw_8bit" keeps them in 8 bits, block by block; "selected_adamw" keeps
    those of the logits that VB-LoRA ever chose (`vbank.SelectedAdamW`), and is the one that needs the model.

    Raises:
        ValueError: as `refuse_impossible`, or what SelectedAdamW refuses.
    """
    refuse_impossible(name)
    if name == "adamw":
        return torch.optim.AdamW(groups)
    if name == "selected_adamw":
        if model is None:
            raise ValueError("'selected_adamw' chooses anew after each step; give build() the model")
        rates = {group["name"]: group["lr"] for group in groups}
        return SelectedAdamW(model, rates, weight_decay=groups[0]["weight_decay"])
    from bitsandbytes import optim

    kinds: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
        "paged_adamw_32bit": optim.PagedAdamW32bit,
        "adamw_8bit": optim.AdamW8bit,
    }
    return kinds[name](groups)
