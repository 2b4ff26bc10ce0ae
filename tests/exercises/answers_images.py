"""Right and wrong answers to the exercises of *Images with ViT*."""

import random

import numpy as np


def draw(labels, samples, seed):
    rng, places = random.Random(seed), []
    for label in sorted(set(labels)):
        places += rng.sample([i for i, one in enumerate(labels) if one == label], samples)
    return places


def paired(a, b, ddof=1):
    gaps = np.subtract(a, b)
    return gaps.mean(), gaps.std(ddof=ddof) / len(gaps) ** 0.5


def half(labels, samples, seed):
    """At random in the first class alone."""
    members = [[i for i, one in enumerate(labels) if one == label] for label in sorted(set(labels))]
    return random.Random(seed).sample(members[0], samples) + [i for own in members[1:] for i in own[:samples]]


def window(labels, samples, seed):
    places = []
    for label in sorted(set(labels)):
        own = [i for i, one in enumerate(labels) if one == label]
        places += [own[(seed + turn) % len(own)] for turn in range(samples)]
    return places


def anew(labels, samples, seed):
    places = []
    for label in sorted(set(labels)):
        places += random.Random(seed).sample([i for i, one in enumerate(labels) if one == label], samples)
    return places


def front(labels, samples, seed):
    """From the first samples of a class."""
    rng, places = random.Random(seed), []
    for label in sorted(set(labels)):
        own = [i for i, one in enumerate(labels) if one == label]
        places += rng.sample(own[: max(samples + 1, len(own) // 2)], samples)
    return places


RIGHT = {"images-1": draw, "images-2": paired}
WRONG = [
    ("images-1", lambda labels, n, seed: random.Random(seed).sample(range(len(labels)), n), "in all"),
    (
        "images-1",
        lambda labels, n, seed: random.Random(seed).sample(range(len(labels)), n * len(set(labels))),
        "number in all is right",
    ),
    ("images-1", lambda labels, n, seed: draw(labels, n + 1, seed), "Class 0 has 2"),
    ("images-1", lambda labels, n, seed: draw(labels, n, 0), "one draw"),
    ("images-1", lambda labels, n, seed: draw(labels, n, None), "different draws"),
    ("images-1", lambda labels, n, seed: [i for i in draw(labels, 1, seed) for _ in range(2)], "twice"),
    ("images-1", lambda labels, n, seed: [len(labels)] * n, "outside"),
    ("images-1", lambda labels, n, seed: "first", "list of whole numbers"),
    ("images-1", half, "Class 1 has the same samples"),
    ("images-1", window, "window"),
    ("images-1", anew, "begin the generator anew"),
    ("images-1", front, "never draw some"),
    ("images-1", lambda labels, n, seed: [True] * n, "list of whole numbers"),
    ("images-2", lambda a, b: paired(b, a), "wrong sign"),
    ("images-2", lambda a, b: (paired(a, b)[0] + 1, 0.0), "gap is too large"),
    (
        "images-2",
        lambda a, b: (paired(a, b)[0], ((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a)) ** 0.5),
        "different draws",
    ),
    ("images-2", lambda a, b: (paired(a, b)[0], paired(a, b)[1] * len(a) ** 0.5), "deviation of one gap"),
    ("images-2", lambda a, b: paired(a, b, ddof=0), "n - 1"),
    ("images-2", lambda a, b: (paired(a, b)[0], paired(a, b)[1] ** 2), "take its root"),
    ("images-2", lambda a, b: (paired(a, b)[0], 0.0), "error is too small"),
    ("images-2", lambda a, b: paired(a, b)[0], "two numbers"),
    ("images-2", lambda a, b: ("a", "b"), "should be a number"),
]
