"""Checkers of the chapter *Tied-LoRA*."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor, settle

same = partial(close, tolerance=1e-8)


def normal(generator: torch.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal float64 tensors of these shapes."""
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def several(layers: int) -> str:
    """``'1 layer'``, ``'2 layers'``."""
    return f"{layers} layer{'s' if layers > 1 else ''}"


def update_of_a_layer(function: Callable[..., Any]) -> int:
    """tied-lora-1: s * diag(v) B diag(u) A x for a layer that may be smaller than the pair."""
    generator = torch.Generator().manual_seed(31)
    cases = (  # batch, layer (out, in), pair (out, in), rank, s
        (4, (5, 7), (5, 7), 3, 1.0),
        (3, (5, 4), (5, 9), 2, 0.5),
        (3, (4, 6), (8, 6), 2, 2.0),
        (1, (3, 3), (8, 9), 4, 1.5),
    )
    for batch, (m, n), (rows, columns), rank, s in cases:
        x, A, B, u, v = normal(generator, (batch, n), (rank, columns), (rows, rank), (rank,), (m,))
        case = f"for a layer with {n} inputs and {m} outputs, a pair for {columns} and {rows}, r = {rank}, s = {s:g}"
        answer = require_tensor(function(x, A, B, u, v, s), (batch, m), f"The update's output {case}", x.dtype)

        def output(x: Tensor, A: Tensor, B: Tensor, u: Tensor | float, v: Tensor | float, s: float) -> Tensor:
            return s * (x @ A.T * u) @ B.T * v

        mistakes = (
            (output(x, A[:, :n], B[:m], u, v, 1.0), "The output lacks the scale s {}."),
            (output(x, A[:, :n], B[:m], 1.0, v, s), "The output lacks u {}."),
            (output(x, A[:, :n], B[:m], u, 1.0, s), "The output lacks v {}."),
            (output(x, A[:, -n:], B[:m], u, v, s), "The output takes the wrong columns of A {}."),
            (output(x, A[:, :n], B[-m:], u, v, s), "The output takes the wrong rows of B {}."),
            (
                output(x, A[:, -n:], B[-m:], u, v, s),
                "The output takes the wrong columns of A and the wrong rows of B {}.",
            ),
        )
        settle(answer, output(x, A[:, :n], B[:m], u, v, s), mistakes, "The output", case, same)
    return len(cases)


def parameters(function: Callable[..., Any]) -> int:
    """tied-lora-2: numbers that Tied-LoRA trains for layers of mixed shapes, the pair sized for the largest."""
    block = [(24, 24)] * 4 + [(90, 24), (24, 90)]
    cases: tuple[tuple[list[tuple[int, int]], int], ...] = (
        ([(8, 8)] * 3, 2),
        (block, 3),
        (block * 2, 4),
        ([(40, 16), (10, 30)], 1),
        ([(6, 9)], 5),
    )
    for shapes, rank in cases:
        answer = require_integer(function(shapes, rank), "The count")
        largest = max(m for m, _ in shapes) + max(n for _, n in shapes)
        outs, ranks = sum(m for m, _ in shapes), rank * len(shapes)
        case = f"for rank {rank} and the shapes {sorted(set(shapes))} ({several(len(shapes))})"
        mistakes = (
            (rank * sum(m + n for m, n in shapes) + ranks + outs, "That is a pair for each layer {}."),
            (rank * sum(m + n for m, n in set(shapes)) + ranks + outs, "That is a pair for each shape {}."),
            (rank * largest, "That is the pair alone {}, without any scales."),
            (rank * largest + outs, "The vectors u are missing {}."),
            (rank * largest + ranks, "The vectors v are missing {}."),
            (ranks + outs, "That is VeRA {}, whose pair is not trained."),
            (rank * largest + rank + outs, "One vector u is counted {}; whose is it?"),
            (rank * largest + ranks + sum(n for _, n in shapes), "You took v as long as the input {}."),
            (
                rank * max(m + n for m, n in shapes) + ranks + outs,
                "You took the pair from one layer {}; it is too small for another.",
            ),
            (
                rank * sum(shapes[0]) + ranks + outs,
                "You took the pair from the first layer {}; it is too small for another.",
            ),
        )
        settle(answer, rank * largest + ranks + outs, mistakes, "The count", case)
    return len(cases)


