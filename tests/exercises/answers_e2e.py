"""Right and wrong answers to the exercises of *E2E with GPT-2*."""

from collections import Counter
from difflib import SequenceMatcher


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def precision(output, references, n, limit=max, divide=True):
    own = grams(output, n)
    hits = sum(min(count, limit(grams(group, n)[gram] for group in references)) for gram, count in own.items())
    return hits / sum(own.values()) if divide else float(hits)


def best_single(output, references, n):
    return max(precision(output, [group], n) for group in references)


def unclipped(output, references, n):
    return precision(output, references, n, limit=lambda counts: 99 if any(counts) else 0)


def distinct(output, references, n):
    own = grams(output, n)
    return sum(any(gram in grams(group, n) for group in references) for gram in own) / sum(own.values())


def lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, word in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def bag(a, b):
    return sum((Counter(a) & Counter(b)).values())


def rouge(output, references, beta=1.2, common=lcs, swap=False):
    p = max(common(output, group) / len(output) for group in references)
    r = max(common(output, group) / len(group) for group in references)
    p, r = (r, p) if swap else (p, r)
    return (1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0


def each(output, references):
    return [rouge(output, [group]) for group in references]


def inside_words(output, references, n):
    """Finds an n-gram in a text of letters, so that "the" is in "other"."""
    own, texts = grams(output, n), [" ".join(group) for group in references]
    hits = sum(min(count, max(text.count(" ".join(gram)) for text in texts)) for gram, count in own.items())
    return hits / sum(own.values())


def blocks(a, b):
    """difflib's matching blocks: longest block first, which is no longest common subsequence."""
    return sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())


def of_the_longest(output, references):
    return rouge(output, [max(references, key=lambda group: lcs(output, group))])


RIGHT = {"e2e-1": precision, "e2e-2": rouge}
WRONG = [
    ("e2e-1", unclipped, "repeats"),
    ("e2e-1", lambda o, r, n: precision(o, r, n, limit=sum), "add up"),
    ("e2e-1", best_single, "best single"),
    ("e2e-1", lambda o, r, n: precision(o, r[:1], n), "Only the first"),
    ("e2e-1", distinct, "different n-gram"),
    ("e2e-1", lambda o, r, n: precision(o, r, n, divide=False), "number of hits"),
    ("e2e-1", lambda o, r, n: precision(o, r, n, divide=False) / len(grams(r[0], n)), "of a reference"),
    ("e2e-1", inside_words, "inside longer words"),
    ("e2e-1", lambda o, r, n: 1.5, "too large"),
    ("e2e-1", lambda o, r, n: -0.1, "too small"),
    ("e2e-1", lambda o, r, n: "1/2", "should be a"),
    ("e2e-2", lambda o, r: rouge(o, r, beta=1), "balanced"),
    ("e2e-2", lambda o, r: max(each(o, r)), "best F"),
    ("e2e-2", lambda o, r: sum(each(o, r)) / len(r), "average"),
    ("e2e-2", lambda o, r: rouge(o, r, swap=True), "changed places"),
    ("e2e-2", lambda o, r: rouge(o, r, common=bag), "any order"),
    ("e2e-2", lambda o, r: rouge(o, r, common=lambda a, b: len(set(a) & set(b))), "different common words"),
    ("e2e-2", lambda o, r: rouge(o, r, common=blocks), "too small"),
    ("e2e-2", of_the_longest, "P and R of one reference"),
    ("e2e-2", lambda o, r: max(lcs(o, g) / len(o) for g in r), "precision alone"),
    ("e2e-2", lambda o, r: max(lcs(o, g) / len(g) for g in r), "recall alone"),
    ("e2e-2", lambda o, r: 100 * rouge(o, r), "percentage"),
    ("e2e-2", lambda o, r: 0.5 * rouge(o, r), "too small"),
]
