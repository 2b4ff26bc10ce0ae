"""Checkers of the chapter *Low rank*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor


def best_approximation(function: Callable[..., Any]) -> int:
    """low-rank-1: the best approximation of rank r of a matrix (Eckart and Young 1936)."""
    generator = torch.Generator().manual_seed(11)
    cases = ((6, 6, 2), (9, 4, 3), (4, 9, 1), (5, 7, 5), (8, 8, 7))
    for rows, columns, rank in cases:
        M = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        case = f"for a {rows} x {columns} matrix and r = {rank}"
        answer = require_tensor(function(M, rank), (rows, columns), f"The approximation {case}", M.dtype)
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        best = U[:, :rank] * S[:rank] @ Vh[:rank]
        if close(answer, best, 1e-8):
            continue
        found = int(torch.linalg.matrix_rank(answer, rtol=1e-9))
        if found > rank:
            raise Wrong(f"Your matrix {case} has rank {found}, which is more than r.")
        if close(answer, U[:, :rank] @ Vh[:rank], 1e-6):
            raise Wrong(f"The directions are right {case}, their lengths are not: where are the singular values?")
        if close(answer, U[:, -rank:] * S[-rank:] @ Vh[-rank:], 1e-6):
            raise Wrong(f"You kept the smallest singular values {case}.")
        excess = float((M - answer).norm() / (M - best).norm().clamp_min(1e-12))
        raise Wrong(f"Your matrix {case} has rank {found} <= r, but its error is {excess:.3g} times the best one.")
    return len(cases)


def rank_for_energy(function: Callable[..., Any]) -> int:
    """low-rank-2: the smallest rank whose best approximation keeps a share of the squared Frobenius norm."""
    generator = torch.Generator().manual_seed(12)
    shares = (0.5, 0.9, 0.99, 0.999)
    spectra = [torch.tensor([4.0, 2.0, 1.0, 0.5]), torch.ones(6), 0.8 ** torch.arange(12.0)]
    cases = 0
    for spectrum in spectra:
        size = len(spectrum)
        left, right = (
            torch.linalg.qr(torch.randn(size + extra, size, generator=generator, dtype=torch.float64))[0]
            for extra in (0, 3)
        )
        M = left * spectrum.double() @ right.T
        squares, plain = (torch.cumsum(s, 0) / s.sum() for s in (spectrum.double() ** 2, spectrum.double()))
        for share in shares:
            cases += 1
            answer = require_integer(function(M, share), "The rank")
            best = int((squares < share - 1e-9).sum()) + 1
            if answer == best:
                continue
            case = f"for a share of {share:g} and the singular values {[round(s, 3) for s in spectrum.tolist()]}"
            if answer == int((plain < share - 1e-9).sum()) + 1:
                raise Wrong(f"Energy adds up the *squared* singular values; yours looks like the plain sum {case}.")
            if answer == best - 1:
                raise Wrong(f"One too few {case}: an index counts from 0, a rank from 1.")
            raise Wrong(f"A rank of {answer} is too {'large' if answer > best else 'small'} {case}.")
    return cases


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


EXERCISES = {"low-rank-1": best_approximation, "low-rank-2": rank_for_energy, "low-rank-3": normal_form}
