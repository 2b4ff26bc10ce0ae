"""Right and wrong answers to the exercises of *Instruction tuning: QLoRA on Llama 2*."""

import re


def bits(bits, block, scales):
    return bits + (8 / block + 32 / (block * scales) if scales else 32 / block)


def labels(prompt, answer, end, length):
    ids = [*prompt, *answer, end][:length]
    return ids, ([-100] * len(prompt) + ids[len(prompt) :])[:length]


def score(text, kind=float, low=0.99, high=10.01):
    found = {kind(value) for value in re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text)}
    return float(found.pop()) if len(found) == 1 and low < float(max(found)) < high else None


def summary(texts, read=score, zeros=False):
    scores = [read(text) for text in texts]
    given = [value for value in scores if value is not None]
    mean = sum(given) / (len(scores) if zeros else len(given)) if given else None
    return mean, len(scores) - len(given)


def first(pattern):
    return lambda text: float(re.search(pattern, text)[1]) if re.search(pattern, text) else None


RIGHT = {"instruction-1": bits, "instruction-2": labels, "instruction-3": summary}
WRONG = [
    ("instruction-1", lambda b, n, s: b, "level alone"),
    ("instruction-1", lambda b, n, s: b + 32 / n, "quantised themselves"),
    ("instruction-1", lambda b, n, s: b + (8 / n if s else 32 / n), "scale of their own"),
    ("instruction-1", lambda b, n, s: b + (8 / n + 32 / s if s else 32 / n), "share its float32"),
    ("instruction-1", lambda b, n, s: b + 16 / n, "not of 16 bits"),
    ("instruction-1", lambda b, n, s: 2 * bits(b, n, s), "bits is too large"),
    ("instruction-2", lambda p, a, e, n: ([*p, *a, e], [-100] * len(p) + [*a, e]), "longer than max_length"),
    ("instruction-2", lambda p, a, e, n: ([*p, *a][:n], [-100] * len(p) + a), "end of text is missing"),
    (
        "instruction-2",
        lambda p, a, e, n: ([*[*p, *a][: n - 1], e], [-100] * len(p) + [*[*p, *a][: n - 1], e][len(p) :]),
        "stop too early",
    ),
    ("instruction-2", lambda p, a, e, n: (labels(p, a, e, n)[0],) * 2, "on the prompt too"),
    ("instruction-2", lambda p, a, e, n: (labels(p, a, e, n)[0], labels(p, a, e, n)[1][1:]), "a label for each"),
    (
        "instruction-2",
        lambda p, a, e, n: (labels(p, a, e, n)[0], [-100] * (len(p) + 1) + labels(p, a, e, n)[1][len(p) + 1 :]),
        "first token of the answer",
    ),
    ("instruction-2", lambda p, a, e, n: (labels(p, a, e, n)[0], [*labels(p, a, e, n)[1][:-1], -100]), "last token"),
    ("instruction-2", lambda p, a, e, n: (labels(p, a, e, n)[0], [0] * len(p) + [*a, e][: n - len(p)]), "is -100"),
    (
        "instruction-2",
        lambda p, a, e, n: ([*p, *a, e][:n], [-100 if token in p else token for token in [*p, *a, e][:n]]),
        "by position.*repeat a token",
    ),
    (
        "instruction-2",
        lambda p, a, e, n: ([*p, *a, e][:n], [-100] * len(p) + [*p, *a, e][:n][len(p) :]),
        "each of the row's tokens .* max_length 3",
    ),
    ("instruction-2", lambda p, a, e, n: ([*a, *p, e], []), "not prompt, answer and end"),
    ("instruction-2", lambda p, a, e, n: [1, 2], "lists of integers"),
    ("instruction-2", lambda p, a, e, n: [1], "two lists"),
    (
        "instruction-3",
        lambda texts: summary(texts, first(r"\[\[(\d+(?:\.\d+)?)\]\]")),
        "a guess.*two different ratings",
    ),
    (
        "instruction-3",
        lambda texts: summary(texts, first(r"\[\[(\d)\]\]")),
        "missed a score; the case has a rating with a decimal",
    ),
    ("instruction-3", lambda texts: summary(texts, zeros=True), "not a score of 0"),
    (
        "instruction-3",
        lambda texts: (summary(texts)[0] + 1, summary(texts)[1]),
        "The mean is not 8; the case has one rating each",
    ),
    ("instruction-3", lambda texts: summary(texts, lambda text: score(text, high=11)), "between 10 and 11"),
    ("instruction-3", lambda texts: summary(texts, lambda text: score(text, low=0)), "between 0 and 1"),
    ("instruction-3", lambda texts: summary(texts, lambda text: score(text, str)), "written in two ways"),
    ("instruction-3", lambda texts: (summary(texts)[0] or 0.0, summary(texts)[1]), "no mean of nothing"),
    ("instruction-3", lambda texts: summary(texts)[0], "two numbers"),
]
