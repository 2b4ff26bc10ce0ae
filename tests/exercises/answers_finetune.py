"""Right and wrong answers to the exercises of *A first real fine-tune*."""

import torch


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


RIGHT = {
    "finetune-1": paired,
    "finetune-2": compact,
}
WRONG = [
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
