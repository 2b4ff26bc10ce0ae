"""Checkers of the chapter *VB-LoRA II: share*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, require_tensor

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


def weights_of(logits: Tensor, k: int) -> Tensor:
    """softmax(TopK(logits, k)) over the whole bank, zero where nothing is selected: (N, h)."""
    values, indices = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, indices, values.softmax(-1))


def admixture(function: Callable[..., Any]) -> int:
    """vb-lora-share-1: sub-vectors as top-k admixtures of the bank."""
    for logits, bank, k, _, case in inputs(71):
        weights = weights_of(logits, k)
        shape = (len(logits), bank.shape[1])
        answer = require_tensor(function(logits, bank, k), shape, f"The matrix of sub-vectors {case}", bank.dtype)
        if same(answer, weights @ bank):
            continue
        chosen = (weights > 0).to(bank.dtype)
        everything = logits.softmax(-1)
        mistakes = (
            (everything, "Every bank vector is mixed in; where does k enter?"),
            (everything * chosen, "The weights sum to less than one: they come from a softmax over the whole bank."),
            (chosen, "The selected vectors are added up without weights."),
            (chosen / k, "The selected vectors are averaged; a larger logit should weigh more."),
            (logits * chosen, "The logits themselves serve as weights; they need not be positive or sum to one."),
            (weights_of(-logits, k), "The k smallest logits are selected."),
            (
                (logits * chosen).softmax(-1),
                "Logits set to zero still take part in a softmax: the exponential of 0 is 1.",
            ),
            (weights.flip(0), "The sub-vectors come in another order than the rows of the logits."),
        )
        for wrong, words in mistakes:
            if same(answer, wrong @ bank):
                raise Wrong(f"{words} {case}")
        raise Wrong(f"The sub-vectors have the right shape but wrong values {case}.")
    return len(CASES)


def gradient_of_logits(function: Callable[..., Any]) -> int:
    """vb-lora-share-2: the gradient of the logits from that of the sub-vectors, without autograd."""
    for logits, bank, k, upstream, case in inputs(72):
        answer = require_tensor(
            function(logits, bank, k, upstream), tuple(logits.shape), f"The gradient {case}", logits.dtype
        )
        leaf = logits.clone().requires_grad_()
        values, indices = leaf.topk(k, dim=-1)
        (values.softmax(-1).unsqueeze(-1) * bank[indices]).sum(-2).backward(upstream)
        right: Tensor = leaf.grad  # type: ignore[assignment]
        if same(answer, right):
            continue
        weights, everything = weights_of(logits, k), logits.softmax(-1)
        chosen = (weights > 0).to(bank.dtype)
        gains = upstream @ bank.T  # (N, h), what a unit more of each bank vector does to the loss
        centred = gains - (weights * gains).sum(-1, keepdim=True)
        mistakes = (
            (-right, "The sign is wrong."),
            (right / len(logits), "It is averaged over the sub-vectors; each has logits of its own."),
            (weights * gains, "You moved one weight alone; the weights sum to one, so the others give way."),
            (chosen * gains, "That is the gradient of the weights; the softmax lies between weights and logits."),
            (gains, "That is the gradient of weights over the whole bank; which of them follow a logit?"),
            (chosen * centred, "A small weight moves less than a large one for the same change of its logit."),
            (
                everything * (gains - (everything * gains).sum(-1, keepdim=True)),
                "Logits that are not selected move too; that is a softmax over the whole bank.",
            ),
            (
                weights * (1 - weights) * gains,
                "That is the diagonal of the softmax's Jacobian; a logit moves every weight.",
            ),
        )
        for wrong, words in mistakes:
            if same(answer, wrong):
                raise Wrong(f"{words} {case}")
        if bool(((answer != 0) & (chosen == 0)).any()):
            raise Wrong(f"A logit that is not selected gets a gradient {case}.")
        raise Wrong(f"The gradient has the right shape but wrong values {case}.")
    return len(CASES)


def stored(function: Callable[..., Any]) -> int:
    """vb-lora-share-3: numbers in a compact file, in units of one float32."""
    cases: tuple[tuple[list[tuple[int, int]], int, int, int, int], ...] = (
        ([(8, 8)], 1, 5, 4, 1),
        ([(768, 768)] * 24, 4, 90, 256, 2),
        ([(1536, 384), (384, 1536), (384, 384)], 2, 256, 128, 3),
        ([(4096, 4096), (1024, 4096), (14336, 4096)], 4, 2048, 256, 2),
        ([], 4, 257, 8, 2),
    )
    for shapes, rank, h, b, k in cases:
        answer = function(shapes, rank, h, b, k)
        if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer):
            raise Wrong(f"The count should be a finite number; yours is {answer!r} of type {type(answer).__name__}.")
        width = 0.25 if h <= 256 else 0.5
        subs = sum(rank * (m + n) // b for m, n in shapes)
        right = h * b + subs * (k - 1 + k * width)
        if answer == right:
            continue
        sizes = sorted({tuple(shape) for shape in shapes})
        number = f"{len(shapes)} layer{'s' * (len(shapes) != 1)}"
        case = f"for {number} of the sizes {sizes}, rank {rank}, h = {h}, b = {b}, k = {k}"
        mistakes = (
            (h * b + subs * h, "That is what training holds, all logits included"),
            (h * b + subs * (k + k * width), "One of the k weights follows from the others"),
            (h * b + subs * (k - 1 + k), "An index needs no four bytes"),
            (
                h * b + subs * (k - 1 + k * (0.75 - width)),
                "The indices have the wrong size; how many vectors are there",
            ),
            (h * b + 1.5 * subs, "The paper's formula with 3 holds for k = 2 and at most 256 vectors"),
            (right - h * b, "The bank is missing"),
            (right + (len(shapes) - 1) * h * b, "All layers share one bank"),
            (h * b, "That is the bank alone"),
            (h * b + sum(rank * n // b for _, n in shapes) * (k - 1 + k * width), "Where are the sub-vectors of B"),
            (
                h * b + sum(2 * rank * n // b for _, n in shapes) * (k - 1 + k * width),
                "Not every layer is square: A and B have different sizes",
            ),
        )
        for wrong, words in mistakes:
            if answer == wrong:
                raise Wrong(f"{words} ({case}).")
        raise Wrong(f"The count is too {'large' if answer > right else 'small'} {case}.")
    return len(cases)


EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    "vb-lora-share-1": admixture,
    "vb-lora-share-2": gradient_of_logits,
    "vb-lora-share-3": stored,
}
