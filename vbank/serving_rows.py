"""The rows of one batch: whose they are, and what each layer adds to them.

Rows with adapters of their own are one batched product of x (g, tokens, in) with A (g, rank, in) and B (g, rank, out).
Where all rows are of one adapter, the product is the plain one of `vbank.load`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vbank.serving_probe import Probe
from vbank.serving_store import Held, Term, Terms
from vbank.targets import Part

Adapters = list[Held | None]  # of each row; None: the base model


@dataclass(frozen=True)
class Group:
    """Rows of a batch that one product updates, in outputs start..stop of a layer.

    rows: their numbers, None for all. A: (g, rank, in) and B: (g, rank, out), each pair for equally many rows in turn,
    or (rank, in) and (rank, out) for all rows alike. d: (g, 1, rank) and b: (g, 1, out), or None.
    """

    start: int
    stop: int
    rows: Tensor | None
    A: Tensor
    B: Tensor
    d: Tensor | None = None
    b: Tensor | None = None

    def covers(self, output: Tensor) -> bool:
        """Whether the group updates all rows and columns."""
        return self.rows is None and self.stop - self.start == output.shape[-1]

    def add(self, x: Tensor, onto: Tensor) -> Tensor:
        """onto + s * B (A x) for this group's rows. x: (rows, ..., in), onto: (rows, ..., stop - start)."""
        each = self.A if self.d is None else self.d
        lead = (-1,) if each.dim() == 2 else (len(each), -1)
        z = x.reshape(*lead, x.shape[-1]) @ self.A.mT  # (g, tokens, rank), or (tokens, rank)
        z = z if self.d is None else z * self.d
        if self.b is None and z.dim() == self.B.dim() and z.dtype == onto.dtype:  # the sum is part of the product
            add = torch.addmm if z.dim() == 2 else torch.baddbmm
            return add(onto.reshape(*lead, onto.shape[-1]), z, self.B).view(onto.shape)
        y = z @ self.B  # (g, tokens, stop - start)
        y = y if self.b is None else y * self.b
        return onto + y.view(onto.shape).to(onto.dtype)


