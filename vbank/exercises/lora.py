"""Checkers of the chapter *LoRA*."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, recognise, require_integer, require_tensor, settle

same = partial(close, tolerance=1e-8)


def gradients(function: Callable[..., Any]) -> int:
    """lora-1: gradients of A, B and x from the gradient of the loss in y, without autograd."""
    generator = torch.Generator().manual_seed(21)
    cases = ((1, 4, 3, 2, 1.0), (5, 6, 6, 2, 1.0), (7, 3, 8, 1, 2.0), (4, 9, 5, 3, 0.25))
    for batch, inputs, outputs, rank, scale in cases:
        shapes = ((outputs, inputs), (rank, inputs), (outputs, rank), (batch, inputs), (batch, outputs))
        given = W, A, B, x, upstream = tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
        )
        with torch.inference_mode():  # backward fails there
            answer = _without_autograd(function, *given, scale)
        if not isinstance(answer, (tuple, list)) or len(answer) != 3:
            raise Wrong("Return three tensors: the gradients of A, of B and of x.")
        leaves = [tensor.clone().requires_grad_() for tensor in (A, B, x)]
        (leaves[2] @ W.T + scale * (leaves[2] @ leaves[0].T) @ leaves[1].T).backward(upstream)
        for letter, mine, leaf in zip("ABx", answer, leaves, strict=True):
            case = f"of {letter} (batch {batch}, in {inputs}, out {outputs}, rank {rank}, s = {scale:g})"
            value = require_tensor(mine, tuple(leaf.shape), f"The gradient {case}", A.dtype)
            right: Tensor = leaf.grad  # type: ignore[assignment]
            if not same(value, right):
                recognise(value, _mistakes(letter, right, scale, given), case, same)
                raise Wrong(f"The gradient {case} has the right shape but wrong values.")
    return len(cases)


def _without_autograd(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function; where it fails for lack of autograd, says that this is on purpose."""
    try:
        return function(*arguments)
    except Wrong as wrong:
        if "does not require grad" in str(wrong) or "nference tensor" in str(wrong) or "inference mode" in str(wrong):
            raise Wrong("Autograd is switched off here: write the products of the backward pass yourself.") from None
        raise


def _mistakes(letter: str, right: Tensor, scale: float, given: tuple[Tensor, ...]) -> list[tuple[Tensor, str]]:
    W, A, B, x, upstream = given
    if letter == "x":
        of_one = [
            (upstream @ W, "The gradient {} goes through W alone; x reaches the loss on a second path."),
            (
                scale * upstream @ B @ A,
                "The gradient {} goes through the update alone; x reaches the loss on a second path.",
            ),
            (upstream @ W + upstream @ B @ A, "The gradient {} lacks the scale s."),
        ]
    else:
        of_one = [(right / scale, "The gradient {} lacks the scale s.")]
    return [
        *of_one,
        (right / len(x), "The gradient {} is averaged over the batch; add the examples up."),
        (-right, "The gradient {} has the wrong sign."),
    ]


def parameters(function: Callable[..., Any]) -> int:
    """lora-2: how many parameters LoRA trains for layers of given shapes (out_features, in_features)."""
    cases: tuple[tuple[list[tuple[int, int]], int], ...] = (
        ([(8, 8)], 1),
        ([(768, 768)] * 24, 8),
        ([(1536, 384), (384, 1536)], 4),
        ([(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)], 16),
        ([], 4),
    )
    for shapes, rank in cases:
        answer = require_integer(function(shapes, rank), "The count")
        right = sum(rank * (m + n) for m, n in shapes)
        case = f"for rank {rank} and the shapes {sorted(set(shapes))} ({len(shapes)} layers)"
        mistakes = (
            (sum(m * n for m, n in shapes), "That is what full fine-tuning trains {}."),
            (sum(2 * rank * n for _, n in shapes), "Not every layer is square {}: A and B have different sizes."),
            (sum(2 * rank * m for m, _ in shapes), "Not every layer is square {}: A and B have different sizes."),
            (right / 2, "Half of the count is missing {}."),
            (right / max(len(shapes), 1), "You counted one layer {}."),
        )
        settle(answer, right, mistakes, "The count", case)
    return len(cases)


def merged_weight(function: Callable[..., Any]) -> int:
    """lora-3: the merged weight W + (alpha / r) B A, in W's own precision."""
    generator = torch.Generator().manual_seed(23)
    cases = ((4, 6, 2, 2.0, torch.float32), (6, 4, 3, 16.0, torch.float32), (5, 5, 1, 0.5, torch.bfloat16))
    for outputs, inputs, rank, alpha, dtype in cases:
        W, A, B = (
            torch.randn(shape, generator=generator, dtype=torch.float32)
            for shape in ((outputs, inputs), (rank, inputs), (outputs, rank))
        )
        W = W.to(dtype)
        case = f"for W of shape {(outputs, inputs)} and type {dtype}, r = {rank}, alpha = {alpha:g}"
        answer = require_tensor(function(W, A, B, alpha), (outputs, inputs), f"The merged weight {case}", dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        base, update = W.float(), B @ A
        mistakes = (
            (base + update, "The update has no scale {}."),
            (base + alpha * update, "The update is scaled by alpha alone {}."),
            (base + rank / alpha * update, "The update has its scale upside down {}."),
            (alpha / rank * update, "That is the update alone {}; what became of the pretrained weight?"),
        )
        right = base + alpha / rank * update
        settle(answer.float(), right, mistakes, "The merged weight", case, partial(close, tolerance=tolerance))
    return len(cases)


EXERCISES = {"lora-1": gradients, "lora-2": parameters, "lora-3": merged_weight}
