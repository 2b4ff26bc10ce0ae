"""Right and wrong answers to the exercises of *LoRA*."""


def gradients(A, B, x, g, s):
    return s * (g @ B).T @ x, s * g.T @ (x @ A.T)


def mutates(W, A, B, alpha):
    W += alpha / A.shape[0] * B @ A
    return W


RIGHT = {
    "lora-1": gradients,
    "lora-2": lambda shapes, r: sum(r * (m + n) for m, n in shapes),
    "lora-3": lambda W, A, B, alpha: (W.float() + alpha / A.shape[0] * B @ A).to(W.dtype),
}
WRONG = [
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
]
