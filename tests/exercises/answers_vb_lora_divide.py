"""Right and wrong answers to the exercises of *VB-LoRA I: divide*."""

import math


def divided(A, b):
    return A.reshape(len(A), -1, b).transpose(0, 1)


def reassembled(bank, choice):
    return bank[choice].transpose(1, 2).reshape(-1, choice.shape[1])


def lengths(shapes):
    common = math.gcd(*(size for shape in shapes for size in shape))
    return [b for b in range(1, common + 1) if common % b == 0]


def bank_size(shapes, rank, b, k, size, kept=None, widths=(2, 1)):
    pieces = sum(rank * (m + n) for m, n in shapes) // b
    kept = k - 1 if kept is None else kept
    wide, narrow = ((size - pieces * (4 * kept + k * width)) // (4 * b) for width in widths)
    h = wide if wide > 256 else min(256, narrow)
    return h if h >= k else 0


def one_width(shapes, rank, b, k, size, width, weights=None):
    pieces = sum(rank * (m + n) for m, n in shapes) // b
    weights = k - 1 if weights is None else weights
    return max(0, (size - pieces * (4 * weights + k * width)) // (4 * b))


def at_least_none(shapes, rank, b, k, size):
    wide, narrow = (one_width(shapes, rank, b, k, size, width) for width in (2, 1))
    return wide if wide > 256 else min(256, narrow)


RIGHT = {
    "vb-lora-divide-1": divided,
    "vb-lora-divide-2": reassembled,
    "vb-lora-divide-3": lengths,
    "vb-lora-divide-4": bank_size,
}
WRONG = [
    ("vb-lora-divide-1", lambda A, b: A.reshape(-1, b), "should have shape"),
    ("vb-lora-divide-1", lambda A, b: A.reshape(len(A), -1, b), "rank should come second"),
    ("vb-lora-divide-1", lambda A, b: A.reshape(-1, len(A), b), "not that part of that row"),
    ("vb-lora-divide-1", lambda A, b: A.reshape(len(A), b, -1).permute(2, 0, 1), "every 2th|every .th entry"),
    ("vb-lora-divide-1", lambda A, b: A.T.reshape(-1, len(A), b), "mix several rows"),
    ("vb-lora-divide-1", lambda A, b: -divided(A, b), "wrong values"),
    ("vb-lora-divide-1", lambda A, b: divided(A, b).float(), "type torch.float64"),
    ("vb-lora-divide-1", lambda A, b: list(divided(A, b)), "should be a tensor"),
    ("vb-lora-divide-2", lambda bank, choice: bank[choice], "should have shape"),
    ("vb-lora-divide-2", lambda bank, choice: reassembled(bank, choice).T, "a column for each rank"),
    ("vb-lora-divide-2", lambda bank, choice: bank[choice].reshape(-1, choice.shape[1]), "along the rows"),
    ("vb-lora-divide-2", lambda bank, choice: bank[choice].reshape(choice.shape[1], -1).T, "other ranks"),
    ("vb-lora-divide-2", lambda bank, choice: reassembled(bank, choice.flip(0)), "wrong order"),
    ("vb-lora-divide-2", lambda bank, choice: reassembled(bank.flip(1), choice), "upside down"),
    ("vb-lora-divide-2", lambda bank, choice: reassembled(bank + 1, choice), "wrong values"),
    ("vb-lora-divide-2", lambda bank, choice: bank[choice.T].reshape(-1, choice.shape[1]), "raised|wrong|ranks|rows"),
    ("vb-lora-divide-3", lambda shapes: max(lengths(shapes)), "list of all lengths"),
    ("vb-lora-divide-3", lambda shapes: lengths(shapes)[::-1], "ascending"),
    ("vb-lora-divide-3", lambda shapes: lengths([(m, m) for m, _ in shapes]), "does not divide"),
    ("vb-lora-divide-3", lambda shapes: lengths(shapes[:1]), "does not divide"),
    ("vb-lora-divide-3", lambda shapes: lengths(shapes[-1:]), "does not divide"),
    ("vb-lora-divide-3", lambda shapes: min((lengths([s]) for s in shapes), key=max), "does not divide"),
    ("vb-lora-divide-3", lambda shapes: lengths(shapes)[1:], "missing"),
    ("vb-lora-divide-3", lambda shapes: [1, *lengths(shapes)], "more than once"),
    ("vb-lora-divide-3", lambda shapes: [0, *lengths(shapes)], "at least 1"),
    ("vb-lora-divide-3", lambda shapes: [b / 1 for b in lengths(shapes)], "should be an int"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: size // (4 * b), "cost bytes too"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: one_width(s, r, b, k, size, 1), "names 256 vectors"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: one_width(s, r, b, k, size, 2), "one byte only"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: one_width(s, r, b, k, size, 4), "not four"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: bank_size(s, r, b, k, size, kept=k), "need not be kept"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: bank_size(s[:1], r, b, k, size), "too large: it would not fit"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: bank_size(s, r, b, k, size) - 1, "too small"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: float(bank_size(s, r, b, k, size)), "should be an int"),
    ("vb-lora-divide-4", lambda s, r, b, k, size: bank_size(s, r, b, k, size) or -5, "no bank fits"),
    ("vb-lora-divide-4", at_least_none, "has fewer"),
]
