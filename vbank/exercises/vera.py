"""Checkers of the chapter *VeRA*."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vbank.exercises.checker import Wrong, close, recognise, require_integer, require_tensor, settle

SEED_BYTES = 8  # an integer of 64 bits


class _Shapes(TorchFunctionMode):
    """Remembers the shape of every tensor that PyTorch's functions return, and calls whose tensors it cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.hidden = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.einsum:
            operands = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            if len(operands) > 2:  # it multiplies two at a time, and what it holds between is not shown
                self.hidden = (
                    f"an einsum of {len(operands)} tensors may build a large one inside; give it two at a time"
                )
        elif getattr(func, "__name__", "") in ("numpy", "__array__", "tolist"):
            self.hidden = "what you do outside PyTorch cannot be checked here; stay with tensors"
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.seen.append(tuple(value.shape))
        return result


def update(function: Callable[..., Any]) -> int:
    """vera-1: b * (B (d * (A x))) for a layer that may be smaller than the pair, with no large matrix on the way."""
    generator = torch.Generator().manual_seed(41)
    # batch, in, out, rank, largest in, largest out; no two sizes of a case are equal, so that a shape tells its kind
    cases = ((2, 30, 24, 3, 30, 24), (5, 24, 36, 4, 40, 36), (3, 20, 16, 2, 26, 50))
    for batch, inputs, outputs, rank, widest, tallest in cases:
        A, B, d, b, x = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((rank, widest), (tallest, rank), (rank,), (outputs,), (batch, inputs))
        )
        case = f"(batch {batch}, in {inputs}, out {outputs}, rank {rank}, A {rank} x {widest}, B {tallest} x {rank})"
        with _Shapes() as shapes:
            answer = function(A, B, d, b, x)
        value = require_tensor(answer, (batch, outputs), f"The update {case}", x.dtype)
        first, last = (A[:, :inputs], B[:outputs]), (A[:, -inputs:], B[-outputs:])

        def through(pair: tuple[Tensor, Tensor], d: Tensor, b: Tensor, x: Tensor = x) -> Tensor:
            return b * ((d * (x @ pair[0].T)) @ pair[1].T)

        one = torch.ones_like
        mistakes = (
            (through(first, d, one(b)), "b is missing {}."),
            (through(first, one(d), b), "d is missing {}."),
            (through(first, one(d), one(b)), "Both scales are missing {}."),
            (through(last, d, b), "A smaller layer takes the first columns of A and the first rows of B; not so {}."),
        )
        settle(value, through(first, d, b), mistakes, "The update", case, partial(close, tolerance=1e-8))
        if shapes.hidden:
            raise Wrong(f"The values are right, but {shapes.hidden}.")
        for shape in shapes.seen:
            if sorted(shape) == sorted((inputs, outputs)):
                raise Wrong(f"The values are right, but on the way you build a matrix as large as W, {shape} {case}.")
            if shape in ((rank, rank), (outputs, outputs)):
                raise Wrong(f"The values are right, but you build a diagonal matrix, {shape} {case}.")
            if torch.Size(shape).numel() >= inputs * outputs and shape not in ((rank, widest), (tallest, rank)):
                raise Wrong(f"The values are right, but a tensor on the way, {shape}, is as large as W {case}.")
    return len(cases)


def storage(function: Callable[..., Any]) -> int:
    """vera-2: bytes of a VeRA file, and bytes of the frozen pair that it is regenerated into."""
    cases: tuple[tuple[list[tuple[int, int]], int], ...] = (
        ([(8, 8)], 1),
        ([(768, 768)] * 24, 1024),
        ([(1536, 384), (384, 1536)], 4),
        ([(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)], 256),
        ([(20, 30), (50, 10)], 3),
    )
    for shapes, rank in cases:
        case = f"for rank {rank} and the shapes {sorted(set(shapes))} ({len(shapes)} layers)"
        answer = function(shapes, rank)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two numbers: the bytes of the file and the bytes of the frozen pair.")
        file = require_integer(answer[0], "The size of the file")
        pair = require_integer(answer[1], "The size of the pair")
        _file(file, shapes, rank, case)
        _pair(pair, shapes, rank, case)
    return len(cases)


