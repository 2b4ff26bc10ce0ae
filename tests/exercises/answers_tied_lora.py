"""Right and wrong answers to the exercises of the chapter Tied-LoRA."""

import torch


def update(x, A, B, u, v, s):
    m, n = len(v), x.shape[-1]
    return s * (x @ A[:, :n].T * u) @ B[:m].T * v


def parameters(shapes, rank):
    pair = max(m for m, _ in shapes) + max(n for _, n in shapes)
    return rank * pair + sum(rank + m for m, _ in shapes)


def parts(A, B, u, v, x, g, s):
    return s * ((g * v[:, None]) @ B * u[:, None]).mT @ x


def fold(A, B, u, v):
    return u[0][:, None] * A, v[0][:, None] * B, u / u[0], v / v[0]


def in_place(A, B, u, v):
    A *= u[0][:, None]
    return A, v[0][:, None] * B, u / u[0], v / v[0]


RIGHT = {
    "tied-lora-1": update,
    "tied-lora-2": parameters,
    "tied-lora-3": lambda *case: parts(*case).sum(0),
    "tied-lora-4": fold,
}
WRONG = [
    ("tied-lora-1", lambda x, A, B, u, v, s: s * (x @ A.T * u) @ B.T * v, "raised RuntimeError"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B, u, v, 1.0), "lacks the scale s"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B, u / u, v, s), "lacks u"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B, u, v / v, s), "lacks v"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A[:, -x.shape[-1] :], B, u, v, s), "wrong columns of A"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B[-len(v) :], u, v, s), "wrong rows of B"),
    ("tied-lora-1", lambda *case: update(*case).T, "should have shape"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B, u * u, v, s), "wrong values"),
    ("tied-lora-1", lambda x, A, B, u, v, s: update(x, A, B, u, v, s).float(), "type torch.float64"),
    (
        "tied-lora-2",
        lambda shapes, r: r * sum(m + n for m, n in shapes) + sum(r + m for m, _ in shapes),
        "a pair for each layer",
    ),
    (
        "tied-lora-2",
        lambda shapes, r: r * sum(m + n for m, n in set(shapes)) + sum(r + m for m, _ in shapes),
        "a pair for each shape",
    ),
    ("tied-lora-2", lambda shapes, r: parameters(shapes, r) - sum(r + m for m, _ in shapes), "without any scales"),
    ("tied-lora-2", lambda shapes, r: parameters(shapes, r) - r * len(shapes), "vectors u are missing"),
    ("tied-lora-2", lambda shapes, r: parameters(shapes, r) - sum(m for m, _ in shapes), "vectors v are missing"),
    ("tied-lora-2", lambda shapes, r: sum(r + m for m, _ in shapes), "That is VeRA"),
    ("tied-lora-2", lambda shapes, r: parameters(shapes, r) - r * (len(shapes) - 1), "whose is it"),
    (
        "tied-lora-2",
        lambda shapes, r: r * max(m + n for m, n in shapes) + sum(r + m for m, _ in shapes),
        "the pair from one layer",
    ),
    (
        "tied-lora-2",
        lambda shapes, r: r * sum(shapes[0]) + sum(r + m for m, _ in shapes),
        "from the (first|one) layer",
    ),
    ("tied-lora-2", lambda shapes, r: parameters(shapes, r) + 1, "too large"),
    ("tied-lora-2", lambda shapes, r: float(parameters(shapes, r)), "should be an int"),
    ("tied-lora-3", lambda *case: parts(*case).mean(0), "mean over the layers"),
    ("tied-lora-3", lambda *case: parts(*case)[0], "first layer alone"),
    ("tied-lora-3", lambda *case: parts(*case)[-1], "last layer alone"),
    ("tied-lora-3", lambda A, B, u, v, x, g, s: parts(A, B, u, v, x, g, 1.0).sum(0), "lacks the scale"),
    ("tied-lora-3", lambda A, B, u, v, x, g, s: parts(A, B, u / u, v, x, g, s).sum(0), "lacks u"),
    ("tied-lora-3", lambda A, B, u, v, x, g, s: parts(A, B, u, v / v, x, g, s).sum(0), "lacks v"),
    ("tied-lora-3", lambda A, B, u, v, x, g, s: parts(A, B, u / u, v / v, x, g, s).sum(0), "lacks u and v"),
    ("tied-lora-3", lambda *case: parts(*case).sum(0) / case[4].shape[1], "averaged over the batch"),
    ("tied-lora-3", lambda *case: -parts(*case).sum(0), "wrong sign"),
    ("tied-lora-3", lambda *case: parts(*case), "should have shape"),
    ("tied-lora-4", lambda A, B, u, v: (u[0][:, None] * A, v[0][:, None] * B, u, v), "u is not all ones"),
    (
        "tied-lora-4",
        lambda A, B, u, v: (u[0][:, None] * A, v[0][:, None] * B, u / u[0], v),
        "v is not all ones",
    ),
    (
        "tied-lora-4",
        lambda A, B, u, v: (A, B, u / u[0], v / v[0]),
        "update of layer number 1 has changed",
    ),
    (
        "tied-lora-4",
        lambda A, B, u, v: (u[0][:, None] * A, v[0][:, None] * B, torch.ones_like(u), torch.ones_like(v)),
        "the scales of the others",
    ),
    ("tied-lora-4", lambda A, B, u, v: fold(A, B, u, v)[:2], "four tensors"),
    ("tied-lora-4", in_place, "changed its input number 1"),
]
