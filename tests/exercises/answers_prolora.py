"""Right and wrong answers to the exercises of the chapter PRoLoRA."""

import math

import torch


def expanded(chunk, length, share, stride=None, sign=1, dim=0, trim=True):
    stride = max(chunk.shape[0] // share, 1) if stride is None else stride
    A = torch.cat([chunk.roll(sign * i * stride, dims=dim) for i in range(share)], dim=1)
    return A[:, :length] if trim else A


def parameters(shapes, rank, u, share, shared=None, width=lambda size, share: math.ceil(size / share)):
    shared = rank - u if shared is None else shared
    return sum(u * (m + n) + shared * (width(m, share) + width(n, share)) for m, n in shapes)


def labels(R, share_a, share_b, sign=-1, modulo=True, least=1, whole=int):
    step_a, step_b = max(whole(R / share_a), least), max(whole(R / share_b), least)
    rotation = [[j * step_a + sign * i * step_b for j in range(share_a)] for i in range(share_b)]
    return [[value % R if modulo else value for value in row] for row in rotation]


def folded(gradient, share, sign=-1, stride=None, whole=False):
    R, length = gradient.shape
    width = math.ceil(length / share)
    stride = max(R // share, 1) if stride is None else stride
    total = torch.zeros(R, width, dtype=gradient.dtype)
    for i, part in enumerate(gradient.split(width, dim=1)):
        if not whole or part.shape[1] == width:
            total[:, : part.shape[1]] += part.roll(sign * i * stride, dims=0)
    return total


RIGHT = {"prolora-1": expanded, "prolora-2": parameters, "prolora-3": labels, "prolora-4": folded}
WRONG = [
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, stride=0), "not rotated"),
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, sign=-1), "wrong way"),
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, dim=1), "along the columns"),
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, stride=1), "stride is 1"),
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, trim=False), "not trimmed"),
    ("prolora-1", lambda chunk, n, share: expanded(chunk, n, share, stride=chunk.shape[0] // share), "stride is 0"),
    (
        "prolora-1",
        lambda chunk, n, share: torch.cat([chunk, *[chunk.roll(max(len(chunk) // share, 1), 0)] * (share - 1)], dim=1)[
            :, :n
        ],
        "same amount",
    ),
    ("prolora-1", lambda chunk, n, share: chunk, "should have shape"),
    ("prolora-1", lambda chunk, n, share: 2 * expanded(chunk, n, share), "wrong values"),
    ("prolora-2", lambda s, r, u, c: sum((m + n) * (u + (r - u) / c) for m, n in s), "numbers come whole"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, u, c, width=lambda size, c: size // c), "the chunk is not"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, u, c, shared=r), "how many of them are shared"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, 0, c), "unshared ranks are missing"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, 0, c, shared=r - u), "unshared rows and columns"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, r, c), "what LoRA trains"),
    (
        "prolora-2",
        lambda s, r, u, c: sum(u * (m + n) + (r - u) * math.ceil((m + n) / c) for m, n in s),
        "chunks of their own",
    ),
    (
        "prolora-2",
        lambda s, r, u, c: u * sum(map(sum, s)) + math.ceil((r - u) * sum(map(sum, s)) / c),
        "rounded the sum",
    ),
    ("prolora-2", lambda s, r, u, c: parameters(s[:1], r, u, c), "one layer"),
    ("prolora-2", lambda s, r, u, c: parameters(s, r, u, c) + 1, "too large"),
    ("prolora-3", lambda R, a, b: [[0] * a for _ in range(b)], "CLoRA"),
    ("prolora-3", lambda R, a, b: labels(R, a, b, sign=1), "other diagonals"),
    ("prolora-3", lambda R, a, b: labels(R, a, b, modulo=False), "a rotation by R changes nothing"),
    ("prolora-3", lambda R, a, b: [[j - i for j in range(a)] for i in range(b)], "a rotation by R|strides"),
    ("prolora-3", lambda R, a, b: [[(j - i) % a for j in range(a)] for i in range(b)], "strides"),
    ("prolora-3", lambda R, a, b: labels(R, a, b, least=0), "at least 1"),
    ("prolora-3", lambda R, a, b: labels(R, a, b, whole=round), "rounded the wrong way"),
    ("prolora-3", lambda R, a, b: labels(R, a, b, whole=math.ceil), "rounded the wrong way|wrong blocks"),
    ("prolora-3", lambda R, a, b: labels(R, b, a), "rows of blocks come from B"),
    ("prolora-3", lambda R, a, b: [[(i, j) for j in range(a)] for i in range(b)], "wrong blocks|rotation by R"),
    ("prolora-3", lambda R, a, b: [[[0]] * a for _ in range(b)], "number or a string"),
    ("prolora-3", lambda R, a, b: list(torch.tensor(labels(R, a, b))), "list of rows"),
    ("prolora-3", lambda R, a, b: len(labels(R, a, b)), "list of rows"),
    ("prolora-4", lambda g, share: folded(g, share, stride=0), "not turned back"),
    ("prolora-4", lambda g, share: folded(g, share, sign=1), "turned on"),
    ("prolora-4", lambda g, share: folded(g, share) / share, "averaged"),
    ("prolora-4", lambda g, share: g[:, : math.ceil(g.shape[1] / share)], "first copy alone"),
    ("prolora-4", lambda g, share: folded(g, share, whole=True), "trimmed copy is missing"),
    ("prolora-4", lambda g, share: g, "should have shape"),
    ("prolora-4", lambda g, share: 3 * folded(g, share), "wrong values"),
]
