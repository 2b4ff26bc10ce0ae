"""Checkers of the chapter *LoRA*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_integer, require_tensor


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
            if not close(value, right, 1e-8):
                raise Wrong(_what_is_wrong(letter, value, right, scale, given).format(f"The gradient {case}"))
    return len(cases)


def _without_autograd(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function; where it fails for lack of autograd, says that this is on purpose."""
    try:
        return function(*arguments)
    except Wrong as wrong:
        if "does not require grad" in str(wrong) or "nference tensor" in str(wrong) or "inference mode" in str(wrong):
            raise Wrong("Autograd is switched off here: write the products of the backward pass yourself.") from None
        raise


def _what_is_wrong(letter: str, value: Tensor, right: Tensor, scale: float, given: tuple[Tensor, ...]) -> str:
    W, A, B, x, upstream = given
    if letter == "x":
        if close(value, upstream @ W, 1e-8):
            return "{} goes through W alone; x reaches the loss on a second path."
        if close(value, scale * upstream @ B @ A, 1e-8):
            return "{} goes through the update alone; x reaches the loss on a second path."
        if close(value, upstream @ W + upstream @ B @ A, 1e-8):
            return "{} lacks the scale s."
    elif close(value * scale, right, 1e-8):
        return "{} lacks the scale s."
    if len(x) > 1 and close(value * len(x), right, 1e-8):
        return "{} is averaged over the batch; add the examples up."
    if close(value, -right, 1e-8):
        return "{} has the wrong sign."
    return "{} has the right shape but wrong values."


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
        if answer == right:
            continue
        case = f"for rank {rank} and the shapes {sorted(set(shapes))} ({len(shapes)} layers)"
        if answer == sum(m * n for m, n in shapes):
            raise Wrong(f"That is what full fine-tuning trains {case}.")
        if answer in (sum(2 * rank * n for _, n in shapes), sum(2 * rank * m for m, _ in shapes)):
            raise Wrong(f"Not every layer is square {case}: A and B have different sizes.")
        if 2 * answer == right:
            raise Wrong(f"Half of the count is missing {case}.")
        if len(shapes) > 1 and answer * len(shapes) == right:
            raise Wrong(f"You counted one layer {case}.")
        raise Wrong(f"The count is too {'large' if answer > right else 'small'} {case}.")
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
        update = B @ A
        if close(answer.float(), W.float() + alpha / rank * update, tolerance):
            continue
        wrong_scales = {
            1.0: "has no scale",
            alpha: "is scaled by alpha alone",
            rank / alpha: "has its scale upside down",
        }
        for scale, words in wrong_scales.items():
            if close(answer.float(), W.float() + scale * update, tolerance):
                raise Wrong(f"The update {words} {case}.")
        if close(answer.float(), alpha / rank * update, tolerance):
            raise Wrong(f"That is the update alone {case}; what became of the pretrained weight?")
        raise Wrong(f"The merged weight has wrong values {case}.")
    return len(cases)


EXERCISES = {"lora-1": gradients, "lora-2": parameters, "lora-3": merged_weight}
