"""Right and wrong answers to the exercises of *The 10 x 10 shoot-out*."""

import torch


def missed(M, r):
    return torch.linalg.svdvals(M)[r:].square().sum()


def vera_system(W, A, B, b, power=2):
    gram = (A @ A.T) * (B.T @ (b[:, None] ** power * B))
    return gram, torch.einsum("oi,o,ok,ki->k", W, b, B, A)


def vera_d(W, A, B, b, power=2):
    return torch.linalg.solve(*vera_system(W, A, B, b, power))


def tall(W, A, B, b):
    atoms = torch.einsum("o,ok,ki->oik", b, B, A)
    return torch.linalg.lstsq(atoms.flatten(0, 1), W.reshape(-1, 1)).solution[:, 0]


RIGHT = {
    "shootout-1": lambda M, r: missed(M, r) / M.numel(),
    "shootout-2": vera_d,
}
WRONG = [
    ("shootout-1", missed, "sum of the squared errors"),
    ("shootout-1", lambda M, r: (missed(M, r) / M.numel()) ** 0.5, "root of the mean"),
    ("shootout-1", lambda M, r: float(missed(M, r)) ** 0.5, "Frobenius norm"),
    ("shootout-1", lambda M, r: missed(M, r) / missed(M, 0), "share of M's energy"),
    ("shootout-1", lambda M, r: missed(M, r) / len(M) ** 2, "square"),
    ("shootout-1", lambda M, r: torch.linalg.svdvals(M)[r:].sum() / M.numel(), "added singular values"),
    ("shootout-1", lambda M, r: (missed(M, 0) - missed(M, r)) / M.numel(), "keeps"),
    ("shootout-1", lambda M, r: missed(M, r + 1) / M.numel(), "left out one"),
    ("shootout-1", lambda M, r: missed(M, max(r - 1, 0)) / M.numel(), "counted one"),
    ("shootout-1", lambda M, r: 99.0, "too large"),
    ("shootout-1", lambda M, r: M, "should have shape"),
    ("shootout-2", tall, "built the tall matrix"),
    ("shootout-2", lambda W, A, B, b: vera_d(W, A, B, b / b), "b = 1"),
    ("shootout-2", lambda W, A, B, b: vera_d(W / b[:, None], A, B, b / b), "divided the rows"),
    (
        "shootout-2",
        lambda W, A, B, b: (lambda G, h: h / G.diagonal())(*vera_system(W, A, B, b)),
        "not orthogonal",
    ),
    ("shootout-2", lambda W, A, B, b: vera_system(W, A, B, b)[1], "inner products with W"),
    ("shootout-2", lambda W, A, B, b: vera_d(W, A, B, b, power=1), "b twice"),
    ("shootout-2", lambda W, A, B, b: vera_d(W, A, B, b)[:, None], "should have shape"),
    ("shootout-2", lambda W, A, B, b: 2 * vera_d(W, A, B, b), "times the least"),
]
