"""One composition a pass: when VB-LoRA's sub-vectors may be reused and when they must be made anew.

A forward of the whole model makes all sub-vectors once and every layer takes its rows. Reuse is safe only while
nothing that enters the composition has changed and while its graph has not been walked:

- a new forward of the model starts afresh, whatever happened before;
- an optimizer step raises the parameters' version counters, which are part of the key;
- a backward that reaches the composition frees its graph, so the result is dropped then;
- a layer called a second time outside a forward of the whole model is the start of a new pass;
- reentrant checkpointing runs a layer without gradients and again, with them, inside the backward, where it walks the
  graph of every layer on its own: such a layer composes its own rows;
- non-reentrant checkpointing runs a layer again inside the backward and must meet the same shared result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vbank.methods.vb_lora import VBLoRAMethod


class Pass:
    """All sub-vectors of one pass, what they were made from, and which sites have taken theirs."""

    def __init__(self, key: tuple[Any, ...], rows: Tensor) -> None:
        self.key = key
        self.rows = rows
        self.visited: set[str] = set()


class Composition:
    """The shared result of the present pass: one with gradients, one without. Never copied, never pickled."""

    def __init__(self) -> None:
        self.passes: dict[bool, Pass] = {}
        self.inside = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Composition:
        return Composition()

    def __reduce__(self) -> tuple[type[Composition], tuple[()]]:
        return Composition, ()

    def begin(self) -> None:
        """A forward of the whole model starts."""
        self.passes.clear()
        self.inside = True

    def end(self) -> None:
        """That forward has ended; its result stays for the recomputation in the backward."""
        self.inside = False
        self.passes.pop(False, None) if not torch.is_grad_enabled() else None
        if torch.compiler.is_compiling():
            self.passes.clear()

    def rows(self, method: VBLoRAMethod, start: int, end: int, name: str) -> Tensor:
        """Sub-vectors start..end of `method`, from the shared result where it may be used."""
        grad = torch.is_grad_enabled()
        in_backward = torch._C._current_graph_task_id() != -1 if not torch.compiler.is_compiling() else False
        if in_backward and grad and False in self.passes and name in self.passes[False].visited:
            return method.compose(start, end)  # reentrant checkpointing
        key = self._key(method)
        current = self.passes.get(grad)
        stale = current is None or current.key != key
        if not stale and current is not None and not (self.inside or in_backward):
            stale = name in current.visited
        if stale or current is None:
            current = self.passes[grad] = Pass(key, method.compose())
            if current.rows.requires_grad and not torch.compiler.is_compiling():
                current.rows.register_hook(_Forget(self, current))
        current.visited.add(name)
        return current.rows[start:end]

    def _key(self, method: VBLoRAMethod) -> tuple[Any, ...]:
        made_from = [method.bank, *([] if method.logits is None else [method.logits])]
        if torch.compiler.is_compiling() or any(t.is_inference() for t in made_from):
            versions: tuple[Any, ...] = ()
        else:
            versions = tuple((id(t), t._version, t.device, t.dtype) for t in made_from)
        device = method.bank.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return (*versions, method.training, torch.is_inference_mode_enabled(), autocast)


class _Forget:
    """Gradient hook of the shared rows: their graph is being walked, so no later layer may join it."""

    def __init__(self, composition: Composition, made: Pass) -> None:
        self.composition, self.made = composition, made

    def __call__(self, grad: Tensor) -> None:
        if self.composition.passes.get(True) is self.made:
            del self.composition.passes[True]