def _file(answer: int, shapes: list[tuple[int, int]], rank: int, case: str) -> None:
    trained = sum(rank + m for m, _ in shapes)
    right = 4 * trained + SEED_BYTES
    mistakes = (
        (trained, "That counts numbers, not bytes {}."),
        (4 * trained, "The file lacks the seed {}."),
        (4 * sum(rank * (m + n) for m, n in shapes) + SEED_BYTES, "That file holds LoRA's matrices {}."),
        (4 * sum(rank + n for _, n in shapes) + SEED_BYTES, "b scales the rows of B {}, one for each output."),
        (4 * sum(m for m, _ in shapes) + 4 * rank + SEED_BYTES, "Every layer has a d of its own {}."),
        (4 * trained + SEED_BYTES * len(shapes), "One seed serves all layers {}."),
        (right + _pair_bytes(shapes, rank), "That file holds the frozen pair {}; the seed regenerates it."),
    )
    settle(answer, right, mistakes, "The file", case)


def _pair_bytes(shapes: list[tuple[int, int]], rank: int) -> int:
    return 4 * rank * (max(m for m, _ in shapes) + max(n for _, n in shapes))


def _pair(answer: int, shapes: list[tuple[int, int]], rank: int, case: str) -> None:
    right = _pair_bytes(shapes, rank)
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    mistakes = (
        (right // 4, "The pair is counted in numbers, not bytes {}."),
        (4 * rank * sum(largest), "No single layer sets both sizes of the pair {}."),
        (4 * rank * sum(shapes[0]), "The first layer is not the largest {}."),
        (4 * sum(rank * (m + n) for m, n in shapes), "All layers share one pair {}."),
    )
    settle(answer, right, mistakes, "The pair", case)


def best_scales(function: Callable[..., Any]) -> int:
    """vera-3: the b for which diag(b) B diag(d) A is closest to a given matrix."""
    generator = torch.Generator().manual_seed(43)
    cases = ((4, 3, 2), (5, 5, 3), (6, 8, 1), (5, 6, 12), (9, 4, 4))
    for m, n, rank in cases:
        A, B, d, target = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((rank, n), (m, rank), (rank,), (m, n))
        )
        case = f"(out {m}, in {n}, rank {rank})"
        value = require_tensor(function(A, B, d, target), (m,), f"The vector b {case}", A.dtype)
        P = B @ (d[:, None] * A)  # (m, n), the update at b = 1
        products, lengths = (P * target).sum(1), P.square().sum(1)  # (m,) both
        right, same = products / lengths, partial(close, tolerance=1e-6)
        if same(value, right):
            continue
        plain = B @ A
        mistakes = (
            (products, "The vector b holds inner products with the target; no fit is made of them yet {}."),
            (
                products / lengths.sqrt(),
                "The vector b divides by the length of each row where its square is wanted {}.",
            ),
            (products / lengths.sum(), "The vector b divides every row by the length of all of them together {}."),
            ((plain * target).sum(1) / plain.square().sum(1), "The vector b ignores one of the arguments {}."),
            ((target / P).mean(1), "The vector b is an average of quotients; that is not the least sum of squares {}."),
            (lengths / products, "The vector b has its quotient upside down {}."),
        )
        recognise(value, mistakes, case, same)
        far, near = ((b[:, None] * P - target).norm() for b in (value, right))
        raise Wrong(f"Your update is {far:.3f} away from the target, the closest one {near:.3f} {case}.")
    return len(cases)


EXERCISES = {"vera-1": update, "vera-2": storage, "vera-3": best_scales}
