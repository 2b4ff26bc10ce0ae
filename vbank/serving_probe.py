"""Which layers have the rows of a batch in their first dimension: found by running the model on rows of our own.

A first dimension as long as the batch proves nothing: an expert may see so many tokens by chance. So the model runs on
`MANY` rows, then on `FEW` of the same in another order, and a layer is taken to split by rows only where the length of
its input follows both and its contents follow the order. Tokens chosen from all rows would have to be one of each row,
in the order of the rows, in both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vbank.serving_rows import Batch

MANY = 17
FEW = (11, 3, 16, 0, 7, 13, 5, 9, 2, 14, 6)  # of the many rows, by number
POSITIONS = 8
KEPT = 512  # numbers of each row of a layer's input that are compared
CLOSE = 0.1  # of a row's norm: more than rounding in any type, less than from token to token


class Layouts:
    """What is known of the layers of a server.

    Attributes:
        rows: layers with the rows first.
        other: layers once seen otherwise, for good; they answer batches of one adapter only.
    """

    def __init__(self) -> None:
        self.rows: set[str] = set()
        self.other: set[str] = set()
        self.tried: set[Any] = set()  # an experiment that left layers open is not repeated
        self.lock = threading.RLock()  # one thread learns; the others wait for what it finds

    def open(self, layers: Iterable[str]) -> set[str]:
        """Those of the layers of which nothing is known."""
        return set(layers) - self.rows - self.other

    def refuse(self, layer: str) -> None:
        """The layer was seen with another layout."""
        self.other.add(layer)
        self.rows.discard(layer)


class Probe:
    """Stands in for a batch, and notes what each layer is given."""

    def __init__(self, owner: Any, outer: Batch | Probe | None) -> None:
        self.owner, self.outer = owner, outer
        self.seen: dict[str, list[tuple[int, Tensor]]] = {}  # of each call: length, and some numbers of each row

    def adapt(self, layer: str, x: Tensor, output: Any) -> Any:
        n = x.shape[0] if x.dim() > 1 else -1
        rows = x.reshape(n, -1) if n > 0 and x.numel() else x.new_zeros(0, 0)
        some = rows[:, :: max(1, rows.shape[1] // KEPT)]
        self.seen.setdefault(layer, []).append((n, some.detach().float().nan_to_num().clone()))
        return output

    def head(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        return self.adapt(name, tensors[0], output) if tensors else output


def learn(
    active: ContextVar[Any], server: Any, module: nn.Module, batch: Batch, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Find the layouts of a batch's layers that are not known yet, from runs of `module`, which was called so.

    The main input alone comes first, then all inputs with it. A run that fails shows nothing; its layers stay open.
    """
    with server.layouts.lock:
        key, value = main_input(module, args, kwargs)
        for alone in (True, False):
            layers = server.layouts.open(batch.layers)
            what = (id(module), alone, len(args), frozenset(kwargs), frozenset(layers))
            if value is None or not layers or what in server.layouts.tried:
                continue
            server.layouts.tried.add(what)
            n, many = len(value), _rows(server.model, value, alone)
            probes = []
            for rows in (torch.arange(MANY), torch.tensor(FEW)):
                taken = many[rows.to(many.device)]
                now = () if key else (taken,)
                named: dict[str, Any] = {key: taken} if key else {}
                if not alone:
                    now += tuple(_take(arg, rows % n, n) for arg in args[len(now) :])
                    named |= {k: _take(v, rows % n, n) for k, v in kwargs.items() if k != key and _plain(v)}
                probe = Probe(server, batch)
                token = active.set(probe)
                try:
                    with torch.no_grad():
                        module(*now, **named)
                except Exception:
                    break
                finally:
                    active.reset(token)
                probes.append(probe)
            if len(probes) == 2:
                _judge(server.layouts, layers, *probes)


def main_input(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Tensor | None]:
    """The input whose first dimension is the batch, and its keyword: transformers' main input, or the first tensor."""
    names = [getattr(module, "main_input_name", None), "input_ids", "inputs_embeds", "decoder_input_ids", *kwargs]
    found: list[tuple[Any, Any]] = [(None, value) for value in args[:1]]
    found += [(name, kwargs[name]) for name in names if name is not None and name in kwargs]
    tensors = [(name, value) for name, value in found if isinstance(value, Tensor) and value.dim()]
    return tensors[0] if tensors else (None, None)


def _judge(layouts: Layouts, layers: set[str], many: Probe, few: Probe) -> None:
    for layer in layers & (many.seen.keys() | few.seen.keys()):
        first, second = many.seen.get(layer, []), few.seen.get(layer, [])
        if len(first) == len(second) and all(map(_follows, first, second)):
            layouts.rows.add(layer)
        else:
            layouts.refuse(layer)


def _follows(many: tuple[int, Tensor], few: tuple[int, Tensor]) -> bool:
    """Whether what a layer saw of the few rows is what it saw of them among the many."""
    if many[0] != MANY or few[0] != len(FEW) or many[1].shape[1] != few[1].shape[1]:
        return False
    before = many[1][torch.tensor(FEW, device=many[1].device)]
    return bool(((few[1] - before).norm(dim=1) <= CLOSE * before.norm(dim=1) + 1e-6).all())


def _rows(model: nn.Module, value: Tensor, alone: bool) -> Tensor:
    """`MANY` rows like those of an input, drawn: a few users' rows repeated would show as little as the few."""
    generator, shape = torch.Generator().manual_seed(0), list(value.shape[1:])
    if value.is_floating_point():
        drawn = torch.randn(MANY, *shape, generator=generator).to(value.device)
        return (drawn * value.float().std(correction=0) + value.float().mean()).to(value)
    if len(shape) == 1 and (alone or shape[0] == 1):  # of one position, all rows' tokens are as many as the rows
        shape = [POSITIONS]
    wide = getattr(model, "get_input_embeddings", lambda: None)()
    numbers = wide.num_embeddings if isinstance(wide, nn.Embedding) else int(value.max()) + 1
    return torch.randint(numbers, (MANY, *shape), generator=generator).to(value)


def _plain(value: Any) -> bool:
    """A cache is no plain value: a run would write into it."""
    return value is None or isinstance(value, Tensor | Mapping | tuple | list | bool | int | float | str)


def _take(value: Any, rows: Tensor, n: int) -> Any:
    """Those rows of all tensors in an argument that have n."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() and len(value) == n else value
    if isinstance(value, Mapping):
        return type(value)(**{key: _take(inner, rows, n) for key, inner in value.items()})
    return type(value)(_take(inner, rows, n) for inner in value) if isinstance(value, tuple | list) else value
