"""Into the weights and out again: merge, unmerge, and the model without its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vbank.adapters import Adapter, Adapters, adapter_of, adapters_of, refuse_disabled, refuse_inactive, refuse_spread
from vbank.layers import dense_weight, is_eight_bit, with_weight
from vbank.methods.base import delta
from vbank.targets import Part


def merge(model: nn.Module, name: str | None = None) -> None:
    """Add the active adapter's update into the weights: W <- W + s * B A, taken in float32.

    The model then runs at the base model's speed. A copy of each adapted weight is kept, so that `unmerge` restores it
    bit for bit: memory rises by the size of the adapted weights. A quantised layer is replaced by an `nn.Linear` with
    the dequantised, updated weight: from 4 bits in the type that it was quantised from, from 8 bits in the type of the
    model's first floating-point parameter.

    Args:
        model: a model with an adapter.
        name: the adapter to merge, which must be the active one; None takes it.

    Raises:
        ValueError: already merged, not the active adapter, the adapters are disabled, a weight is shared with a module
            that is not adapted or spread by FSDP, or the update is not finite. The weights are then as they were.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> x = torch.ones(1, 8)
        >>> before = model(x)
        >>> vbank.merge(model)
        >>> torch.allclose(model(x), before)
        True
    """
    model, home, adapter = adapter_of(model, name)
    if home.merged is not None:
        raise ValueError(f"adapter {home.merged!r} is merged already; call vbank.unmerge(model) first")
    refuse_disabled(home)
    refuse_inactive(home, adapter)
    refuse_spread(
        [*adapter.method.parameters(), *(model.get_parameter(f"{layer}.weight") for layer in adapter.layers)],
        f"FSDP has spread adapter {adapter.name!r} or its layers over processes; merge before fully_shard",
    )
    _refuse_shared(model, adapter)
    updated: dict[str, Any] = {}
    was_training = adapter.method.training
    adapter.method.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():  # no later backward passes a weight made in inference mode
            for layer, parts in adapter.layers.items():
                module = model.get_submodule(layer)
                if any(model.get_submodule(done).weight is module.weight for done in updated):
                    continue  # a second module with the same weight
                updated[layer] = with_weight(module, _updated(model, layer, parts, adapter))
    finally:
        adapter.method.train(was_training)
    for layer, new in updated.items():
        home.unmerged[layer] = _exchange(model, layer, new)
    home.merged = adapter.name


def _updated(model: nn.Module, layer: str, parts: Sequence[Part], adapter: Adapter) -> Tensor:
    """The layer's weight (out, in) with the update added, rounded once to the weight's type."""
    module = model.get_submodule(layer)
    weight = dense_weight(module)
    dtype = weight.dtype
    if is_eight_bit(module):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32)).clone()
    for part in parts:
        wide[part.start : part.stop] += delta(adapter.method, part.site.name).to(wide)
    narrow = wide.to(dtype)
    if not torch.isfinite(narrow).all():
        raise ValueError(f"adapter {adapter.name!r} has values that are not finite in {layer}; nothing is merged")
    return narrow


def unmerge(model: nn.Module) -> None:
    """Put the weights back as they were before `merge`, bit for bit.

    Raises:
        ValueError: nothing is merged.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> weight = model[0].weight.clone()
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> vbank.merge(model)
        >>> vbank.unmerge(model)
        >>> torch.equal(model[0].weight, weight)
        True
    """
    model, home = adapters_of(model)
    if home.merged is None:
        raise ValueError("no adapter is merged, so there is nothing to unmerge")
    for layer, old in home.unmerged.items():
        _exchange(model, layer, old)
    home.unmerged.clear()
    home.merged = None


def _refuse_shared(model: nn.Module, adapter: Adapter) -> None:
    adapted = {id(model.get_submodule(layer).weight): layer for layer in adapter.layers}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if id(parameter) in adapted and owner not in adapter.layers and not _alias(model, owner, adapter):
            raise ValueError(
                f"{adapted[id(parameter)]} shares its weight with {owner}, which is not adapted, so a merge would"
                " change both; give the layer a copy of its own weight first, or run unmerged"
            )


def _alias(model: nn.Module, name: str, adapter: Adapter) -> bool:
    """Whether `name` is a second name of an adapted module."""
    module = model.get_submodule(name)
    return any(model.get_submodule(layer) is module for layer in adapter.layers)


def _exchange(model: nn.Module, layer: str, new: Any) -> Any:
    """Put a weight or a layer in place and return what stood there; all names of a layer are served.

    The model may have been moved, or changed its mode, since `new` was made.
    """
    module: Any = model.get_submodule(layer)
    if isinstance(new, Tensor):
        with torch.inference_mode(False):
            old, module.weight.data = module.weight.data, new.to(module.weight)
        return old
    new.train(module.training)
    if new.weight.device != module.weight.device:
        with torch.inference_mode(False):
            new.to(module.weight.device)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is module:
                parent._modules[key] = new
    return module


@contextmanager
def enabled(model: nn.Module, flag: bool = True) -> Iterator[nn.Module]:
    """Within the block, the model with (True) or without (False) its active adapter and that adapter's head.

    A merged adapter is taken out of the weights where the block needs it, and merged again at the end, unless a block
    of True within one of False has detached it or activated another.

    Raises:
        ValueError: the model has no adapter.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> x = torch.ones(1, 8)
        >>> base = model(x)
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> with vbank.enabled(model, False):
        ...     torch.equal(model(x), base)
        True
    """
    wrapped = model
    model, home = adapters_of(model)
    before = home.on
    if flag == before:
        yield wrapped
        return
    merged = None if home.merged is None else home.adapter(home.merged)
    if merged is not None:
        unmerge(model)
    _switch(model, home, flag)
    try:
        yield wrapped
    finally:
        if home.merged is not None:  # in a block of True within one of False
            unmerge(model)
        _switch(model, home, before)
        if merged is not None and home.active == merged.name and home.adapter(merged.name) is merged:
            merge(model)


def _switch(model: nn.Module, home: Adapters, on: bool) -> None:
    """Turn the adapters on or off: the model holds the active adapter's head where on, the base model's where off."""
    home.on = on
    if home.active is None:
        return
    if on:
        home.put_head_in(model, home.active)
    else:
        home.put_head_away(model, home.active)
