"""Adapters as a server keeps them: small in memory, made into the factors of each layer on demand.

Adapters with the same settings on the same layers are of one `Kind`, which holds what they share: one method whose
parameters are lent to it, the places in the model, VeRA's frozen pair. A `Held` adapter is then its tensors alone.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vbank import stored
from vbank.attachment import device_of
from vbank.checkpoint import find_places, method_of
from vbank.methods import Method
from vbank.methods.vera import VeRAMethod
from vbank.targets import Part, matching, modules_of


@dataclass(frozen=True, eq=False)
class Term:
    """What one adapter adds at one site, s * B (A x). A: (rank, in), B: (out, rank).

    Where all adapters of a kind share A and B, as VeRA's do, the update is s * diag(b) B diag(d) A x with the adapter's
    own d: (rank,) and b: (out,).
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0
    d: Tensor | None = None
    b: Tensor | None = None
    shared: bool = False


Terms = dict[str, Term]  # by the site's name


class Kind:
    """What adapters of the same settings on the same layers have in common.

    Attributes:
        parts: where in the model the sites are.
        layers: module name -> its parts; a layer that shares its weight with an adapted one is there too.
        trained: names of the model's own parameters that each adapter has values of.
        heads: module to be run with those values -> {name inside the module: name in the model}.
        keys: names of the tensors of a `Held` adapter.
        pair: VeRA's frozen matrices by name, one for all kinds that have the same.
    """

    def __init__(
        self, model: nn.Module, method: Method, parts: Sequence[Part], train: Sequence[str], trained: Sequence[str]
    ) -> None:
        self.parts, self.trained = list(parts), list(trained)
        self.layers: dict[str, list[Part]] = {}
        for part in parts:
            for layer in modules_of(model, part):
                self.layers.setdefault(layer, []).append(part)
        self.heads = head_modules(model, train, trained)
        self.keys = list(method.compact_tensors())
        self.pair: Pair | None = None
        self.device = device_of(model, parts)
        self.method = method.to(self.device).eval().requires_grad_(False)
        self._slots = [_slot(method, key) for key in self.keys]
        self._lock = threading.Lock()
        self._lend([None] * len(self.keys))

    def terms(self, tensors: Sequence[Tensor]) -> Terms:
        """An adapter's terms. Safe in many threads; never part of a graph, never inference tensors."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._lend([tensor.to(self.device) for tensor in tensors])
            self.method.begin_pass()  # VB-LoRA: one composition for all sites
            try:
                return {site.name: self._term(site.name) for site in self.method.sites}
            finally:
                self.method.end_pass()
                self._lend([None] * len(self.keys))  # the adapter may be removed meanwhile

    def _term(self, name: str) -> Term:
        method = self.method
        if isinstance(method, VeRAMethod):
            (A, B), (d, b) = method.pair(name), method.scales(name)
            return Term(A, B, d=d, b=b, shared=True)
        A, B = (f if f.untyped_storage().nbytes() == f.nbytes else f.clone() for f in method.factors(name))
        return Term(A, B, method.scale)

    def _lend(self, tensors: Sequence[Tensor | None]) -> None:
        for (place, key), tensor in zip(self._slots, tensors, strict=True):
            place[key] = tensor


def _slot(method: Method, key: str) -> tuple[dict[str, Any], str]:
    """Where the method keeps the tensor called `key`. To assign there costs a hundredth of `load_state_dict`."""
    path, _, name = key.rpartition(".")
    owner = method.get_submodule(path)
    return (owner._parameters if name in owner._parameters else owner._buffers), name


def head_modules(model: nn.Module, train: Sequence[str], trained: Sequence[str]) -> dict[str, dict[str, str]]:
    """The outermost modules that use trained parameters: those that `train` names, and others that share one.

    Raises:
        ValueError: a parameter is used by the model itself or by a module whose `forward` was replaced, so that it
            cannot be run with other values.
    """
    if not trained:
        return {}
    names = {id(model.get_parameter(name)): name for name in trained}
    modules = {name: module for name, module in model.named_modules() if name}
    named = matching(model, train, modules, "train module")
    heads: dict[str, dict[str, str]] = {}
    for name, module in modules.items():
        inside = {n: names[id(p)] for n, p in module.named_parameters(remove_duplicate=False) if id(p) in names}
        uses = any(id(p) in names for p in module.parameters(recurse=False))
        if inside and (uses or name in named) and not any(name.startswith(f"{outer}.") for outer in heads):
            heads[name] = inside
    lost = set(trained) - {name for inside in heads.values() for name in inside.values()}
    lost |= {head for head in heads if any("forward" in vars(m) for m in modules[head].modules())}
    if lost:
        raise ValueError(
            f"{', '.join(sorted(lost))} cannot be run with other values for some rows: it belongs to no module that the"
            " model calls, or another library has replaced its forward; serve this adapter alone with vbank.load"
        )
    return heads


class Pair(dict[str, Tensor]):
    """VeRA's frozen matrices by name. A class of its own can be referred to weakly, a dict cannot."""

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.values())


