"""One composition a pass: when VB-LoRA's sub-vectors may be reused and when they must be made anew.

A forward of the whole model makes all sub-vectors once and every layer takes its rows. Reuse is safe only while
nothing that enters the composition has changed and while its graph has not been walked:

- a new forward of the model starts afresh, whatever happened before;
- an optimizer step raises the parameters' version counters, which are part of the key;
- a backward that reaches the composition frees its graph, so the result is dropped then;
- outside a forward of the whole model nothing is shared: each layer composes its own rows;
- non-reentrant checkpointing runs a layer again inside the backward, for its saved values alone: any rows of the same
  values serve. The composition keeps its own saved tensors out of the checkpoint's count;
- reentrant checkpointing also runs a layer again inside the backward, but walks the new graph at once, layer by layer:
  there a layer composes its own rows;
- a selection that draws random numbers composes for every layer, so that both kinds of checkpointing, which restore
  the random state, repeat the draw.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from vbank.methods.vb_lora import VBLoRAMethod


class Pass:
    """All sub-vectors of one pass, what they were made from, and the backward that replays it (0: the forward)."""

    def __init__(
        self, made_from: Sequence[Tensor], key: tuple[Any, ...], backward: int, pieces: Sequence[Tensor]
    ) -> None:
        self.made_from = made_from  # held, so that an id in the key names one tensor
        self.key = key
        self.backward = backward
        self.pieces = pieces  # for each site, in turn, the sub-vectors of A and of B


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

    def rows(self, method: VBLoRAMethod, i: int) -> tuple[Tensor, Tensor]:
        """The sub-vectors of A and of B of site `i` of `method`, from the shared result where it may be used."""
        grad, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
        backward = 0 if compiling or not grad else torch._C._current_graph_task_id() + 1  # 0: not inside a backward
        shared = _saves_for_checkpoint() if backward else self.inside
        if method.draws or not shared:
            start, middle, end = method.spans[i]
            with contextlib.nullcontext() if compiling or method.draws else _outside_checkpoints():
                rows = method.compose(start, end)  # (end - start, b)
            return rows[: middle - start], rows[middle - start :]
        made_from = [method.bank] if method.logits is None else [method.bank, method.logits]
        key = _key(method, made_from)
        current = self.passes.get(grad)
        if current is None or current.key != key or current.backward not in (0, backward):
            rows = self._compose(method, backward, compiling)  # (N, b)
            sizes = [size for start, middle, end in method.spans for size in (middle - start, end - middle)]
            current = Pass(made_from, key, backward, rows.split(sizes))  # one backward for all, unlike slices
            self.passes[grad] = current
            if rows.requires_grad and not (backward or compiling):
                rows.register_hook(_Forget(self, current))
        return current.pieces[2 * i], current.pieces[2 * i + 1]

    def _compose(self, method: VBLoRAMethod, backward: int, compiling: bool) -> Tensor:
        if compiling:
            return method.compose()
        if backward:  # only values are wanted; the flag lets the layers save what they saved before
            with torch.no_grad():
                rows = method.compose()
            return rows.requires_grad_(not method.frozen)
        with _outside_checkpoints():
            return method.compose()


def _key(method: VBLoRAMethod, made_from: Sequence[Tensor]) -> tuple[Any, ...]:
    """What a shared result depends on."""
    if torch.compiler.is_compiling():  # the rest would break the graph, and a compiled pass ends with the forward
        return (method.training,)
    tracked = not any(t.is_inference() for t in made_from)
    versions = [(id(t), t._version if tracked else 0, t.device, t.dtype, t.requires_grad) for t in made_from]
    device = method.bank.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (*versions, method.training, torch.is_inference_mode_enabled(), autocast)


def _outside_checkpoints() -> contextlib.AbstractContextManager[Any]:
    """Save tensors as usual, so that a checkpoint around does not count those of the composition.

    Detached, for an operation that saved its own result with its graph would keep itself alive. Where nobody hooks
    saved tensors there is nothing to escape, and torch.func's transforms know no such hooks.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return contextlib.nullcontext()
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


def _saves_for_checkpoint() -> bool:
    """Whether a non-reentrant checkpoint is recomputing, which it does under a hook on saved tensors of its own."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and "_recomputation_hook" in getattr(hooks[0], "__qualname__", "")


class _Forget:
    """Gradient hook of the shared rows: their graph is being walked, so no later layer may join it.

    The graph holds the hook, and the pass holds the graph. So the hook must hold neither: no garbage collector sees a
    circle that leads through autograd.
    """

    def __init__(self, composition: Composition, made: Pass) -> None:
        self.composition, self.made = weakref.ref(composition), weakref.ref(made)

    def __call__(self, grad: Tensor) -> None:
        composition, made = self.composition(), self.made()
        if composition is not None and made is not None and composition.passes.get(True) is made:
            del composition.passes[True]
