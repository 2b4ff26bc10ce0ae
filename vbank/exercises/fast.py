"""Checkers of the chapter *Fast*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor, settle
from vbank.exercises.guard import guarded

VIEWS = ("view", "_unsafe_view", "t", "transpose", "permute", "detach", "alias", "expand", "reshape", "unsqueeze")
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty")
GATHERS = ("index", "index_select", "gather", "embedding", "_embedding_bag", "take")


class Gathered(TorchDispatchMode):
    """Notes the operators that gather."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.names += [name] * (name in GATHERS)
        return function(*args, **(kwargs or {}))


def composed(function: Callable[..., Any]) -> int:
    """fast-1: sub-vectors from indices and weights, as one product with the bank."""
    generator = torch.Generator().manual_seed(81)
    cases = ((4, 5, 3, 2), (1, 3, 4, 1), (6, 7, 2, 3))
    for N, h, b, k in cases:
        bank = torch.randn(h, b, generator=generator, dtype=torch.float64)
        weights = torch.rand(N, k, generator=generator, dtype=torch.float64)
        indices = torch.randint(0, h, (N, k), generator=generator)
        indices[0] = indices[0, 0]  # an index that occurs twice
        case = f"(N = {N}, h = {h}, b = {b}, k = {k})"
        with Gathered() as gathered:
            answer = function(indices, weights, bank)
        answer = require_tensor(answer, (N, b), f"The composition {case}", bank.dtype)
        right = (weights[..., None] * bank[indices]).sum(-2)
        C = torch.zeros(N, h, dtype=bank.dtype)
        mistakes = (
            (torch.zeros_like(right), "All entries are zero {}."),
            (
                C.scatter(1, indices, weights) @ bank,
                "An index that occurs twice keeps one of its weights {}; add them up.",
            ),
            (C.scatter(1, indices, 1.0) @ bank, "The vectors are added up without their weights {}."),
            (bank[indices].sum(-2), "The vectors are added up without their weights {}."),
        )
        settle(answer, right, mistakes, "The composition", case, close)
        if gathered.names:
            raise Wrong(f"The values are right, but {gathered.names[0]} gathers rows of the bank; use a product.")
    return len(cases)


def written(function: Callable[..., Any]) -> int:
    """fast-2: bytes that a backward pass through slices writes."""
    cases = ((2, 10, 4, 4), (144, 2592, 256, 4), (7, 100, 16, 2), (1, 5, 3, 8))
    for pieces, rows, b, itemsize in cases:
        whole = rows * b * itemsize
        case = f"({pieces} pieces of {rows} rows of {b} numbers of {itemsize} bytes)"
        answer = require_integer(function(pieces, rows, b, itemsize), f"The number of bytes {case}")
        mistakes = (
            (whole, "That is what a split writes {}."),
            (pieces * whole, "The gradients of the slices are there {}; now they are added up."),
            (2 * pieces * whole, "Two tensors are added by one sum, three by two {}."),
            ((2 * pieces - 1) * rows * b, "Those are numbers {}; a number has several bytes."),
            ((pieces + 1) * whole, "There is a sum for each further slice, and each sum writes a whole tensor {}."),
        )
        settle(answer, (2 * pieces - 1) * whole, mistakes, "The number of bytes", case)
    return len(cases)


class Written(TorchDispatchMode):
    """Counts results of a given number of elements, views aside."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in VIEWS + EMPTY:
            results = out if isinstance(out, (tuple, list)) else [out]
            self.count += sum(isinstance(t, Tensor) and t.numel() == self.numel for t in results)
        return out


def reference(y: Tensor, x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    z = x @ A.T  # (batch, length, r)
    return torch.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, len(A)), B.T, alpha=s).view(y.shape)


def update(function: Callable[..., Any]) -> int:
    """fast-3: y + s B (A x) that writes one tensor of the size of y."""
    generator = torch.Generator().manual_seed(83)
    cases = ((2, 3, 5, 7, 2, 2.0), (1, 4, 6, 11, 3, 0.5))
    for batch, length, in_features, out_features, r, s in cases:
        shapes = ((batch, length, out_features), (batch, length, in_features), (r, in_features), (out_features, r))
        y, x, A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
        case = f"(x {tuple(x.shape)}, y {tuple(y.shape)}, rank {r}, s = {s})"
        with Written(y.numel()) as found:
            answer = function(y, x, A, B, s)
        with Written(y.numel()) as allowed:  # what the checker itself copies is counted here too
            right = guarded(reference, 10.0, y, x, A, B, s)
        answer = require_tensor(answer, tuple(y.shape), f"The outputs {case}", y.dtype)
        mistakes = (
            (y, "The update is missing {}."),
            (right - y, "That is the update alone {}; the outputs y are missing."),
            (y + x @ A.T @ B.T, "The scale s is missing {}."),
            (s * (y + x @ A.T @ B.T), "The scale belongs to the update alone {}."),
        )
        settle(answer, right, mistakes, "The tensor of outputs", case, close)
        extra = found.count - allowed.count
        if extra > 0:
            raise Wrong(f"The values are right, but {extra + 1} tensors of the size of y are written {case}.")
    return len(cases)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    "fast-1": composed,
    "fast-2": written,
    "fast-3": update,
}
