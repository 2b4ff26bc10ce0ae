"""Checkers of the chapter *Low rank*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor


def balanced_factors(function: Callable[..., Any]) -> int:
    """low-rank-1: factors of the best approximation of rank r with B^T B = A A^T."""
    generator = torch.Generator().manual_seed(11)
    cases = ((6, 6, 2), (9, 5, 3), (4, 8, 1), (5, 5, 5))
    for rows, columns, rank in cases:
        M = 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        case = f"for a {rows} x {columns} matrix and r = {rank}"
        answer = function(M, rank)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two tensors: B and A.")
        B = require_tensor(answer[0], (rows, rank), f"The factor B {case}", M.dtype)
        A = require_tensor(answer[1], (rank, columns), f"The factor A {case}", M.dtype)
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        best, product = U[:, :rank] * S[:rank] @ Vh[:rank], B @ A
        if close(product, best, 1e-8):
            if close(B.T @ B, A @ A.T, 1e-8):
                continue
            ratio = float(B.norm() / A.norm())
            if math.isclose(ratio, 1, rel_tol=1e-6):
                raise Wrong(f"B and A have the same norm {case}, but B^T B is not A A^T: balance each direction.")
            raise Wrong(f"The product is right {case}, but B has {ratio:.3g} times the norm of A.")
        if close(product, U[:, :rank] @ Vh[:rank], 1e-6):
            raise Wrong(f"The directions are right {case}, their lengths are not: where are the singular values?")
        if close(product, U[:, :rank] * S[:rank] ** 2 @ Vh[:rank], 1e-6):
            raise Wrong(f"The product holds every singular value twice {case}.")
        if close(product, U[:, -rank:] * S[-rank:] @ Vh[-rank:], 1e-6):
            raise Wrong(f"You kept the smallest singular values {case}.")
        if rank == len(S):
            raise Wrong(f"The product should be M itself {case}; it is not.")
        excess = float((M - product).norm() / (M - best).norm())
        raise Wrong(f"The product's error is {excess:.3g} times the best one {case}.")
    return len(cases)


def one_budget(function: Callable[..., Any]) -> int:
    """low-rank-2: ranks for several matrices that make the sum of their squared errors least."""
    generator = torch.Generator().manual_seed(12)
    cases = (
        ([3.0, 1.0], 4, 5, 5),
        ([4.0, 1.0, 1.0], 6, 6, 4),
        ([3.0, 0.1, 1.0], 4, 5, 8),
        ([2.0, 1.0, 1.0, 5.0], 1, 4, 4),
    )
    for scales, total, rows, columns in cases:
        matrices = [scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64) for scale in scales]
        case = f"for {len(matrices)} matrices of shape {(rows, columns)} and a total of {total}"
        answer = function(matrices, total)
        if isinstance(answer, Tensor):
            answer = answer.tolist()
        if not isinstance(answer, (tuple, list)) or len(answer) != len(matrices):
            raise Wrong(f"Return a list with one rank for each matrix {case}.")
        ranks = [require_integer(rank, f"A rank {case}") for rank in answer]
        values = [torch.linalg.svdvals(M) for M in matrices]
        if any(not 0 <= rank <= len(own) for rank, own in zip(ranks, values, strict=True)):
            raise Wrong(f"The ranks {ranks} are impossible {case}: each lies between 0 and {len(values[0])}.")
        if sum(ranks) > total:
            raise Wrong(f"The ranks {ranks} add up to {sum(ranks)} {case}, more than you may spend.")

        def left(spent: list[int], values: list[Tensor] = values) -> float:
            return sum(float(own[rank:].square().sum()) for own, rank in zip(values, spent, strict=True))

        best = _largest(values, total)
        if left(ranks) <= left(best) * (1 + 1e-9):
            continue
        if sum(ranks) < total:
            raise Wrong(f"The ranks {ranks} add up to {sum(ranks)} only {case}; spend all.")
        if len(set(ranks)) == 1:
            raise Wrong(f"All matrices get the same {case}; do all of them need it?")
        raise Wrong(
            f"With your ranks {ranks} the errors add up to {left(ranks) / left(best):.3g} times the least {case}."
        )
    return len(cases)


def _largest(values: list[Tensor], total: int) -> list[int]:
    """How many of the `total` largest of all values each tensor holds."""
    least = torch.cat(values).sort(descending=True).values[total - 1]
    return [int((own >= least).sum()) for own in values]


def normal_form(function: Callable[..., Any]) -> int:
    """low-rank-3: factors of the same product, the first of which begins with the identity."""
    generator = torch.Generator().manual_seed(13)
    cases = ((5, 5, 2), (7, 4, 3), (3, 9, 1), (4, 6, 4))
    for rows, columns, rank in cases:
        case = f"for B of shape {(rows, rank)} and A of shape {(rank, columns)}"
        B = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        A = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
        B[:rank] += 2 * torch.eye(rank)  # far from singular
        answer = function(B, A)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two tensors: the new B and the new A.")
        new_B = require_tensor(answer[0], (rows, rank), f"The new B {case}", B.dtype)
        new_A = require_tensor(answer[1], (rank, columns), f"The new A {case}", A.dtype)
        identity, same = torch.eye(rank, dtype=B.dtype), close(new_B @ new_A, B @ A, 1e-8)
        if close(new_B[:rank], identity, 1e-8):
            if same:
                continue
            if close(new_A, A, 1e-8):
                raise Wrong(f"B begins with the identity {case}, but A stayed as it was, so the product changed.")
            if close(new_B @ torch.linalg.solve(B[:rank], new_A), B @ A, 1e-8):
                raise Wrong(f"B begins with the identity {case}, but A took one factor too many.")
            raise Wrong(f"B begins with the identity {case}, but the product is another one: what must A make up for?")
        if close(new_B[-rank:], identity, 1e-8):
            raise Wrong(f"The identity stands at the bottom of B {case}, not at the top.")
        if close(new_A[:, :rank], identity, 1e-8):
            raise Wrong(f"The identity stands in A {case}; it belongs into the top block of B.")
        if same:
            raise Wrong(f"The product is right {case}, but B does not begin with the identity.")
        raise Wrong(f"B does not begin with the identity {case}, and the product changed; on which side does R belong?")
    return len(cases)


EXERCISES = {"low-rank-1": balanced_factors, "low-rank-2": one_budget, "low-rank-3": normal_form}
