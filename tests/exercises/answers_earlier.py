"""Right and wrong answers to the exercises of the first chapters."""

import torch


def svd_rank_r(M, r):
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


def energy(M, share, power=2, plus=1):
    s = torch.linalg.svdvals(M) ** power
    return int((torch.cumsum(s, 0) / s.sum() < share - 1e-12).sum()) + plus


def gradients(A, B, x, g, s):
    return s * (g @ B).T @ x, s * g.T @ (x @ A.T)


def mutates(W, A, B, alpha):
    W += alpha / A.shape[0] * B @ A
    return W


def paired(right_a, right_b):
    d = torch.tensor(right_a, dtype=torch.float64) - torch.tensor(right_b, dtype=torch.float64)
    return d.mean().item(), (d.std() / len(d) ** 0.5).item()


def accuracies(right_a, right_b):
    return sum(right_a) / len(right_a), sum(right_b) / len(right_b)


def independent(right_a, right_b):
    a, b = accuracies(right_a, right_b)
    return a - b, ((a * (1 - a) + b * (1 - b)) / len(right_a)) ** 0.5


def compact(shapes, rank, h, b, k, weights=-1, index=None, logits=0, size=4):
    pieces = sum(rank * (m + n) // b for m, n in shapes)
    index = index or (1 if h <= 256 else 2)
    return size * h * b + pieces * (k * index + size * (k + weights)) + 4 * pieces * logits


def missed(M, r):
    return torch.linalg.svdvals(M)[r:].square().sum()


def vera_system(W, A, B, b, power=2):
    gram = (A @ A.T) * (B.T @ (b[:, None] ** power * B))
    return gram, torch.einsum("oi,o,ok,ki->k", W, b, B, A)


def vera_d(W, A, B, b, power=2):
    return torch.linalg.solve(*vera_system(W, A, B, b, power))


RIGHT = {
    "cost-1": lambda frozen, trained: 2 * frozen + 16 * trained,
    "low-rank-1": svd_rank_r,
    "low-rank-2": energy,
    "lora-1": gradients,
    "lora-2": lambda shapes, r: sum(r * (m + n) for m, n in shapes),
    "lora-3": lambda W, A, B, alpha: (W.float() + alpha / A.shape[0] * B @ A).to(W.dtype),
    "shootout-1": lambda M, r: missed(M, r) / M.numel(),
    "shootout-2": vera_d,
    "finetune-1": paired,
    "finetune-2": compact,
}
WRONG = [
    ("cost-1", lambda f, t: 4 * f + 16 * t, "bfloat16"),
    ("cost-1", lambda f, t: 2 * f + 12 * t, "more than one number"),
    ("cost-1", lambda f, t: 2 * f + 8 * t, "besides weight and gradient"),
    ("cost-1", lambda f, t: 16 * (f + t), "no gradient"),
    ("cost-1", lambda f, t: 2.0 * f + 16 * t, "should be an int"),
    ("cost-1", lambda f, t: 2 * f + 17 * t, "Too many bytes"),
    ("low-rank-1", lambda M, r: M, "more than r"),
    ("low-rank-1", lambda M, r: torch.linalg.svd(M, full_matrices=False)[0][:, :r], "should have shape"),
    ("low-rank-1", lambda M, r: M.tolist(), "should be a tensor"),
    ("low-rank-1", lambda M, r: svd_rank_r(M / M.norm(), r) * 0 + svd_rank_r(M, 1), "times the best"),
    (
        "low-rank-1",
        lambda M, r: (lambda U, S, Vh: U[:, :r] @ Vh[:r])(*torch.linalg.svd(M, full_matrices=False)),
        "where are the singular values",
    ),
    (
        "low-rank-1",
        lambda M, r: (lambda U, S, Vh: U[:, -r:] * S[-r:] @ Vh[-r:])(*torch.linalg.svd(M, full_matrices=False)),
        "smallest singular values",
    ),
    ("low-rank-1", lambda M, r: svd_rank_r(M, r).float(), "type torch.float64"),
    ("low-rank-2", lambda M, share: energy(M, share, power=1), "squared"),
    ("low-rank-2", lambda M, share: energy(M, share, plus=0), "from 0"),
    ("low-rank-2", lambda M, share: len(M), "too large"),
    ("lora-1", lambda A, B, x, g, s: ((g @ B).T @ x, g.T @ (x @ A.T)), "lacks the scale"),
    ("lora-1", lambda A, B, x, g, s: tuple(v / len(x) for v in gradients(A, B, x, g, s)), "averaged"),
    ("lora-1", lambda A, B, x, g, s: tuple(-v for v in gradients(A, B, x, g, s)), "sign"),
    ("lora-1", lambda A, B, x, g, s: gradients(A, B, x, g, s)[::-1], "should have shape"),
    ("lora-1", lambda A, B, x, g, s: gradients(A, B, x, g, s)[0], "two tensors"),
    ("lora-1", lambda A, B, x, g, s: (A * float("nan"), B), "NaN"),
    ("lora-2", lambda shapes, r: sum(m * n for m, n in shapes), "full fine-tuning"),
    ("lora-2", lambda shapes, r: sum(2 * r * n for _, n in shapes), "square"),
    ("lora-2", lambda shapes, r: sum(r * m for m, _ in shapes), "Half"),
    ("lora-2", lambda shapes, r: sum(r * (m + n) for m, n in shapes) + 1, "too large"),
    ("lora-2", lambda shapes, r: r * sum(shapes[0]), "one layer"),
    ("lora-3", lambda W, A, B, alpha: W + B @ A, "no scale"),
    ("lora-3", lambda W, A, B, alpha: W + alpha * B @ A, "alpha alone"),
    ("lora-3", lambda W, A, B, alpha: W + A.shape[0] / alpha * B @ A, "upside down|no scale"),
    ("lora-3", lambda W, A, B, alpha: alpha / A.shape[0] * B @ A, "update alone"),
    ("lora-3", lambda W, A, B, alpha: W + alpha / A.shape[0] * B @ A, "type torch.bfloat16"),
    ("lora-3", mutates, "changed its input number 1"),
    ("lora-3", lambda W, A, B, alpha: W @ A, "raised RuntimeError"),
    ("lora-3", lambda W, A, B, alpha: None, "returned nothing"),
    ("lora-3", 3, "function itself"),
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
    ("finetune-1", lambda a, b: (paired(a, b)[0], independent(a, b)[1]), "independent"),
    ("finetune-1", lambda a, b: (-paired(a, b)[0], paired(a, b)[1]), "wrong sign"),
    ("finetune-1", lambda a, b: (sum(a) - sum(b), 1.0), "divide by their number"),
    ("finetune-1", lambda a, b: (0.5, 1.0), "difference is wrong"),
    ("finetune-1", lambda a, b: (paired(a, b)[0], paired(a, b)[1] * len(a) ** 0.5), "standard deviation over"),
    ("finetune-1", lambda a, b: (paired(a, b)[0], paired(a, b)[1] ** 2), "root"),
    (
        "finetune-1",
        lambda a, b: (paired(a, b)[0], (accuracies(a, b)[0] * (1 - accuracies(a, b)[0]) / len(a)) ** 0.5),
        "first accuracy alone",
    ),
    ("finetune-1", lambda a, b: (paired(a, b)[0], 2 * paired(a, b)[1]), "too (large|small)"),
    ("finetune-1", lambda a, b: paired(a, b)[0], "two numbers"),
    ("finetune-1", lambda a, b: (paired(a, b)[0], float("nan")), "finite"),
    ("finetune-2", lambda s, r, h, b, k: 4 * h * b, "bank alone"),
    ("finetune-2", lambda s, r, h, b, k: compact(s, r, h, b, 0, weights=0, logits=h), "all logits"),
    ("finetune-2", lambda s, r, h, b, k: compact(s, r, h, b, k, weights=0), "k weights"),
    ("finetune-2", lambda s, r, h, b, k: compact(s, r, h, b, k, index=8), "wrong size"),
    ("finetune-2", lambda s, r, h, b, k: compact(s, r, h, b, k, size=1), "one byte"),
    ("finetune-2", lambda s, r, h, b, k: compact(s, r, h, b, k) + 1, "too large"),
    ("finetune-2", lambda s, r, h, b, k: float(compact(s, r, h, b, k)), "should be an int"),
]
