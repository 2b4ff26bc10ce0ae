"""Right and wrong answers to the exercises of *More than one GPU*."""

import torch


def ring(size, n, bandwidth, latency, messages=2, share=1.0, late=1.0):
    count = messages * (n - 1)
    return count * share * size / n / bandwidth + count * late * latency


def weighted(gradients, rows):
    return sum(n * g for n, g in zip(rows, gradients, strict=True)) / sum(rows)


RIGHT = {"gpus-1": ring, "gpus-2": weighted}
WRONG = [
    ("gpus-1", lambda s, n, b, t: ring(s, n, b, t, late=0), "left out the latency"),
    ("gpus-1", lambda s, n, b, t: ring(s, n, b, 0) + t, "latency once"),
    ("gpus-1", lambda s, n, b, t: 2 * (n - 1) * (s / b + t), "one of n shares"),
    ("gpus-1", lambda s, n, b, t: ring(s, n, b, t, messages=1), "half of it"),
    ("gpus-1", lambda s, n, b, t: ring(s, n, b, t, share=8), "bits"),
    ("gpus-1", lambda s, n, b, t: 1e-30, "too short"),
    ("gpus-1", lambda s, n, b, t: 1e9, "too long"),
    ("gpus-1", lambda s, n, b, t: ring(s, n, b, t) if n > 1 else t, "One GPU"),
    ("gpus-1", lambda s, n, b, t: "long", "should be a number"),
    ("gpus-2", lambda g, n: torch.stack(g).mean(0), "one vote"),
    ("gpus-2", lambda g, n: torch.stack(g).sum(0), "summed the gradients"),
    ("gpus-2", lambda g, n: weighted(g, n) * sum(n), "divide by all"),
    ("gpus-2", lambda g, n: g[0] + 1, "wrong values for processes"),
    ("gpus-2", lambda g, n: weighted(g, n)[:3], "shape"),
]
