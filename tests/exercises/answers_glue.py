"""Right and wrong answers to the exercises of *GLUE with RoBERTa*."""

from statistics import fmean, median


def counts(predicted, label):
    pairs = list(zip(predicted, label, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1))]


def unguarded(predicted, label):
    tp, tn, fp, fn = counts(predicted, label)
    return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5


def constant(predicted, label):
    return len(set(predicted)) < 2 or len(set(label)) < 2


def matthews(predicted, label):
    return 0.0 if constant(predicted, label) else unguarded(predicted, label)


def accuracy(predicted, label):
    return sum(p == q for p, q in zip(predicted, label, strict=True)) / len(label)


def f1(predicted, label):
    tp, _, fp, fn = counts(predicted, label)
    return 2 * tp / (2 * tp + fp + fn)


def no_root(predicted, label):
    tp, tn, fp, fn = counts(predicted, label)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / product if product else 0.0


def hours(rows, epochs, length, weights, speed, factor=4):
    return factor * rows * epochs * length * weights / speed / 3600


def frontier(results, middle=median, reverse=False):
    chosen, best = [], float("-inf")
    for name in sorted(results, key=lambda name: (results[name][0], -middle(results[name][1]))):
        if middle(results[name][1]) > best:
            chosen.append(name)
            best = middle(results[name][1])
    return chosen[::-1] if reverse else chosen


RIGHT = {"glue-1": matthews, "glue-2": hours, "glue-3": frontier}
WRONG = [
    ("glue-1", unguarded, "divide by zero"),
    ("glue-1", lambda p, q: float("nan") if constant(p, q) else unguarded(p, q), "NaN"),
    ("glue-1", lambda p, q: 1.0 if constant(p, q) else unguarded(p, q), "is constant"),
    ("glue-1", lambda p, q: 0.5 if not any(p) else matthews(p, q), "is constant"),
    ("glue-1", lambda p, q: 0.5 if not any(q) else matthews(p, q), "is constant"),
    ("glue-1", lambda p, q: 1.0 if p == q else matthews(p, q), "is constant"),
    ("glue-1", lambda p, q: 0.0 if 1 == min(p) or 1 == min(q) else unguarded(p, q), "divide by zero"),
    ("glue-1", accuracy, "accuracy"),
    ("glue-1", f1, "F1"),
    ("glue-1", no_root, "root"),
    ("glue-1", lambda p, q: -matthews(p, q), "sign"),
    ("glue-1", lambda p, q: matthews(p, q) + 0.1, "too large"),
    ("glue-1", lambda p, q: "0.5", "should be a number"),
    ("glue-2", lambda *a: 3600 * hours(*a), "seconds"),
    ("glue-2", lambda *a: 60 * hours(*a), "minutes"),
    ("glue-2", lambda *a: hours(*a, factor=6), "frozen"),
    ("glue-2", lambda *a: 3600 * hours(*a, factor=6), "Two things"),
    ("glue-2", lambda *a: hours(*a, factor=2), "forwards alone"),
    ("glue-2", lambda *a: hours(*a, factor=1), "one operation"),
    ("glue-2", lambda rows, epochs, *a: hours(rows, 1, *a), "one epoch"),
    ("glue-2", lambda rows, epochs, length, *a: hours(rows, epochs, 1, *a), "padding"),
    ("glue-2", lambda *a: 1.3 * hours(*a), "too large"),
    ("glue-3", lambda results: frontier(results, reverse=True), "order"),
    ("glue-3", lambda results: frontier(results, fmean), "means"),
    ("glue-3", lambda results: frontier(results, max), "best runs"),
    ("glue-3", lambda results: sorted(results, key=lambda name: results[name][0]), "not worth its size"),
    ("glue-3", lambda results: frontier(results)[:1], "missing"),
    ("glue-3", lambda results: frontier(results, lambda s: sorted(s)[len(s) // 2]), "upper middle"),
    ("glue-3", lambda results: frontier(results, lambda s: sorted(s)[(len(s) - 1) // 2]), "lower middle"),
    ("glue-3", lambda results: frontier(dict(sorted(results.items()))), "equals another one"),
    ("glue-3", lambda results: frontier(results) + frontier(results)[:1], "2 times"),
    ("glue-3", lambda results: [*frontier(results), "lora"], "no method"),
    ("glue-3", lambda results: tuple(frontier(results)), "list of names"),
]