def gradient_of_the_pair(function: Callable[..., Any]) -> int:
    """tied-lora-3: gradient of the shared A from several layers, without autograd."""
    generator = torch.Generator().manual_seed(33)
    cases = ((1, 4, 5, 6, 2, 1.0), (2, 3, 6, 4, 3, 1.0), (2, 5, 4, 7, 2, 0.5), (3, 1, 3, 3, 1, 2.0))
    for layers, batch, m, n, rank, s in cases:
        A, B, u, v, x, g = normal(
            generator, (rank, n), (m, rank), (layers, rank), (layers, m), (layers, batch, n), (layers, batch, m)
        )
        leaf = A.clone().requires_grad_()
        (s * ((x @ leaf.T) * u[:, None]) @ B.T * v[:, None]).backward(g)
        case = f"({several(layers)}, batch {batch}, in {n}, out {m}, rank {rank}, s = {s:g})"
        answer = require_tensor(function(A, B, u, v, x, g, s), (rank, n), f"The gradient {case}", A.dtype)
        right: Tensor = leaf.grad  # type: ignore[assignment]

        def each(u: Tensor | None, v: Tensor | None, B: Tensor, x: Tensor, g: Tensor, s: float) -> Tensor:
            back = (g if v is None else g * v[:, None]) @ B  # (layers, batch, rank)
            return s * ((back if u is None else back * u[:, None]).mT @ x)  # (layers, rank, in)

        parts = each(u, v, B, x, g, s)
        mistakes = (
            (right / s, "The gradient lacks the scale s {}."),
            (parts.mean(0), "The gradient is the mean over the layers {}; they add up."),
            (parts[0], "The gradient is that of the first layer alone {}."),
            (parts[-1], "The gradient is that of the last layer alone {}."),
            (each(None, v, B, x, g, s).sum(0), "The gradient lacks u {}."),
            (each(u, None, B, x, g, s).sum(0), "The gradient lacks v {}."),
            (each(None, None, B, x, g, s).sum(0), "The gradient lacks u and v {}."),
            (right / batch, "The gradient is averaged over the batch {}; add the examples up."),
            (-right, "The gradient has the wrong sign {}."),
        )
        settle(answer, right, mistakes, "The gradient", case, same)
    return len(cases)


def folded(function: Callable[..., Any]) -> int:
    """tied-lora-4: the same updates with the first layer's scales equal to one."""
    generator = torch.Generator().manual_seed(34)
    cases = ((1, 3, 4, 2), (2, 5, 5, 2), (4, 4, 6, 3))
    for layers, m, n, rank in cases:
        given = normal(generator, (rank, n), (m, rank), (layers, rank), (layers, m))
        case = f"({several(layers)}, in {n}, out {m}, rank {rank})"
        answer = function(*given)
        if not isinstance(answer, (tuple, list)) or len(answer) != 4:
            raise Wrong("Return four tensors: A, B, u and v.")
        A, B, u, v = (
            require_tensor(value, tuple(before.shape), f"The new {letter} {case}", before.dtype)
            for letter, value, before in zip("ABuv", answer, given, strict=True)
        )
        for letter, scales in (("u", u), ("v", v)):
            if not same(scales[0], torch.ones_like(scales[0])):
                raise Wrong(f"The first layer's {letter} is not all ones {case}.")
        right, found = updates(*given), updates(A, B, u, v)
        for layer in range(layers):
            if not same(found[layer], right[layer]):
                first = " The first layer's is right: what happened to the scales of the others?" if layer else ""
                raise Wrong(f"The update of layer number {layer + 1} has changed {case}.{first}")
    return len(cases)


def updates(A: Tensor, B: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """diag(v) B diag(u) A for each layer: (layers, out, in)."""
    return (v[:, :, None] * B * u[:, None]) @ A


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    "tied-lora-1": update_of_a_layer,
    "tied-lora-2": parameters,
    "tied-lora-3": gradient_of_the_pair,
    "tied-lora-4": folded,
}
