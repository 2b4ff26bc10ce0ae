"""Right and wrong answers to the exercises of *Ablations*."""

from statistics import fmean, pvariance, stdev, variance


def learning(runs):
    best = max(fmean(scores) for scores in runs.values())
    return [scores for scores in runs.values() if fmean(scores) >= best - 10]


def pool(variants, weight=lambda scores: len(scores) - 1, spread=variance):
    several = [scores for scores in variants if len(scores) > 1]
    return (sum(weight(s) * spread(s) for s in several) / sum(map(weight, several))) ** 0.5


def pooled(runs):
    return pool(learning(runs))


def compare(one, other, s):
    shared = one.keys() & other.keys()
    return fmean(one[i] - other[i] for i in shared), 2 * s * (2 / len(shared)) ** 0.5


RIGHT = {"ablations-1": pooled, "ablations-2": compare}
WRONG = [
    ("ablations-1", lambda runs: pooled(runs) ** 2, "variance"),
    ("ablations-1", lambda runs: pool(runs.values()), "does not learn"),
    ("ablations-1", lambda runs: fmean(stdev(s) for s in learning(runs) if len(s) > 1), "mean of the deviations"),
    ("ablations-1", lambda runs: pool(learning(runs), lambda s: 1), "same weight"),
    ("ablations-1", lambda runs: pool(learning(runs), len), "not by n"),
    ("ablations-1", lambda runs: pool(learning(runs), len, pvariance), "degrees of freedom"),
    ("ablations-1", lambda runs: stdev(v for s in learning(runs) for v in s), "All runs together"),
    ("ablations-1", lambda runs: pooled(runs) + 1, "too large"),
    ("ablations-1", lambda runs: "2", "should be a number"),
    ("ablations-2", lambda one, other, s: compare(other, one, s), "wrong sign"),
    ("ablations-2", lambda one, other, s: (abs(compare(one, other, s)[0]), compare(one, other, s)[1]), "sign"),
    ("ablations-2", lambda one, other, s: (fmean(one.values()) - fmean(other.values()), 1.0), "2 e is"),
    (
        "ablations-2",
        lambda one, other, s: (fmean(one.values()) - fmean(other.values()), compare(one, other, s)[1]),
        "all seeds",
    ),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0], compare(one, other, s)[1] / 2), "return 2 e"),
    (
        "ablations-2",
        lambda one, other, s: (compare(one, other, s)[0], compare(one, other, s)[1] / 2**0.5),
        "Both means",
    ),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0], 2 * s * 2**0.5), "More seeds"),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0], 2 * s * (2 / len(one)) ** 0.5), "both have"),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0], 2 * s * (2 / len(other)) ** 0.5), "both have"),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0], compare(one, other, s)[1] ** 2), "square"),
    ("ablations-2", lambda one, other, s: (compare(one, other, s)[0] + 1, 1.0), "too large"),
    ("ablations-2", lambda one, other, s: compare(one, other, s)[0], "pair"),
]
