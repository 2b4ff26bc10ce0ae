"""Tensors that FSDP2 spreads over processes (`DTensor`): read whole, and written back in shards.

Every function here is to be called by all processes together. A tensor that is not spread is passed through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def check(plugin: Any) -> None:
    """Refuse settings of accelerate's FSDP (a `FullyShardedDataParallelPlugin`) that do not go with adapters.

    Raises:
        ValueError: version 1, or weights on the main process alone.
    """
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP of version 1 would save the base model in every checkpoint; take --fsdp_version 2")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "FSDP is to load weights on the main process alone, but each process draws its adapter on the model; take"
            " --fsdp_cpu_ram_efficient_loading false"
        )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as another one of its shape."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict with whole tensors."""
    state = optimizer.state_dict()
    parts = {
        number: {key: whole(value) if isinstance(value, Tensor) else value for key, value in part.items()}
        for number, part in state["state"].items()
    }
    return state | {"state": parts}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts what `optimizer_state` gave back into an optimizer of the same parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        number: {
            key: spread_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in part.items()
        }
        for number, part in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def gather_root(model: nn.Module) -> None:
    """Makes the parameters of the outermost group whole on each process; an adapter's are among them."""
    unshard = getattr(model, "unshard", None)
    if unshard is not None:
        unshard()
