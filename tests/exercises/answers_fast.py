"""Right and wrong answers to the exercises of the chapter fast."""

import torch


def compose(indices, weights, bank):
    C = torch.zeros(len(indices), len(bank), dtype=bank.dtype)
    return C.scatter_add(1, indices, weights) @ bank


def overwritten(indices, weights, bank):
    return torch.zeros(len(indices), len(bank), dtype=bank.dtype).scatter(1, indices, weights) @ bank


def written(pieces, rows, b, itemsize):
    return (2 * pieces - 1) * rows * b * itemsize


def add_update(y, x, A, B, s):
    z = (x @ A.T).reshape(-1, len(A))
    return torch.addmm(y.reshape(-1, y.shape[-1]), z, B.T, alpha=s).view(y.shape)


def in_passes(y, x, A, B, s):
    return y + s * (x @ A.T @ B.T)


RIGHT = {"fast-1": compose, "fast-2": written, "fast-3": add_update}
WRONG = [
    ("fast-1", lambda i, w, bank: bank.new_zeros(len(i), bank.shape[1]), "All entries are zero"),
    ("fast-1", overwritten, "add them up"),
    ("fast-1", lambda i, w, bank: bank[i].sum(-2), "without their weights"),
    ("fast-1", lambda i, w, bank: (w[..., None] * bank[i]).sum(-2), "index gathers rows of the bank"),
    ("fast-1", lambda i, w, bank: 2 * compose(i, w, bank), "wrong values"),
    ("fast-1", lambda i, w, bank: compose(i, w, bank).float(), "type torch.float64"),
    ("fast-1", lambda i, w, bank: compose(i, w, bank).T, "should have shape"),
    ("fast-2", lambda n, rows, b, size: rows * b * size, "what a split writes"),
    ("fast-2", lambda n, rows, b, size: n * rows * b * size, "now they are added up"),
    ("fast-2", lambda n, rows, b, size: 2 * n * rows * b * size, "three by two"),
    ("fast-2", lambda n, rows, b, size: (2 * n - 1) * rows * b, "several bytes"),
    ("fast-2", lambda n, rows, b, size: (n + 1) * rows * b * size, "for each further slice"),
    ("fast-2", lambda n, rows, b, size: n * rows * b * size // 3, "too small"),
    ("fast-2", lambda n, rows, b, size: 5 * n * rows * b * size, "too large"),
    ("fast-2", lambda n, rows, b, size: 0.5, "should be an int"),
    ("fast-3", in_passes, "3 tensors of the size of y"),
    ("fast-3", lambda y, x, A, B, s: y + (s * (x @ A.T)) @ B.T, "2 tensors of the size of y"),
    ("fast-3", lambda y, x, A, B, s: y * 1.0, "update is missing"),
    ("fast-3", lambda y, x, A, B, s: s * (x @ A.T @ B.T), "outputs y are missing"),
    ("fast-3", lambda y, x, A, B, s: s * (y + x @ A.T @ B.T), "belongs to the update alone"),
    ("fast-3", lambda y, x, A, B, s: y + x @ A.T @ B.T, "scale s is missing"),
    ("fast-3", lambda y, x, A, B, s: y - s * (x @ A.T @ B.T), "wrong values"),
    ("fast-3", lambda y, x, A, B, s: y.add_(s * (x @ A.T @ B.T)), "changed its input"),
]
