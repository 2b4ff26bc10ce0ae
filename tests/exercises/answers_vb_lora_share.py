"""Right and wrong answers to the exercises of the chapter vb-lora-share."""

import torch


def restore(bank, indices, rest):
    return mix(bank, indices, torch.cat([1 - rest.sum(-1, keepdim=True), rest], -1))


def mix(bank, indices, weights):
    return (weights.unsqueeze(-1) * bank[indices.long()]).sum(-2)


def wrong_end(bank, indices, rest):
    return mix(bank, indices, torch.cat([rest, 1 - rest.sum(-1, keepdim=True)], -1))


def swaps(logits, bank, k, upstream, place=-1, weight=None, selected=0.0):
    top, chosen = logits.topk(k, dim=-1)
    w = top.softmax(-1)
    slopes = upstream @ bank.T
    out = slopes.gather(-1, chosen)[:, [place]]
    changes = (w[:, [place]] if weight is None else weight) * (slopes - out)
    return changes if selected is None else changes.scatter(-1, chosen, selected)


def without_loser(logits, bank, k, upstream):
    top, chosen = logits.topk(k, dim=-1)
    return (top.softmax(-1)[:, -1:] * (upstream @ bank.T)).scatter(-1, chosen, 0.0)


def for_the_mixture(logits, bank, k, upstream):
    top, chosen = logits.topk(k, dim=-1)
    w, slopes = top.softmax(-1), upstream @ bank.T
    mean = (w * slopes.gather(-1, chosen)).sum(-1, keepdim=True)
    return (w[:, -1:] * (slopes - mean)).scatter(-1, chosen, 0.0)


def stored(shapes, rank, h, b, k, weights=-1, index=None, logits=0, bank=1):
    subs = sum(rank * (m + n) // b for m, n in shapes)
    index = index or (0.25 if h <= 256 else 0.5)
    return bank * h * b + subs * (k + weights + k * index + logits)


RIGHT = {
    "vb-lora-share-1": restore,
    "vb-lora-share-2": swaps,
    "vb-lora-share-3": stored,
}
WRONG = [
    ("vb-lora-share-1", lambda bank, i, w: bank.new_zeros(len(i), bank.shape[1]), "All entries are zero"),
    ("vb-lora-share-1", wrong_end, "with the wrong vector"),
    ("vb-lora-share-1", lambda bank, i, w: mix(bank, i[:, : w.shape[1]], w), "left it out too"),
    ("vb-lora-share-1", lambda bank, i, w: mix(bank, i[:, 1:], w), "what is its weight"),
    ("vb-lora-share-1", lambda bank, i, w: mix(bank, i, torch.cat([w.new_ones(len(w), 1), w], -1)), "sum to one"),
    ("vb-lora-share-1", lambda bank, i, w: bank[i.long()].mean(-2), "averaged"),
    ("vb-lora-share-1", lambda bank, i, w: bank[i.long()].sum(-2), "without weights"),
    ("vb-lora-share-1", lambda bank, i, w: restore(bank, i, w).flip(0), "another order"),
    ("vb-lora-share-1", lambda bank, i, w: 2 * restore(bank, i, w), "wrong values"),
    ("vb-lora-share-1", lambda bank, i, w: restore(bank, i, w).T, "should have shape"),
    ("vb-lora-share-1", lambda bank, i, w: restore(bank, i, w).float(), "type torch.float64"),
    ("vb-lora-share-1", lambda bank, i, w: bank[i].sum(-2), "raised"),
    ("vb-lora-share-2", lambda z, bank, k, g: torch.zeros_like(z), "All entries are zero"),
    ("vb-lora-share-2", lambda z, bank, k, g: -swaps(z, bank, k, g), "sign"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g, selected=None), "should be zero"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g) + 1, "selected vectors should be zero"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g, weight=1.0), "yours is one"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g, place=0), "strongest"),
    ("vb-lora-share-2", without_loser, "which one leaves"),
    ("vb-lora-share-2", for_the_mixture, "not the whole sub-vector"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g) / len(z), "averaged"),
    ("vb-lora-share-2", lambda z, bank, k, g: 2 * swaps(z, bank, k, g), "wrong values"),
    ("vb-lora-share-2", lambda z, bank, k, g: swaps(z, bank, k, g)[:, :1], "should have shape"),
    ("vb-lora-share-2", lambda z, bank, k, g: g.mul_(2) @ bank.T, "changed its input number 4"),
    (
        "vb-lora-share-3",
        lambda s, r, h, b, k: stored(s, r, h, b, k, index=0.25 if h <= 1000 else 0.5),
        "wrong size",
    ),
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
