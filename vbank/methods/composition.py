"""One composition a pass: when VB-LoRA's sub-vectors may be reused and when they must be made anew.

A forward of the whole model makes all sub-vectors once and every layer takes its rows. Reuse is safe only while
nothing that enters the composition has changed and while its graph has not been walked:

- a new forward of the model starts afresh, whatever happened before;
- an optimizer step raises the parameters' version counters, which are part of the key;
- a backward that reaches the composition frees its graph, so the result is dropped then;
- a layer called a second time outside a forward of the whole model is the start of a new pass; one compiled on its
  own composes its own rows there;
- non-reentrant checkpointing runs a layer again inside the backward, for its saved values alone: any rows of the same
  values serve. The composition keeps its own saved tensors out of the checkpoint's count;
- reentrant checkpointing also runs a layer again inside the backward, but walks the new graph at once, layer by layer:
  there a layer composes its own rows;
- a selection that draws random numbers composes for every layer, so that both kinds of checkpointing, which restore
  the random state, repeat the draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from vbank.methods.vb_lora import VBLoRAMethod


class Pass:
    """All sub-vectors of one pass, what they were made from, and which sites have taken theirs."""

    def __init__(self, key: tuple[Any, ...], rows: Tensor, replay: bool) -> None:
        self.key = key
        self.rows = rows
        self.replay = replay  # values for a recomputation, with no graph behind them
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
        """That forward has ended. Its result stays where a checkpoint's recomputation may ask for it."""
        self.inside = False
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            self.passes.clear()

    def rows(self, method: VBLoRAMethod, start: int, end: int, name: str) -> Tensor:
        """Sub-vectors start..end of `method`, from the shared result where it may be used."""
        grad, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
        if method.draws or (compiling and not self.inside):
            return method.compose(start, end)
        replay = grad and not compiling and torch._C._current_graph_task_id() != -1  # inside a backward
        if replay and not _saves_for_checkpoint():
            return method.compose(start, end)  # reentrant checkpointing
        key = self._key(method)
        current = self.passes.get(grad)
        revisit = current is not None and name in current.visited and not (self.inside or replay)
        if current is None or current.key != key or revisit or (current.replay and not replay):
            current = Pass(key, self._compose(method, replay, compiling), replay)
            self.passes[grad] = current
            if current.rows.requires_grad and not (replay or compiling):
                current.rows.register_hook(_Forget(self, current))
        current.visited.add(name)
        return current.rows[start:end]

    def _compose(self, method: VBLoRAMethod, replay: bool, compiling: bool) -> Tensor:
        if compiling:
            return method.compose()
        if replay:  # only values are wanted; the flag lets the layers save what they saved before
            with torch.no_grad():
                rows = method.compose()
            return rows.requires_grad_(not method.frozen)
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return method.compose()

    def _key(self, method: VBLoRAMethod) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():  # the rest would break the graph, and a compiled pass ends with the forward
            return (method.training,)
        made_from = [method.bank, *([] if method.logits is None else [method.logits])]
        if any(t.is_inference() for t in made_from):
            versions: tuple[Any, ...] = ()
        else:
            versions = tuple((id(t), t._version, t.device, t.dtype, t.requires_grad) for t in made_from)
        device = method.bank.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return (*versions, method.training, torch.is_inference_mode_enabled(), autocast)


def _saves_for_checkpoint() -> bool:
    """Whether a non-reentrant checkpoint is recomputing, which it does under a hook on saved tensors of its own."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and "_recomputation_hook" in getattr(hooks[0], "__qualname__", "")


class _Forget:
    """Gradient hook of the shared rows: their graph is being walked, so no later layer may join it."""

    def __init__(self, composition: Composition, made: Pass) -> None:
        self.composition, self.made = composition, made

    def __call__(self, grad: Tensor) -> None:
        if self.composition.passes.get(True) is self.made:
            del self.composition.passes[True]
