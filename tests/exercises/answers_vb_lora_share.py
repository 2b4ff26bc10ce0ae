"""Right and wrong answers to the exercises of the chapter vb-lora-share."""

import torch


def weights(logits, k):
    values, indices = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, indices, values.softmax(-1))


def admixture(logits, bank, k):
    values, indices = logits.topk(k, dim=-1)
    return (values.softmax(-1).unsqueeze(-1) * bank[indices]).sum(-2)


def gradient(logits, bank, k, upstream):
    w = weights(logits, k)
    gains = upstream @ bank.T
    return w * (gains - (w * gains).sum(-1, keepdim=True))


def chosen(logits, k):
    return (weights(logits, k) > 0).to(logits.dtype)


def through_whole_softmax(logits, bank, k, upstream):
    return gradient(logits, bank, logits.shape[1], upstream)


def stored(shapes, rank, h, b, k, weights=-1, index=None, logits=0, bank=1):
    subs = sum(rank * (m + n) // b for m, n in shapes)
    index = index or (0.25 if h <= 256 else 0.5)
    return bank * h * b + subs * (k + weights + k * index + logits)


RIGHT = {
    "vb-lora-share-1": admixture,
    "vb-lora-share-2": gradient,
    "vb-lora-share-3": stored,
}
WRONG = [
    ("vb-lora-share-1", lambda z, bank, k: z.softmax(-1) @ bank, "where does k enter"),
    ("vb-lora-share-1", lambda z, bank, k: (z.softmax(-1) * chosen(z, k)) @ bank, "sum to less than one"),
    ("vb-lora-share-1", lambda z, bank, k: bank[z.topk(k).indices].sum(-2), "without weights"),
    ("vb-lora-share-1", lambda z, bank, k: bank[z.topk(k).indices].mean(-2), "averaged"),
    ("vb-lora-share-1", lambda z, bank, k: (z * chosen(z, k)) @ bank, "logits themselves"),
    ("vb-lora-share-1", lambda z, bank, k: admixture(-z, bank, k), "smallest logits"),
    ("vb-lora-share-1", lambda z, bank, k: (z * chosen(z, k)).softmax(-1) @ bank, "exponential of 0"),
    ("vb-lora-share-1", lambda z, bank, k: admixture(z, bank, k).flip(0), "another order"),
    ("vb-lora-share-1", lambda z, bank, k: 2 * admixture(z, bank, k), "wrong values"),
    ("vb-lora-share-1", lambda z, bank, k: admixture(z, bank, k).T, "should have shape"),
    ("vb-lora-share-1", lambda z, bank, k: admixture(z, bank, k).float(), "type torch.float64"),
    ("vb-lora-share-1", lambda z, bank, k: weights(z, k), "should have shape"),
    ("vb-lora-share-1", lambda z, bank, k: (z.topk(k).values.softmax(-1) * bank[z.topk(k).indices]).sum(-2), "raised"),
    ("vb-lora-share-2", lambda z, bank, k, g: -gradient(z, bank, k, g), "sign"),
    ("vb-lora-share-2", lambda z, bank, k, g: gradient(z, bank, k, g) / len(z), "averaged"),
    ("vb-lora-share-2", lambda z, bank, k, g: weights(z, k) * (g @ bank.T), "others give way"),
    ("vb-lora-share-2", lambda z, bank, k, g: chosen(z, k) * (g @ bank.T), "between weights and logits"),
    ("vb-lora-share-2", lambda z, bank, k, g: g @ bank.T, "over the whole bank"),
    (
        "vb-lora-share-2",
        lambda z, bank, k, g: (lambda w, a: (w > 0) * (a - (w * a).sum(-1, keepdim=True)))(weights(z, k), g @ bank.T),
        "small weight moves less",
    ),
    ("vb-lora-share-2", through_whole_softmax, "not selected move too"),
    (
        "vb-lora-share-2",
        lambda z, bank, k, g: weights(z, k) * (1 - weights(z, k)) * (g @ bank.T),
        "diagonal",
    ),
    ("vb-lora-share-2", lambda z, bank, k, g: gradient(z, bank, k, g) + 1, "not selected gets a gradient"),
    ("vb-lora-share-2", lambda z, bank, k, g: 2 * gradient(z, bank, k, g), "wrong values"),
    ("vb-lora-share-2", lambda z, bank, k, g: gradient(z, bank, k, g).topk(k).values, "should have shape"),
    ("vb-lora-share-2", lambda z, bank, k, g: g.mul_(2) @ bank.T, "changed its input number 4"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, 0, weights=0, logits=h), "all logits included"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k, weights=0), "follows from the others"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k, index=1), "no four bytes"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k, index=0.25), "wrong size"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, 2, index=0.25), "holds for k = 2"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k, bank=0), "bank is missing"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k, bank=max(len(s), 1)), "share one bank"),
    ("vb-lora-share-3", lambda s, r, h, b, k: h * b, "bank alone"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored([(0, n) for _, n in s], r, h, b, k), "sub-vectors of B"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored([(n, n) for _, n in s], r, h, b, k), "square"),
    ("vb-lora-share-3", lambda s, r, h, b, k: stored(s, r, h, b, k) + 0.5, "too large"),
    ("vb-lora-share-3", lambda s, r, h, b, k: torch.tensor(stored(s, r, h, b, k)), "finite number"),
]
