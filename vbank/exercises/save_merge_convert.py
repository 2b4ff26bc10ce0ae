"""Checkers of the chapter *Save, merge, convert*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vbank.exercises.checker import Wrong, close, require_tensor

SMALLEST = 2.0**-24  # half the distance from 1 to the next float32


def tensor_bytes(function: Callable[..., Any]) -> int:
    """save-1: the bytes of one tensor in a safetensors file."""
    generator = torch.Generator().manual_seed(61)
    bank = torch.randn(5, 4, generator=generator)
    rest = torch.rand(7, 1, generator=generator).half()
    indices = torch.randint(0, 5, (7, 2), generator=generator).to(torch.uint8)
    cases: tuple[tuple[dict[str, Tensor], dict[str, str] | None], ...] = (
        ({"bank": bank}, None),
        ({"bank": bank, "indices": indices, "weights": rest}, None),
        ({"indices": indices, "a": bank.flatten()[:3], "bank": bank.double()}, {"format": "pt"}),
    )
    tried = 0
    for tensors, metadata in cases:
        blob = safetensors.torch.save(tensors, metadata)
        start = 8 + int.from_bytes(blob[:8], "little")
        for name, value in tensors.items():
            answer = function(blob, name)
            case = f"of {name!r} in a file of {len(tensors)} tensor{'s' * (len(tensors) > 1)}"
            if not isinstance(answer, (bytes, bytearray, memoryview)):
                raise Wrong(f"Return bytes; the ones {case} are of type {type(answer).__name__}.")
            answer, right = bytes(answer), value.contiguous().numpy().tobytes()
            tried += 1
            if answer == right:
                continue
            begin, size = blob.index(right, start), len(right)
            if answer == blob[begin - start : begin - start + size]:
                raise Wrong(f"Your bytes {case} lie too early by the length of all that stands before the data.")
            if answer == blob[begin - 8 : begin - 8 + size]:
                raise Wrong(f"Your bytes {case} begin eight too early; what do the first eight bytes of the file hold?")
            if answer == blob[start:]:
                raise Wrong(f"Those are the bytes of all tensors, not {case}.")
            if len(answer) != size:
                raise Wrong(f"There are {size} bytes {case}; yours are {len(answer)}.")
            raise Wrong(f"The number of bytes is right {case}, their place is not.")
    return tried


def all_weights(function: Callable[..., Any]) -> int:
    """save-2: all weights of a sub-vector from those that a compact file holds."""
    even = torch.tensor(1 / 416).bfloat16()  # rounded up: 415 of them exceed one
    cases = (
        torch.tensor([[0.25], [0.5], [0.0]]),
        torch.tensor([[0.3, 0.2], [0.125, 0.0625]]),
        torch.empty(3, 0),
        torch.tensor([[169 / 512, 170 / 512]]).bfloat16(),  # the sum, 339 / 512, needs nine bits
        even.expand(2, 415).clone(),
    )
    for rest in cases:
        case = f"for {rest.shape[1]} stored weights a sub-vector of type {str(rest.dtype).removeprefix('torch.')}"
        shape = (rest.shape[0], rest.shape[1] + 1)
        answer = require_tensor(function(rest), shape, f"The weights {case}", rest.dtype)
        largest = (1.0 - rest.float().sum(-1)).clamp(min=0.0).to(rest.dtype)
        if not torch.equal(answer[:, 1:], rest):
            if torch.equal(answer[:, :-1], rest):
                raise Wrong(f"You put the largest weight last {case}; it stands first.")
            raise Wrong(f"The stored weights come back changed {case}; only the largest is to be found.")
        if torch.equal(answer[:, 0], largest):
            continue
        if (answer[:, 0] < 0).any():
            raise Wrong(f"A weight is negative {case}: rounded numbers can sum to more than one.")
        if close(answer[:, 0].float(), largest.float(), 1e-6):
            continue
        raise Wrong(f"The largest weight is off {case}; in which type do you take the sum?")
    return len(cases)


def reopened(function: Callable[..., Any]) -> int:
    """save-3: logits that make a stored choice again, above those of all other vectors by a margin."""
    generator = torch.Generator().manual_seed(63)
    cases = ((6, 9, 2, 0.1), (4, 8, 1, 0.5), (5, 12, 3, 0.3), (3, 6, 2, 1.0))
    for number, (N, h, k, margin) in enumerate(cases):
        others = 0.01 * torch.randn(N, h, generator=generator)
        indices = torch.rand(N, h, generator=generator).topk(k).indices  # (N, k)
        weights = (2 * torch.randn(N, k, generator=generator)).sort(-1, descending=True).values.softmax(-1)
        if number == 3:
            weights[0] = torch.tensor([1.0, 0.0])
        case = f"for {N} sub-vectors, h = {h}, k = {k} and a margin of {margin:g}"
        answer = function(indices, weights, others, margin)
        if number == 3 and isinstance(answer, Tensor) and not torch.isfinite(answer).all():
            raise Wrong(f"A logit is not finite {case}; what is the logarithm of a weight of zero?")
        answer = require_tensor(answer, (N, h), f"The logits {case}", others.dtype)
        outside = torch.ones(N, h, dtype=torch.bool).scatter(-1, indices, False)
        if not torch.equal(answer[outside], others[outside]):
            raise Wrong(f"The logits of vectors that are not chosen change {case}; leave them as they are.")
        chosen = answer.gather(-1, indices)
        best = others.masked_fill(~outside, -torch.inf).amax(-1)
        if (chosen <= best[:, None]).any():
            raise Wrong(f"A chosen vector stands below one that is not {case}, so top-k would choose another.")
        if close(chosen.exp(), weights.clamp(min=SMALLEST), 1e-5):
            raise Wrong(f"The chosen logits are the logarithms and nothing is added {case}.")
        if not torch.allclose(chosen.softmax(-1), weights, atol=1e-5):
            raise Wrong(f"The softmax of the chosen logits gives other weights {case}.")
        if number == 3 and abs(chosen[0, 0] - chosen[0, 1] + math.log(SMALLEST)) > 1e-3:
            raise Wrong(f"A weight of zero counts as 2^-24 {case}, so the logits differ by 24 log 2.")
        if not torch.allclose(chosen.amin(-1) - best, torch.full((N,), margin), atol=1e-3):
            if torch.allclose(chosen.amin(-1), (others.amax() + margin).expand(N), atol=1e-4):
                raise Wrong(
                    f"You measure the margin from one logit for all {case}; each sub-vector has a best of its own."
                )
            if torch.allclose(chosen.amin(-1) - others.amax(-1), torch.full((N,), margin), atol=1e-4):
                raise Wrong(
                    f"You measure from the largest of all logits {case}; the chosen ones' old values do not count."
                )
            raise Wrong(f"The smallest chosen logit is not the margin above the best of the others {case}.")
    return len(cases)


EXERCISES = {"save-1": tensor_bytes, "save-2": all_weights, "save-3": reopened}
