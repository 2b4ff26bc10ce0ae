"""Right and wrong answers to the exercises of *VeRA*."""

import numpy as np
import torch


def update(A, B, d, b, x):
    z = d * (x @ A[:, : x.shape[1]].T)
    return b * (z @ B[: len(b)].T)


def diagonal(A, B, d, b, x):
    return x @ (B[: len(b)] @ torch.diag(d) @ A[:, : x.shape[1]]).T * b


def file_bytes(shapes, rank):
    return 4 * sum(rank + m for m, _ in shapes) + 8


def pair_bytes(shapes, rank):
    return 4 * rank * (max(m for m, _ in shapes) + max(n for _, n in shapes))


def frozen(A, B, d):
    return B @ (d[:, None] * A)


def best_scales(A, B, d, target):
    P = frozen(A, B, d)
    return (P * target).sum(1) / P.square().sum(1)


def with_numpy(A, B, d, b, x):
    W = np.diag(b.numpy()) @ B[: len(b)].numpy() @ np.diag(d.numpy()) @ A[:, : x.shape[1]].numpy()
    return x @ torch.from_numpy(W.T)


RIGHT = {
    "vera-1": update,
    "vera-2": lambda shapes, r: (file_bytes(shapes, r), pair_bytes(shapes, r)),
    "vera-3": best_scales,
}
WRONG = [
    ("vera-1", lambda A, B, d, b, x: update(A, B, d, b / b, x), "b is missing"),
    ("vera-1", lambda A, B, d, b, x: update(A, B, d / d, b, x), "d is missing"),
    ("vera-1", lambda A, B, d, b, x: update(A, B, d / d, b / b, x), "Both scales"),
    (
        "vera-1",
        lambda A, B, d, b, x: b * ((d * (x @ A[:, -x.shape[1] :].T)) @ B[-len(b) :].T),
        "first columns of A",
    ),
    ("vera-1", lambda A, B, d, b, x: b * ((d * (x @ A.T)) @ B.T), "raised RuntimeError"),
    ("vera-1", lambda A, B, d, b, x: 2 * update(A, B, d, b, x), "wrong values"),
    ("vera-1", lambda A, B, d, b, x: d * (x @ A.T), "should have shape"),
    ("vera-1", lambda A, B, d, b, x: x @ ((b[:, None] * B) @ (d[:, None] * A)).T, "as large as W"),
    ("vera-1", lambda A, B, d, b, x: (x @ A.T) @ torch.diag(d) @ (b[:, None] * B).T, "diagonal matrix"),
    ("vera-1", lambda A, B, d, b, x: (x @ A.T * d) @ B.T @ torch.diag(b), "diagonal matrix"),
    ("vera-1", diagonal, "diagonal matrix|as large as W"),
    (
        "vera-1",
        lambda A, B, d, b, x: torch.einsum("o,or,r,ri,ni->no", b, B[: len(b)], d, A[:, : x.shape[1]], x),
        "einsum of 5 tensors",
    ),
    ("vera-1", with_numpy, "outside PyTorch"),
    (
        "vera-1",
        lambda A, B, d, b, x: update(A, B, d, b, x) + 0 * torch.ones(4, *x.shape, *d.shape).sum(),
        "a tensor on the way",
    ),
    ("vera-2", lambda s, r: file_bytes(s, r), "two numbers"),
    ("vera-2", lambda s, r: (sum(r + m for m, _ in s), 1), "counts numbers"),
    ("vera-2", lambda s, r: (file_bytes(s, r) - 8, 1), "lacks the seed"),
    ("vera-2", lambda s, r: (4 * sum(r * (m + n) for m, n in s) + 8, 1), "LoRA's matrices"),
    ("vera-2", lambda s, r: (4 * sum(r + n for _, n in s) + 8, pair_bytes(s, r)), "one for each output"),
    ("vera-2", lambda s, r: (4 * sum(m for m, _ in s) + 4 * r + 8, pair_bytes(s, r)), "d of its own"),
    ("vera-2", lambda s, r: (file_bytes(s, r) + 8 * (len(s) - 1), pair_bytes(s, r)), "One seed"),
    ("vera-2", lambda s, r: (file_bytes(s, r) + pair_bytes(s, r), pair_bytes(s, r)), "regenerates"),
    ("vera-2", lambda s, r: (file_bytes(s, r) + 1, pair_bytes(s, r)), "file is too large"),
    ("vera-2", lambda s, r: (float(file_bytes(s, r)), pair_bytes(s, r)), "should be an int"),
    ("vera-2", lambda s, r: (file_bytes(s, r), pair_bytes(s, r) // 4), "pair is counted in numbers"),
    (
        "vera-2",
        lambda s, r: (file_bytes(s, r), 4 * r * sum(max(s, key=lambda shape: shape[0] * shape[1]))),
        "No single layer",
    ),
    ("vera-2", lambda s, r: (file_bytes(s, r), 4 * r * sum(s[0])), "first layer|No single layer"),
    ("vera-2", lambda s, r: (file_bytes(s, r), 4 * r * sum(m + n for m, n in s)), "share one pair"),
    ("vera-2", lambda s, r: (file_bytes(s, r), 0), "pair is too small"),
    ("vera-3", lambda A, B, d, target: (frozen(A, B, d) * target).sum(1), "inner products"),
    (
        "vera-3",
        lambda A, B, d, target: best_scales(A, B, d, target) * frozen(A, B, d).norm(dim=1),
        "its square is wanted",
    ),
    (
        "vera-3",
        lambda A, B, d, target: (frozen(A, B, d) * target).sum(1) / frozen(A, B, d).square().sum(),
        "all of them together",
    ),
    ("vera-3", lambda A, B, d, target: best_scales(A, B, d / d, target), "ignores one"),
    ("vera-3", lambda A, B, d, target: (target / frozen(A, B, d)).mean(1), "average of quotients"),
    ("vera-3", lambda A, B, d, target: 1 / best_scales(A, B, d, target), "upside down"),
    ("vera-3", lambda A, B, d, target: torch.diag(best_scales(A, B, d, target)), "should have shape"),
    ("vera-3", lambda A, B, d, target: 1.1 * best_scales(A, B, d, target), "away from the target"),
]
