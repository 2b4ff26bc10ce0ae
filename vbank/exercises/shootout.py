"""Checkers of the chapter *The 10 x 10 shoot-out*."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vbank.exercises.checker import Wrong, close, recognise, require_tensor, settle


def least_error(function: Callable[..., Any]) -> int:
    """shootout-1: the least mean squared error of a matrix of rank at most r (Eckart and Young 1936)."""
    generator = torch.Generator().manual_seed(31)
    cases = ((10, 10, 2), (6, 9, 3), (9, 4, 1), (5, 5, 0), (4, 7, 4))
    for rows, columns, rank in cases:
        M = 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        case = f"for a {rows} x {columns} matrix and r = {rank}"
        answer = function(M, rank)
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            answer = torch.tensor(float(answer), dtype=M.dtype)
        value = float(require_tensor(answer, (), f"The error {case}"))
        sigma, entries = torch.linalg.svdvals(M), M.numel()
        squares = sigma.square()
        missed, total, added = float(squares[rank:].sum()), float(squares.sum()), float(sigma[rank:].sum())
        right = missed / entries
        mistakes = (
            (missed, "That is the sum of the squared errors {}, not their mean."),
            (math.sqrt(right), "That is the root of the mean squared error {}."),
            (math.sqrt(missed), "That is the Frobenius norm of the difference {}, not the mean squared error."),
            (missed / total, "That is the share of M's energy {}, not the mean squared error."),
            (missed / rows**2, "Not every matrix is square {}: divide by the number of entries."),
            (missed / columns**2, "Not every matrix is square {}: divide by the number of entries."),
            (added / entries, "You added singular values {}; energy needs something else of them."),
            (added, "You added singular values {}; energy needs something else of them."),
            ((total - missed) / entries, "That is what the best approximation keeps {}; which part does it miss?"),
            (float(squares[rank + 1 :].sum()) / entries, "You left out one singular value too many {}."),
            (float(squares[max(rank - 1, 0) :].sum()) / entries, "You counted one singular value too many {}."),
        )
        settle(value, right, mistakes, "Your error", case, partial(math.isclose, rel_tol=1e-5, abs_tol=1e-9))
    return len(cases)


class _Built(TorchDispatchMode):
    """Notes how many numbers the largest tensor of floats holds that PyTorch builds meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [
            value.numel() for value in tree_leaves(result) if isinstance(value, Tensor) and value.is_floating_point()
        ]
        self.numbers = max([self.numbers, *sizes])
        return result


def vera_d(function: Callable[..., Any]) -> int:
    """shootout-2: VeRA's best d for fixed b: the least squares of diag(b) B diag(d) A against W."""
    generator = torch.Generator().manual_seed(32)
    cases = ((10, 10, 1), (10, 10, 5), (6, 9, 4), (9, 5, 7))
    for outputs, inputs, rank in cases:
        W, A, B, b = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((outputs, inputs), (rank, inputs), (outputs, rank), (outputs,))
        )
        case = f"(out {outputs}, in {inputs}, r = {rank})"
        with _Built() as built:
            answer = function(W, A, B, b)
        answer = require_tensor(answer, (rank,), f"The vector d {case}", W.dtype)
        best, same = _solve(W, A, B, b), partial(close, tolerance=1e-6)
        if same(answer, best):
            if rank > 1 and built.numbers >= outputs * inputs * rank:
                raise Wrong(f"Your d is right, but you built the tall matrix: {built.numbers} numbers {case}.")
            continue
        scaled = b[:, None] * B  # (out, r)
        products = torch.einsum("oi,ok,ki->k", W, scaled, A)  # of W with each rank-one matrix
        squares = scaled.square().sum(0) * A.square().sum(1)
        gram = (A @ A.T) * (B.T @ scaled)  # b where b squared belongs
        ones = torch.ones_like(b)
        mistakes = (
            (_solve(W, A, B, ones), "Your d is the best one for b = 1 {}; b scales the rows."),
            (
                _solve(W / b[:, None], A, B, ones),
                "You divided the rows of W by b {}: rows with a small b then weigh too much in the error.",
            ),
            (products / squares, "You fitted each rank-one matrix alone {}; they are not orthogonal."),
            (products, "Those are the inner products with W {}; which linear system has them on its right side?"),
            (torch.linalg.lstsq(gram, products).solution, "The product of two rank-one matrices holds b twice {}."),
        )
        recognise(answer, mistakes, case, same)
        error, least = ((W - scaled * d @ A).square().sum() for d in (answer, best))
        raise Wrong(f"With your d the squared error is {float(error / least):.3g} times the least one {case}.")
    return len(cases)


def _solve(W: Tensor, A: Tensor, B: Tensor, b: Tensor) -> Tensor:
    atoms = torch.einsum("o,ok,ki->oik", b, B, A)  # (out, in, r)
    return torch.linalg.lstsq(atoms.flatten(0, 1), W.reshape(-1, 1)).solution[:, 0]  # (r,)


EXERCISES = {"shootout-1": least_error, "shootout-2": vera_d}
