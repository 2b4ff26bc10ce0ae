"""Right and wrong answers to the exercises of the chapter seeing_the_bank."""


def new_choices(before, now):
    return ~(now[:, :, None] == before[:, None, :]).any(-1)


def exchanged(before, now):
    return new_choices(before, now).double().mean()


def variance(weights, h):
    return ((weights**2).sum() / h - len(weights) / h**2).item()


def deviation(weights, h):
    return variance(weights, h) ** 0.5


def of_a_usage(weights, h):
    n, k = weights.shape
    return (n * k / h * (1 - k / h)) ** 0.5


RIGHT = {"seeing-the-bank-1": exchanged, "seeing-the-bank-2": deviation}
WRONG = [
    ("seeing-the-bank-1", lambda a, b: 1 - exchanged(a, b), "choices kept"),
    ("seeing-the-bank-1", lambda a, b: (a != b).double().mean(), "change places"),
    ("seeing-the-bank-1", lambda a, b: (a != b).any(1).double().mean(), "change places"),
    ("seeing-the-bank-1", lambda a, b: new_choices(a, b).any(1).double().mean(), "count choices"),
    ("seeing-the-bank-1", lambda a, b: new_choices(a, b).sum(), "divide by all"),
    ("seeing-the-bank-1", lambda a, b: 100 * exchanged(a, b), "not a percentage"),
    ("seeing-the-bank-1", lambda a, b: 0.987, "too large"),
    ("seeing-the-bank-1", lambda a, b: -1.0, "too small"),
    ("seeing-the-bank-1", lambda a, b: new_choices(a, b), "should be a number"),
    ("seeing-the-bank-2", variance, "its root"),
    ("seeing-the-bank-2", lambda w, h: ((w**2).sum() / h) ** 0.5, "square of the mean"),
    ("seeing-the-bank-2", lambda w, h: abs((w**2).sum() / h - len(w) ** 2 / h**2) ** 0.5, "Variances add up"),
    ("seeing-the-bank-2", of_a_usage, "counts its weight"),
    ("seeing-the-bank-2", lambda w, h: w.std(), "who gets them"),
    ("seeing-the-bank-2", lambda w, h: 2 * deviation(w, h) + 1, "too large"),
    ("seeing-the-bank-2", lambda w, h: -1.0, "too small"),
    ("seeing-the-bank-2", lambda w, h: w, "should be a number"),
]
