"""Right and wrong answers to the exercises of *What independent measurements say*."""

from statistics import fmean


def reach(lr, steps, warmup, schedule):
    factors = []
    for step in range(steps):
        rise, done = warmup * steps, step + 0.5
        if done < rise:
            factors.append(done / rise)
        else:
            factors.append(1.0 if schedule == "constant" else 1 - (done - rise) / (steps - rise))
    return lr * sum(factors)  # half a cosine has the mean of a line


def without_warmup(lr, steps, warmup, schedule):
    return lr * steps * (1 - warmup) * (1 if schedule == "constant" else 0.5)


def flat_warmup(lr, steps, warmup, schedule):
    return without_warmup(lr, steps, warmup, schedule) + lr * steps * warmup


def shared(*runs):
    return sorted(set.intersection(*map(set, runs)))


def lost(high, low, variant):
    seeds = shared(high, low, variant)
    return fmean(high[s] - variant[s] for s in seeds) / fmean(high[s] - low[s] for s in seeds)


def of_each_seed(high, low, variant):
    seeds = shared(high, low, variant)
    return fmean((high[s] - variant[s]) / (high[s] - low[s]) for s in seeds)


def of_all_seeds(high, low, variant):
    high, low, variant = (fmean(runs.values()) for runs in (high, low, variant))
    return (high - variant) / (high - low)


def scaled(factor, function):
    return lambda *arguments: factor * function(*arguments)


RIGHT = {"independent-1": reach, "independent-2": lost}
WRONG = [
    ("independent-1", lambda lr, steps, *rest: lr * steps, "largest rate for every step"),
    ("independent-1", without_warmup, "missing"),
    ("independent-1", flat_warmup, "not yet the largest"),
    ("independent-1", lambda lr, steps, *rest: reach(lr, steps, *rest) / steps, "mean rate"),
    ("independent-1", lambda lr, steps, *rest: lr * steps / 2, "too small"),
    ("independent-1", scaled(1.2, reach), "too large"),
    ("independent-1", lambda *arguments: "far", "should be a number"),
    ("independent-2", scaled(100, lost), "percent"),
    ("independent-2", lambda *runs: 1 - lost(*runs), "kept"),
    ("independent-2", of_each_seed, "average the shares"),
    ("independent-2", of_all_seeds, "different seeds"),
    ("independent-2", scaled(0.9, lost), "too small"),
    ("independent-2", lambda *runs: [lost(*runs)], "should be a number"),
]
