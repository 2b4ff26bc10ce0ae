"""Right and wrong answers to the exercises of *A thousand adapters on one model*."""

from collections import OrderedDict

import torch


def mixed(x, A, B, owners, none=0.0, shift=0):
    users = torch.tensor([0 if u is None else (u + shift) % 3 for u in owners])
    y = (x @ A[users].mT) @ B[users].mT
    for i, user in enumerate(owners):
        if user is None:
            y[i] *= none
    return y


def lru(names, sizes, limit, renew=True, large=False):
    kept, found = OrderedDict(), 0
    for name in names:
        if name in kept:
            found += 1
            if renew:
                kept.move_to_end(name)
        elif large or sizes[name] <= limit:
            kept[name] = sizes[name]
            while sum(kept.values()) > limit:
                kept.popitem(last=False)
    return found


RIGHT = {"thousand-1": mixed, "thousand-2": lru}
WRONG = [
    ("thousand-1", lambda x, A, B, o: mixed(x, A, B, o, shift=1), "Row 0 got the update of user 1, not of user 0"),
    ("thousand-1", lambda x, A, B, o: mixed(x, A, B, [o[0]] * len(o)), "Row 1 got the update of user 0"),
    (
        "thousand-1",
        lambda x, A, B, o: mixed(x, A, B, o, none=1.0),
        "added the update of user 0 to a row",
    ),
    ("thousand-1", lambda x, A, B, o: mixed(x, A, B, o, none=1.0) + 1, "The update is wrong"),
    ("thousand-1", lambda x, A, B, o: mixed(x, A, B, o)[:, 0], "shape"),
    ("thousand-1", lambda x, A, B, o: mixed(x, A, B, [u for u in o if u is not None] or [0]), "shape"),
    ("thousand-2", lambda n, s, m: len(n) - lru(n, s, m), "counted the misses"),
    ("thousand-2", lambda n, s, m: lru(n, s, m, renew=False), "drop the one whose last use is longest ago"),
    ("thousand-2", lambda n, s, m: lru(n, s, 10**9), "Nothing was ever dropped"),
    ("thousand-2", lambda n, s, m: lru(n, s, m, large=True), "larger than the whole cache"),
    ("thousand-2", lambda n, s, m: 99, "It is fewer than 99"),
    ("thousand-2", lambda n, s, m: lru(n, s, m) + 0.5, "should be an int"),
]
