"""Many adapters on one model, mixed in one batch: each row is answered with the adapter of its own name.

The adapters lie in memory as compact files hold them; the factors of a layer are made when a batch first needs them
and kept in a cache of bounded size. The model itself is never changed, so that threads can be answered at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vbank.adapters import HOME, Adapters, unwrap
from vbank.serving_probe import Layouts, Probe, learn, main_input
from vbank.serving_rows import Batch
from vbank.serving_store import Cache, Held, Reader

ACTIVE: ContextVar[Batch | Probe | None] = ContextVar("vbank.serving", default=None)  # of this thread or task


@dataclass(frozen=True)
class Memory:
    """Bytes that a server holds, by what they are for.

    Args:
        adapters: what each adapter has of its own, as in its compact file.
        heads: values of modules trained whole, apart.
        shared: VeRA's frozen pairs, each held once.
        cache: factors made for recent batches.
    """

    adapters: int
    heads: int
    shared: int
    cache: int

    @property
    def total(self) -> int:
        """All of them together; the base model is apart."""
        return self.adapters + self.heads + self.shared + self.cache


class Server:
    """Answers batches whose rows name different adapters of one model.

    `add`, `replace` and `remove` may be called while batches are answered in other threads; a batch is answered to its
    end with the adapters that its names stood for when it began. Outside of `rows` the model is the base model. What
    `rows` names holds for the present thread or asyncio task, and not for threads started inside it.

    Args:
        model: the base model on one device, in evaluation mode, without adapters attached.
        cache_bytes: upper limit of the factors kept between batches; 0 keeps none. A running batch holds its own.

    Raises:
        ValueError: the model is wrapped, is served already, or has adapters, or cache_bytes is no size.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = 256 * 2**20) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}; give the base model, an nn.Module")
        if unwrap(model) is not model:
            raise ValueError(f"the model is wrapped in {type(model).__name__}; serve the model itself")
        if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int) or cache_bytes < 0:
            raise ValueError(f"cache_bytes is {cache_bytes!r}; give a number of bytes, 0 to keep nothing")
        _refuse_adapters(model)
        hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        if any(isinstance(hook, (Begin, Adapt, Head)) for hook in hooks):
            raise ValueError("the model is served already; use that server, or close it first")
        self.model = model
        self.layouts = Layouts()
        self._adapters: dict[str, Held] = {}
        self._reader, self._cache = Reader(model), Cache(cache_bytes)
        self._lock = threading.Lock()
        self._hooks: dict[tuple[type, str], Any] = {}
        self._open = True
        self._hooks[Begin, ""] = model.register_forward_pre_hook(Begin(self), with_kwargs=True)
        encoder: Any = getattr(model, "get_encoder", lambda: model)()
        if isinstance(encoder, nn.Module) and encoder is not model:  # `generate` calls it apart
            self._hooks[Begin, "encoder"] = encoder.register_forward_pre_hook(Begin(self), with_kwargs=True)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """Read an adapter that `vbank.save` wrote, in either form, and serve it under a name.

        Raises:
            CheckpointError: the files are missing, damaged, of an unknown version, or hold values out of range.
            ValueError: the name is no string or taken, or the model has other layers or shapes.
        """
        self._refuse_closed()
        if not isinstance(name, str) or not name:
            raise ValueError(f"adapter name {name!r} is no name; give a string")
        self._refuse_taken(name)
        adapter = self._read(path)
        with self._lock:
            self._refuse_closed()  # while it was read
            self._refuse_taken(name)
            self._adapters[name] = adapter

    def replace(self, name: str, path: str | os.PathLike[str]) -> None:
        """Serve another adapter under a name, from the next batch on.

        Raises:
            CheckpointError, ValueError: as for `add`, or no adapter has the name. The former one then stays.
        """
        self._refuse_closed()
        self._find(name)
        adapter = self._read(path)
        with self._lock:
            former = self._find(name)
            self._adapters[name] = adapter
        self._cache.drop(former)

    def remove(self, name: str) -> None:
        """Serve an adapter no longer; batches that have begun are answered with it.

        Raises:
            ValueError: no adapter has the name.
        """
        with self._lock:
            former = self._find(name)
            del self._adapters[name]
        self._cache.drop(former)

    def names(self) -> list[str]:
        """The names that are served, in the order of their addition."""
        with self._lock:
            return list(self._adapters)

    @property
    def nbytes(self) -> Memory:
        """Bytes held for the adapters."""
        with self._lock:
            adapters = list(self._adapters.values())
        own, heads = sum(a.nbytes for a in adapters), sum(a.head_nbytes for a in adapters)
        return Memory(own, heads, self._reader.shared_nbytes, self._cache.nbytes)

    @contextmanager
    def rows(self, names: Sequence[str | None], repeat: int = 1) -> Iterator[nn.Module]:
        """Within the block, the model answers each row of a batch with the adapter of its name.

        Args:
            names: one for each row of the batch; None is the base model.
            repeat: the model may also see each row as so many rows in turn: num_beams, or num_return_sequences when
                sampling, of `generate`.

        Raises:
            ValueError: a name is not served, or the model is in training mode. In the block, before anything is
                computed: the batch has another number of rows than there are names.
        """
        self._refuse_closed()
        _refuse_adapters(self.model)
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval(), for a server trains nothing")
        if isinstance(names, str) or not isinstance(names, Sequence) or not names:
            raise ValueError(f"names is {names!r}; give a list with one name, or None, for each row")
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise ValueError(f"repeat is {repeat!r}; give how many rows a row becomes, at least 1")
        with self._lock:  # all names as of one moment
            adapters = [None if name is None else self._find(name) for name in names]
        terms = {adapter: self._cache.get(adapter) for adapter in dict.fromkeys(adapters) if adapter is not None}
        token = ACTIVE.set(Batch(adapters, repeat, terms, self, ACTIVE.get()))
        try:
            yield self.model
        finally:
            ACTIVE.reset(token)

    def __call__(self, names: Sequence[str | None], *args: Any, **kwargs: Any) -> Any:
        """One forward of the model with these names: ``server(["alice", None], input_ids=...)``."""
        with self.rows(names) as model:
            return model(*args, **kwargs)

    def close(self) -> None:
        """Take the hooks off the model, which is then as it was before. Batches must have been answered."""
        with self._lock:
            self._open = False
            for handle in self._hooks.values():
                handle.remove()
            self._hooks.clear()
            former = list(self._adapters.values())
            self._adapters.clear()
        for adapter in former:
            self._cache.drop(adapter)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def batch(self) -> Batch | Probe | None:
        """The batch that this thread or task is answering with this server."""
        batch = ACTIVE.get()
        while batch is not None and batch.owner is not self:
            batch = batch.outer
        return batch

    def look(self, module: nn.Module, batch: Batch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare the rows of the model's input with the names, before the model runs.

        A mixed batch first learns, once for each layer, where the layer has its rows.

        Raises:
            ValueError: the numbers differ.
        """
        _, value = main_input(module, args, kwargs)
        n = len(value) if value is not None else None
        if n is not None and n not in batch.rows and module is self.model:
            raise ValueError(
                f"the batch has {n} rows, but {batch.said()} are named; give one name, or None, for each row"
                + (" and tell rows(..., repeat=) of beams" if n % min(batch.rows) == 0 else "")
            )
        if n in batch.rows and not batch.uniform and self.layouts.open(batch.layers):
            learn(ACTIVE, self, module, batch, args, kwargs)

    def _read(self, path: str | os.PathLike[str]) -> Held:
        adapter = self._reader.read(path)
        with self._lock:
            self._refuse_closed()
            for layer in adapter.kind.layers:
                if (Adapt, layer) not in self._hooks:
                    module = self.model.get_submodule(layer)
                    self._hooks[Adapt, layer] = module.register_forward_hook(Adapt(self, layer), with_kwargs=True)
            for head in adapter.kind.heads:
                if (Head, head) not in self._hooks:
                    module = self.model.get_submodule(head)
                    self._hooks[Head, head] = module.register_forward_hook(Head(self, head), with_kwargs=True)
        return adapter

    def _find(self, name: str) -> Held:
        try:
            return self._adapters[name]
        except (KeyError, TypeError):
            raise ValueError(
                f"no adapter is served under the name {name!r}; add it first, or give None for the base model"
            ) from None

    def _refuse_taken(self, name: str) -> None:
        if name in self._adapters:
            raise ValueError(f"an adapter is served under the name {name!r} already; use replace, or remove it first")

    def _refuse_closed(self) -> None:
        if not self._open:
            raise ValueError("the server is closed; make another with vbank.serve(model)")


def serve(model: nn.Module, cache_bytes: int = 256 * 2**20) -> Server:
    """A `Server` of many adapters on one base model; `Server` says what it takes and refuses.

    Example:
        >>> import copy, torch, vbank
        >>> base = torch.nn.Sequential(torch.nn.Linear(8, 8)).eval()
        >>> tuned = copy.deepcopy(base)
        >>> adapter = vbank.attach(tuned, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> vbank.save(tuned, "alice")
        >>> server = vbank.serve(base)
        >>> server.add("alice", "alice")
        >>> x = torch.ones(2, 8)
        >>> with server.rows(["alice", None]):  # the first row with alice's adapter, the second without
        ...     y = base(x)
        >>> torch.allclose(y[0], tuned(x)[0]), torch.equal(y[1], base(x)[1])
        (True, True)
    """
    return Server(model, cache_bytes)


class Begin:
    """Forward pre-hook of the model and its encoder: the model's input must have a row for each name."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = self.server.batch()
        if isinstance(batch, Batch):
            self.server.look(module, batch, args, kwargs)


class Adapt:
    """Forward hook of an adapted layer: each row's update."""

    def __init__(self, server: Server, layer: str) -> None:
        self.server, self.layer = server, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Tensor:
        kwargs, output = rest if len(rest) == 2 else (None, *rest)
        batch = self.server.batch()
        if batch is None or kwargs is None:  # without kwargs: torch is just registering the hook, in another thread
            return output
        return batch.adapt(self.layer, args[0] if args else next(iter(kwargs.values())), output)


class Head:
    """Forward hook of a module that some adapters have trained whole."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        kwargs, output = rest if len(rest) == 2 else (None, *rest)
        batch = self.server.batch()
        return output if batch is None or kwargs is None else batch.head(self.name, module, args, kwargs, output)


def _refuse_adapters(model: nn.Module) -> None:
    if hasattr(model, HOME) or any(isinstance(module, Adapters) for module in model.modules()):
        raise ValueError(
            "the model has adapters attached, which would act on every row; save them, vbank.detach them, and add the"
            " saved folders to the server"
        )
