"""What a step holds in memory, measured on live tensors: bytes that autograd saves, and the peak of all storages."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def held(tensors: Iterable[Tensor]) -> set[int]:
    """Keys of the storages of tensors."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def saved_bytes(model: nn.Module, forward: Callable[[], object], beside: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of a forward keeps for the backward, each storage once, without parameters and buffers.

    `beside`: further tensors that are there anyway.
    """
    own = held([*model.parameters(), *model.buffers(), *beside])
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    assert kept is not None  # the graph lives until here, so that no storage's key is used twice
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


class LivePeak(TorchDispatchMode):
    """The most bytes that storages made inside the block held at one time; memory inside a kernel is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = held(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage(), before)
        return out

    def _meet(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self.known or key in before:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
