"""Right and wrong answers to the exercises of *Mathematics: Mistral and Gemma*."""

import re
from decimal import Decimal
from fractions import Fraction

Z = 1.959963984540054


def box(text, last=True, nested=True):
    start = text.rfind("\\boxed{") if last else text.find("\\boxed{")
    if start < 0:
        return ""
    begin = start + len("\\boxed{")
    if not nested:
        return text[begin : text.index("}", begin)]
    depth = 1
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[begin:i]
    return ""


def number(text):
    text = text.replace(",", "")
    return Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)


def last_closed(text):
    """The last box that is closed, whatever opens after it."""
    contents = (box("\\boxed{" + rest) for rest in reversed(text.split("\\boxed{")[1:]))
    return next(filter(None, contents), "")


def three_deep(text):
    """A regular expression for braces to a fixed depth, in place of counting."""
    inside = r"[^{}]*"
    for _ in range(3):
        inside = rf"(?:[^{{}}]|\{{{inside}\}})*"
    found = list(re.finditer(rf"\\boxed\{{({inside})\}}", text))
    return found[-1][1] if found and found[-1].start() == text.rfind("\\boxed") else ""


def decimal(text):
    text = text.replace(",", "")
    top, _, bottom = text.rstrip("%").partition("/")
    return Decimal(top) / Decimal(bottom or 1) / (100 if text.endswith("%") else 1)


def approximate(text):
    return float(number(text))


def wilson(right, n, z=Z):
    p, d = right / n, 1 + z * z / n
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / d
    middle = (p + z * z / (2 * n)) / d
    return middle - half, middle + half


def wald(right, n, z=Z):
    p = right / n
    return p - z * (p * (1 - p) / n) ** 0.5, p + z * (p * (1 - p) / n) ** 0.5


def pieces(layers, hidden, wide, heads, shared, size, rank, length, query=None, key=None):
    q, k = query or heads * size, key or shared * size
    return layers * rank * (2 * (hidden + q) + 2 * (hidden + k) + 3 * (hidden + wide)) // length


RIGHT = {
    "mathematics-1": box,
    "mathematics-2": lambda a, b: number(a) == number(b),
    "mathematics-3": wilson,
    "mathematics-4": pieces,
}
WRONG = [
    ("mathematics-1", lambda t: box(t, last=False), "not the last box"),
    ("mathematics-1", lambda t: box(t, nested=False), "first closing brace"),
    ("mathematics-1", lambda t: box(t) and "\\boxed{" + box(t) + "}", "inside the box alone"),
    ("mathematics-1", lambda t: "", "found nothing"),
    ("mathematics-1", lambda t: box(t) or "7", "no box"),
    ("mathematics-1", lambda t: t[t.rfind("{") + 1 :] if "2" in t and t.endswith("2") else box(t), "never closed"),
    ("mathematics-1", last_closed, "the last box is never closed"),
    ("mathematics-1", three_deep, "found nothing"),
    ("mathematics-1", lambda t: 42, "type int"),
    ("mathematics-1", lambda t: "nonsense", "Yours is 'nonsense'"),
    ("mathematics-2", lambda a, b: a == b, "same number"),
    ("mathematics-2", lambda a, b: abs(approximate(a) - approximate(b)) < 1e-6, "A decimal is exact"),
    ("mathematics-2", lambda a, b: approximate(a) == approximate(b), "A float cannot tell"),
    ("mathematics-2", lambda a, b: decimal(a) == decimal(b), "A decimal is exact"),
    ("mathematics-2", lambda a, b: True, "different numbers"),
    ("mathematics-2", lambda a, b: 1, "type int"),
    ("mathematics-2", lambda a, b: number(a.rstrip("%")) == number(b.rstrip("%")), "a percent sign"),
    ("mathematics-3", wald, "solve for p"),
    ("mathematics-3", lambda r, n: wilson(r, n)[::-1], "wrong way round"),
    ("mathematics-3", lambda r, n: tuple(100 * end for end in wilson(r, n)), "not percent"),
    ("mathematics-3", lambda r, n: wald(r, n, z=1), "one standard error"),
    ("mathematics-3", lambda r, n: wilson(r, n, z=1.6448536), "too narrow"),
    ("mathematics-3", lambda r, n: wilson(r, n, z=2.5758293), "too wide"),
    ("mathematics-3", lambda r, n: tuple(end + 0.01 for end in wilson(r, n)), "Both your ends are too high"),
    ("mathematics-3", lambda r, n: tuple(end - 0.01 for end in wilson(r, n)), "Both your ends are too low"),
    ("mathematics-3", lambda r, n: (wilson(r, n)[0] + 0.01, wilson(r, n)[1]), "lower end is too high"),
    ("mathematics-3", lambda r, n: (wilson(r, n)[0], wilson(r, n)[1] - 0.01), "upper end is too low"),
    ("mathematics-3", lambda r, n: (-0.5, 1.5), "between 0 and 1"),
    ("mathematics-3", lambda r, n: r / n, "two numbers"),
    ("mathematics-3", lambda r, n: (float("nan"), 1.0), "finite"),
    ("mathematics-4", lambda *a: pieces(*a, key=a[3] * a[5]), "as many heads as the queries"),
    ("mathematics-4", lambda *a: pieces(*a, query=a[1]), "not the hidden size"),
    ("mathematics-4", lambda *a: pieces(*a, query=a[1], key=a[1]), "hidden x hidden"),
    ("mathematics-4", lambda *a: pieces(*a[:5], a[5], a[6], a[7]) // a[0], "one layer"),
    ("mathematics-4", lambda *a: pieces(*a) * a[7], "how many sub-vectors"),
    ("mathematics-4", lambda *a: pieces(*a) // a[6], "left the rank out"),
    ("mathematics-4", lambda *a: 3 * pieces(*a), "not what is stored"),
    ("mathematics-4", lambda *a: pieces(*a) + 1, "too large"),
    ("mathematics-4", lambda *a: float(pieces(*a)), "should be an int"),
    (
        "mathematics-4",
        lambda *a: pieces(*a) if a[4] < a[3] else pieces(*a, query=a[1], key=a[1]),
        "hidden x hidden",
    ),
]
