"""Right and wrong answers to the exercises of *LoRA*."""

import torch


def backward(W, A, B, x, g, s):
    return s * (g @ B).T @ x, s * g.T @ (x @ A.T), g @ W + s * g @ B @ A


def with_autograd(W, A, B, x, g, s):
    A, B, x = (tensor.clone().requires_grad_() for tensor in (A, B, x))
    with torch.enable_grad():
        return torch.autograd.grad(x @ W.T + s * x @ A.T @ B.T, (A, B, x), g)


def mutates(W, A, B, alpha):
    W += alpha / A.shape[0] * B @ A
    return W


RIGHT = {
    "lora-1": backward,
    "lora-2": lambda shapes, r: sum(r * (m + n) for m, n in shapes),
    "lora-3": lambda W, A, B, alpha: (W.float() + alpha / A.shape[0] * B @ A).to(W.dtype),
}
WRONG = [
    ("lora-1", lambda W, A, B, x, g, s: backward(W, A, B, x, g, 1), "gradient of A .* lacks the scale"),
    ("lora-1", lambda *a: (*backward(*a)[:2], a[4] @ a[0] + a[4] @ a[2] @ a[1]), "gradient of x .* lacks the scale"),
    ("lora-1", lambda *a: tuple(v / len(a[3]) for v in backward(*a)), "averaged"),
    ("lora-1", lambda *a: tuple(-v for v in backward(*a)), "sign"),
    ("lora-1", lambda *a: (*backward(*a)[:2], a[4] @ a[0]), "through W alone"),
    ("lora-1", lambda *a: (*backward(*a)[:2], a[5] * a[4] @ a[2] @ a[1]), "through the update alone"),
    ("lora-1", lambda *a: backward(*a)[::-1], "should have shape"),
    ("lora-1", lambda *a: backward(*a)[:2], "three tensors"),
    ("lora-1", lambda W, A, B, x, g, s: (A * float("nan"), B, x), "NaN"),
    ("lora-1", lambda W, A, B, x, g, s: (A, B, x), "wrong values"),
    ("lora-1", with_autograd, "Autograd is switched off"),
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