def runs(adapters: Sequence[Held]) -> list[Held]:
    """The fewest adapters that stand for the rows, each for equally many in turn: a a a a b b -> a a b."""
    lengths = [(adapter, len(list(same))) for adapter, same in itertools.groupby(adapters, key=lambda a: a)]
    each = math.gcd(*(length for _, length in lengths))
    return [adapter for adapter, length in lengths for _ in range(length // each)]


def stack(part: Part, members: Sequence[tuple[int, Held, Term]], n: int, like: Tensor) -> Group:
    """One group of the rows whose number, adapter and term are given, out of `n`, for inputs like `like`."""
    numbers = [number for number, _, _ in members]
    rows = None if len(numbers) == n else torch.tensor(numbers, device=like.device)
    term_of = {adapter: term for _, adapter, term in members}
    terms = [term_of[adapter] for adapter in runs([adapter for _, adapter, _ in members])]
    first, place = terms[0], (part.start, part.stop, rows)
    if first.shared:
        d = None if first.d is None else torch.stack([t.d for t in terms if t.d is not None])[:, None].to(like)
        b = None if first.b is None else torch.stack([t.b for t in terms if t.b is not None])[:, None].to(like)
        return Group(*place, first.A.to(like), first.B.to(like).mT, d, b)
    if len(terms) == 1:
        return Group(*place, first.A.to(like), (first.B * first.scale).to(like).mT)
    A = torch.stack([term.A for term in terms])
    if first.B.is_contiguous():  # copied as it lies: by columns it takes several times as long
        B = torch.stack([term.B for term in terms]).mT
    else:
        B = torch.stack([term.B.mT for term in terms])
    if any(term.scale != 1.0 for term in terms):
        B *= torch.tensor([term.scale for term in terms], dtype=B.dtype, device=B.device)[:, None, None]
    return Group(*place, A.to(like), B.to(like))


class Batch:
    """Rows and their adapters, from the moment the batch was named until it is answered.

    Args:
        adapters: of each row.
        repeat: each row may have become so many rows in turn, as beams do.
        terms: of each adapter in the batch.
        outer: the batch that was being answered in this context before, of this server or another.
        owner: the server.
    """

    def __init__(
        self, adapters: Adapters, repeat: int, terms: Mapping[Held, Terms], owner: Any, outer: Batch | Probe | None
    ) -> None:
        self.owner, self.outer = owner, outer
        self.terms = terms
        self.layers = {layer for a in terms for layer in (*a.kind.layers, *a.kind.heads)}  # that its adapters act on
        self.uniform = len(set(adapters)) == 1
        self.rows = {len(adapters) * times: [a for a in adapters for _ in range(times)] for times in {1, repeat}}
        self._groups: dict[Any, list[Group]] = {}
        self._heads: dict[tuple[Held, str], nn.Module] = {}

    def said(self) -> str:
        """How many rows the batch may have."""
        return " or ".join(map(str, sorted(self.rows)))

    def adapt(self, layer: str, x: Tensor, output: Tensor) -> Tensor:
        """The output of a layer with each row's update added.

        Raises:
            ValueError: the input's first dimension is not known to be the rows of the batch.
        """
        self._check(layer, x)
        if layer not in self.layers:
            return output
        n = min(self.rows) if self.uniform else x.shape[0]  # of one adapter, any layout will do
        key = (layer, n, x.dtype, x.device)
        if key not in self._groups:
            self._groups[key] = self._group(layer, self.rows[n], x)
        groups = self._groups[key]
        if len(groups) == 1 and groups[0].covers(output):
            return groups[0].add(x, output)
        output = output.clone() if groups else output
        for group in groups:  # by rank: one product for all would pad the smaller ranks to the largest
            onto = output[..., group.start : group.stop]
            if group.rows is None:
                onto.copy_(group.add(x, onto))
            else:
                onto[group.rows] = group.add(x[group.rows], onto[group.rows])
        return output

    def _check(self, layer: str, x: Tensor) -> None:
        layouts = self.owner.layouts
        if x.dim() < 2 or x.shape[0] not in self.rows:
            layouts.refuse(layer)
        if self.uniform or layer in layouts.rows or layer not in self.layers:
            return
        given = f"{layer} has an input of shape {tuple(x.shape)} in a batch of {self.said()} rows with several adapters"
        if layer in layouts.other:
            raise ValueError(
                f"{given}; its first dimension must be the rows, and was not always. A layer with another layout, such"
                " as all rows' tokens in one dimension, can serve batches of one adapter"
            )
        raise ValueError(
            f"{given}, and a trial run of the model did not show whether its first dimension is the rows; call the"
            " served model itself, or answer in batches of one adapter"
        )

    def _group(self, layer: str, adapters: Adapters, x: Tensor) -> list[Group]:
        """The groups of a layer: one for each slice of its output and each rank or frozen pair."""
        members: OrderedDict[Any, tuple[Part, list[tuple[int, Held, Term]]]] = OrderedDict()
        for number, adapter in enumerate(adapters):
            if adapter is None:
                continue
            for part in adapter.kind.layers.get(layer, ()):
                term = self.terms[adapter][part.site.name]
                alike = term.A.data_ptr() if term.shared else term.A.shape
                key = (part.start, part.stop, term.shared, alike, term.d is None, term.b is None)
                members.setdefault(key, (part, []))[1].append((number, adapter, term))
        return [stack(part, found, len(adapters), x) for part, found in members.values()]

    def head(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """A head's output, computed anew with the values of each adapter that has some, on its rows.

        Raises:
            ValueError: an input or output cannot be split into the rows of the batch.
        """
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        n = next((value.shape[0] for value in tensors if value.shape[0] in self.rows), min(self.rows))
        by_adapter: dict[Held, list[int]] = {}
        for number, adapter in enumerate(self.rows[n]):
            if adapter is not None and name in adapter.kind.heads:
                by_adapter.setdefault(adapter, []).append(number)
        if by_adapter and tensors:
            self._check(name, tensors[0])
        for adapter, numbers in by_adapter.items():
            if (adapter, name) not in self._heads:
                self._heads[adapter, name] = with_values(module, adapter.head_values(name))
            head = self._heads[adapter, name]
            if self.uniform:
                return head(*args, **kwargs)
            if not isinstance(output, Tensor) or output.shape[:1] != (n,):
                raise ValueError(f"{name} gives no tensor of {n} rows, so adapters with heads cannot share a batch")
            rows = torch.tensor(numbers, device=output.device)
            taken = [_take(name, value, rows, n) for value in args]
            own = head(*taken, **{key: _take(name, value, rows, n) for key, value in kwargs.items()})
            output = output.index_copy(0, rows, own.to(output.dtype))
        return output


def _take(name: str, value: Any, rows: Tensor, n: int) -> Any:
    """The given rows of an argument of a head."""
    if not isinstance(value, Tensor) or value.dim() == 0 or (value.shape[0] == 1 and n != 1):
        return value
    if value.shape[0] != n:
        raise ValueError(
            f"{name} has an input of shape {tuple(value.shape)} in a batch of {n} rows; it cannot be split"
        )
    return value.index_select(0, rows)


def with_values(module: nn.Module, values: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """A module that computes with other values of some parameters and shares the rest. It has no hooks.

    torch.func.functional_call would exchange the values inside the module, where another thread may be at work.
    """
    twin = copy.copy(module)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(twin, hooks, OrderedDict())
    parameters: dict[str, Any] = {
        name: values[prefix + name].to(parameter) if prefix + name in values else parameter
        for name, parameter in module._parameters.items()
    }
    twin._parameters = parameters
    twin._modules = {
        name: None if child is None else with_values(child, values, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    return twin
