"""Checkers of the chapter *VB-LoRA II: share*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, recognise, require_tensor, settle

CASES = ((1, 4, 3, 2), (5, 6, 4, 1), (3, 7, 2, 3), (4, 5, 3, 5))  # sub-vectors N, bank size h, length b, k


def inputs(seed: int) -> list[tuple[Tensor, Tensor, int, Tensor, str]]:
    """Of each case: logits (N, h), bank (h, b), k, the gradient of the loss in the sub-vectors (N, b), and words."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(draw(N, h), draw(h, b), k, draw(N, b), f"(N = {N}, h = {h}, b = {b}, k = {k})") for N, h, b, k in CASES]


def same(answer: Tensor, right: Tensor) -> bool:
    """Equal up to rounding; unlike a relative tolerance, this allows rounding where the right answer is all zeros."""
    return bool((answer - right).abs().max() <= 1e-8)


def restore(function: Callable[..., Any]) -> int:
    """vb-lora-share-1: sub-vectors from the three tensors of a compact file."""
    for logits, bank, k, _, case in inputs(71):
        values, indices = logits.topk(k, dim=-1)  # (N, k) both
        weights, vectors = values.softmax(-1).unsqueeze(-1), bank[indices]  # (N, k, 1), (N, k, b)
        rest = weights[:, 1:]  # (N, k - 1, 1)
        shape = (len(logits), bank.shape[1])
        answer = function(bank, indices.to(torch.uint8), rest.squeeze(-1))
        answer = require_tensor(answer, shape, f"The matrix of sub-vectors {case}", bank.dtype)
        right = (weights * vectors).sum(-2)
        mistakes = (
            (torch.zeros_like(right), "All entries are zero {}."),
            (
                (torch.cat([rest, weights[:, :1]], 1) * vectors).sum(-2),
                "The weight that the file leaves out stands with the wrong vector {}; which of the k is it?",
            ),
            ((rest * vectors[:, :-1]).sum(-2), "The file leaves out one weight {}; you left it out too."),
            ((rest * vectors[:, 1:]).sum(-2), "One of the k vectors is missing {}; what is its weight?"),
            (right + (1 - weights[:, 0]) * vectors[:, 0], "The weights of a sub-vector should sum to one {}."),
            (vectors.mean(-2), "The selected vectors are averaged {}; the file holds weights for them."),
            (vectors.sum(-2), "The selected vectors are added up without weights {}."),
            (right.flip(0), "The sub-vectors come in another order than the rows of the indices {}."),
        )
        settle(answer, right, mistakes, "The matrix of sub-vectors", case, same)
    return len(CASES)


def swaps(function: Callable[..., Any]) -> int:
    """vb-lora-share-2: change of the loss, to first order, if a vector takes the place of the weakest selected one."""
    for logits, bank, k, upstream, case in inputs(72):
        answer = require_tensor(
            function(logits, bank, k, upstream), tuple(logits.shape), f"The matrix of changes {case}", logits.dtype
        )
        values, indices = logits.topk(k, dim=-1)
        weights = values.softmax(-1)  # (N, k), descending
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, True)  # (N, h)
        slopes = upstream @ bank.T  # (N, h), what a unit more of each bank vector does to the loss
        selected = slopes.gather(-1, indices)  # (N, k)
        mean = (weights * selected).sum(-1, keepdim=True)  # (N, 1), g^T u
        smallest, out = weights[:, -1:], selected[:, -1:]
        changes = smallest * (slopes - out)
        right = changes.masked_fill(chosen, 0.0)
        if same(answer, right):
            continue
        mistakes = (
            (torch.zeros_like(right), "All entries are zero {}."),
            (-right, "The sign is wrong {}: a positive entry should mean that the loss rises."),
            (changes, "The entries of the selected vectors should be zero {}."),
            (slopes - out, "The newcomer takes over a weight {}; yours is one."),
            (smallest * slopes, "A vector enters {}, but which one leaves?"),
            (weights[:, :1] * (slopes - selected[:, :1]), "The strongest of the selected vectors leaves in yours {}."),
            (smallest * (slopes - mean), "The newcomer replaces one vector {}, not the whole sub-vector."),
            (right / len(logits), "It is averaged over the sub-vectors {}; each has changes of its own."),
        )
        for wrong, words in mistakes:
            recognise(answer, [(wrong, words), (wrong.masked_fill(chosen, 0.0), words)], case, same)
        if bool((answer[chosen] != 0).any()):
            raise Wrong(f"The entries of the selected vectors should be zero {case}.")
        raise Wrong(f"The matrix has the right shape but wrong values {case}.")
    return len(CASES)


def stored(function: Callable[..., Any]) -> int:
    """vb-lora-share-3: numbers in a compact file, in units of one float32."""
    cases: tuple[tuple[list[tuple[int, int]], int, int, int, int], ...] = (
        ([(8, 8)], 1, 5, 4, 1),
        ([(768, 768)] * 24, 4, 90, 256, 2),
        ([(1536, 384), (384, 1536), (384, 384)], 2, 256, 128, 3),
        ([(4096, 4096), (1024, 4096), (14336, 4096)], 4, 2048, 256, 2),
        ([(8, 8)], 4, 257, 8, 2),
        ([], 4, 257, 8, 2),
    )
    for shapes, rank, h, b, k in cases:
        answer = function(shapes, rank, h, b, k)
        if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer):
            raise Wrong(f"The count should be a finite number; yours is {answer!r} of type {type(answer).__name__}.")
        width = 0.25 if h <= 256 else 0.5
        subs = sum(rank * (m + n) // b for m, n in shapes)
        bank, each = h * b, k - 1 + k * width
        right = bank + subs * each
        sizes = sorted({tuple(shape) for shape in shapes})
        number = f"{len(shapes)} layer{'s' * (len(shapes) != 1)}"
        case = f"(for {number} of the sizes {sizes}, rank {rank}, h = {h}, b = {b}, k = {k})"
        mistakes = (
            (bank + subs * h, "That is what training holds, all logits included {}."),
            (right + subs, "One of the k weights follows from the others {}."),
            (bank + subs * (k - 1 + k), "An index needs no four bytes {}."),
            (
                bank + subs * (k - 1 + k * (0.75 - width)),
                "The indices have the wrong size {}; how many vectors are there?",
            ),
            (bank + 1.5 * subs, "The paper's formula with 3 holds for k = 2 and at most 256 vectors {}."),
            (right - bank, "The bank is missing {}."),
            (right + (len(shapes) - 1) * bank, "All layers share one bank {}."),
            (bank, "That is the bank alone {}."),
            (bank + sum(rank * n // b for _, n in shapes) * each, "Where are the sub-vectors of B {}?"),
            (
                bank + sum(2 * rank * n // b for _, n in shapes) * each,
                "Not every layer is square {}: A and B have different sizes.",
            ),
        )
        settle(answer, right, mistakes, "The count", case)
    return len(cases)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    "vb-lora-share-1": restore,
    "vb-lora-share-2": swaps,
    "vb-lora-share-3": stored,
}
