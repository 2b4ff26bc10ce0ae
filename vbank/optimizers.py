"""AdamW in the forms that recipes name, over the parameter groups that `vbank.param_groups` gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

Groups = list[dict[str, Any]]

NAMES = ("adamw", "paged_adamw_32bit", "adamw_8bit")


def refuse_impossible(name: str) -> None:
    """Refuse an optimizer that this machine cannot run.

    Raises:
        ValueError: a paged optimizer without a CUDA device, or bitsandbytes is missing.
    """
    if name == "adamw":
        return
    if name.startswith("paged") and not torch.cuda.is_available():
        raise ValueError(
            f"train.optimizer={name!r} pages its state between GPU and CPU, and there is no CUDA device; set"
            " train.optimizer='adamw', which computes the same"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"train.optimizer={name!r} needs bitsandbytes: pip install 'vbank[qlora]'")


def build(name: str, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer of a recipe's train.optimizer.

    "paged_adamw_32bit" keeps AdamW's two moments in memory that the driver moves to the CPU when the GPU is full
    (Dettmers et al. 2023, section 3); "adamw_8bit" keeps them in 8 bits, block by block.

    Raises:
        ValueError: as `refuse_impossible`.
    """
    refuse_impossible(name)
    if name == "adamw":
        return torch.optim.AdamW(groups)
    from bitsandbytes import optim

    kinds: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
        "paged_adamw_32bit": optim.PagedAdamW32bit,
        "adamw_8bit": optim.AdamW8bit,
    }
    return kinds[name](groups)