@dataclass(eq=False, slots=True)
class Held:
    """One adapter in memory: its kind, the tensors of a compact file, and the values of its head."""

    kind: Kind
    tensors: tuple[Tensor, ...]  # in the order of kind.keys
    head: tuple[Tensor, ...]  # in the order of kind.trained
    served: bool = True  # False once it is removed; a batch that has begun still uses it

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter, without its head and without what its kind shares."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def head_nbytes(self) -> int:
        """Bytes of the head."""
        return sum(tensor.nbytes for tensor in self.head)

    def terms(self) -> Terms:
        """The adapter's terms, made now."""
        return self.kind.terms(self.tensors)

    def head_values(self, module: str) -> dict[str, Tensor]:
        """Values of the parameters inside one of `kind.heads`, by their names there."""
        values = dict(zip(self.kind.trained, self.head, strict=True))
        return {inside: values[name] for inside, name in self.kind.heads[module].items()}

    def made(self, terms: Terms) -> int:
        """Bytes of the terms beyond the tensors that are held anyway."""
        held = {tensor.data_ptr() for tensor in self.tensors}
        factors = (factor for term in terms.values() if not term.shared for factor in (term.A, term.B))
        return sum(factor.nbytes for factor in factors if factor.data_ptr() not in held)


class Reader:
    """Reads adapters for one model; those of one kind share it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kinds: weakref.WeakValueDictionary[Any, Kind] = weakref.WeakValueDictionary()
        self._pairs: weakref.WeakValueDictionary[Any, Pair] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._building = threading.Lock()  # drawing in two threads would mix up the random states that are put back

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the frozen pairs of all VeRA adapters that are in use."""
        with self._lock:
            return sum(pair.nbytes for pair in self._pairs.values())

    def read(self, path: str | os.PathLike[str]) -> Held:
        """The adapter of a folder, checked as `vbank.load` checks it. The model stays as it is.

        Raises:
            CheckpointError: the files are missing, damaged, of an unknown version, or hold values out of range.
            ValueError: the model has other layers or shapes.
        """
        with torch.inference_mode(False), torch.no_grad():  # whatever the caller's mode, the tensors serve in all
            return self._read(stored.read(Path(path)))

    def _read(self, file: stored.Stored) -> Held:
        record = json.dumps(file.record, sort_keys=True)
        key = (file.config, file.sites, file.dtype, tuple(file.train), tuple(file.head), record)
        kind, own = self._kinds.get(key), file.tensors
        if kind is None or file.head:
            parts, trained = find_places(self.model, file)
        if kind is None or file.frozen or set(own) != set(kind.keys):  # frozen: to be checked; keys: logits
            with self._building:
                method = _method(file)
            own = method.compact_tensors()
            if kind is None:
                kind = self._intern(key, Kind(self.model, method, parts, file.train, trained))
        head = (file.head[name].to(self.model.get_parameter(name).dtype, copy=True) for name in kind.trained)
        # Copies, for tensors that safetensors made leave the memory around them in pieces: 5 % more a VB-LoRA adapter.
        return Held(kind, tuple(own[name].clone() for name in kind.keys), tuple(head))

    def _intern(self, key: Any, kind: Kind) -> Kind:
        """The kind of this key, of which there is one; kinds with the same frozen matrices hold them once."""
        with self._lock:
            if isinstance(kind.method, VeRAMethod):
                new = Pair(kind.method.frozen_tensors())
                shapes = tuple((name, matrix.shape, matrix.dtype) for name, matrix in new.items())
                kind.pair = self._pairs.setdefault((kind.method.checksum(), shapes), new)
                for name, matrix in kind.pair.items():
                    setattr(kind.method, name, matrix)
            return self._kinds.setdefault(key, kind)


def _method(file: stored.Stored) -> Method:
    """The method with the values of a file, as inference needs it."""
    method = method_of(file)
    if file.form != "compact":  # VB-LoRA's logits become the choice that they make
        method.read(method.compact_tensors(), "compact")
    return method.eval()


class Cache:
    """Terms that were made, the least recently used dropped first, so that their bytes stay within a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._terms: OrderedDict[Held, tuple[Terms, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, adapter: Held) -> Terms:
        """The adapter's terms, from the cache or made now."""
        with self._lock:
            if adapter in self._terms:
                self._terms.move_to_end(adapter)
                return self._terms[adapter][0]
        terms = adapter.terms()
        nbytes = adapter.made(terms)
        with self._lock:  # what costs no bytes costs no time to make again
            if 0 < nbytes <= self.limit and adapter.served and adapter not in self._terms:
                self._terms[adapter] = terms, nbytes
                self.nbytes += nbytes
                while self.nbytes > self.limit:
                    self.nbytes -= self._terms.popitem(last=False)[1][1]
        return terms

    def drop(self, adapter: Held) -> None:
        """Forget an adapter that is no longer served."""
        with self._lock:
            adapter.served = False
            self.nbytes -= self._terms.pop(adapter, ({}, 0))[1]
