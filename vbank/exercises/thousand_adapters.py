"""Checkers of the chapter *A thousand adapters on one model*."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor


def mixed_update(function: Callable[..., Any]) -> int:
    """thousand-1: the update of a batch whose rows name users: B[u] (A[u] x) a row, nothing for a row of the base."""
    draw = torch.Generator().manual_seed(17)
    cases: tuple[list[int | None], ...] = (
        [0, 1, 2],
        [2, 0, 0, 1, 2],
        [None, 1, None, 0],
        [1],
        [None, None],
        [2, 2, 2, 2],
    )
    for owners in cases:
        x = torch.randn(len(owners), 3, 6, generator=draw)
        A, B = torch.randn(3, 2, 6, generator=draw), torch.randn(3, 5, 2, generator=draw)
        answer = require_tensor(function(x, A, B, list(owners)), (len(owners), 3, 5), "The update")
        _compare_update(answer, x, A, B, owners)
    return len(cases)


def _compare_update(answer: Tensor, x: Tensor, A: Tensor, B: Tensor, owners: Sequence[int | None]) -> None:
    every = torch.einsum("uor,uri,nti->unto", B, A, x)  # each user's update of each row
    right = torch.stack([torch.zeros(3, 5) if u is None else every[u, i] for i, u in enumerate(owners)])
    if close(answer, right):
        return
    case = f"for rows of {', '.join('the base' if u is None else f'user {u}' for u in owners)}"
    base = [i for i, u in enumerate(owners) if u is None]
    if base and not close(answer[base], right[base]):
        whose = [u for u in range(3) if close(answer[base], every[u, base])]
        added = f"the update of user {whose[0]}" if whose else "something"
        raise Wrong(f"You added {added} to a row of the base model {case}; it gets nothing.")
    for i, user in enumerate(owners):
        others = [u for u in range(3) if u != user and close(answer[i], every[u, i])]
        if user is not None and others:
            raise Wrong(f"Row {i} got the update of user {others[0]}, not of user {user}, {case}.")
    raise Wrong(f"The update is wrong {case}.")


def hits(function: Callable[..., Any]) -> int:
    """thousand-2: how many requests find their factors in a cache that drops the least recently used."""
    cases: tuple[tuple[str, dict[str, int], int], ...] = (
        ("abab", {"a": 1, "b": 1}, 2),
        ("abcabc", {"a": 1, "b": 1, "c": 1}, 2),
        ("abacabad", {"a": 1, "b": 1, "c": 1, "d": 1}, 2),
        ("abcacb", {"a": 2, "b": 3, "c": 2}, 5),
        ("aXaXa", {"a": 2, "X": 9}, 5),
        ("aaaa", {"a": 4}, 0),
        ("abcbdaab", {"a": 1, "b": 2, "c": 3, "d": 1}, 5),
    )
    for names, sizes, limit in cases:
        answer = require_integer(function(list(names), dict(sizes), limit), "The number of hits")
        right = _hits(names, sizes, limit)
        if answer == right:
            continue
        case = f"for {' '.join(names)} with sizes {sizes} and {limit} bytes"
        if answer == len(names) - right:
            raise Wrong(f"You counted the misses {case}.")
        if answer == _hits(names, sizes, limit, renew=False):
            raise Wrong(f"You dropped the oldest entry {case}; drop the one whose last use is longest ago.")
        if answer == _hits(names, sizes, 10**9):
            raise Wrong(f"Nothing was ever dropped {case}.")
        if answer == _hits(names, sizes, limit, keep_large=True):
            raise Wrong(f"An entry larger than the whole cache drove out all others {case}; it should not be kept.")
        raise Wrong(f"It is {'fewer' if answer > right else 'more'} than {answer} {case}.")
    return len(cases)


def _hits(names: str, sizes: Mapping[str, int], limit: int, renew: bool = True, keep_large: bool = False) -> int:
    kept: OrderedDict[str, int] = OrderedDict()
    found = 0
    for name in names:
        if name in kept:
            found += 1
            if renew:
                kept.move_to_end(name)
        elif sizes[name] <= limit or keep_large:
            kept[name] = sizes[name]
            while sum(kept.values()) > limit:
                kept.popitem(last=False)
    return found


EXERCISES = {"thousand-1": mixed_update, "thousand-2": hits}
