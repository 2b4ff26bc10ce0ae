"""Right and wrong answers to the exercises of *Counting and storing*."""

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal


def reproduces(number, printed, ways=(ROUND_HALF_UP, ROUND_DOWN), thousand=1000):
    digits = Decimal(printed[:-1])
    exact = Decimal(number) / {"K": thousand, "M": 10**6}[printed[-1]]
    return any(exact.quantize(digits, how) == digits for how in ways)


def nbytes(shapes, rank, b, k, h, weights=-1, index=None):
    pieces = sum(rank * (m + n) // b for m, n in shapes)
    return 4 * h * b + pieces * (4 * (k + weights) + k * (index or (1 if h <= 256 else 2)))


def largest(shapes, rank, b, k, budget, **how):
    return max((h for h in range(1, 5000) if nbytes(shapes, rank, b, k, h, **how) <= budget), default=0)


def largest256(shapes, rank, b, k, budget):
    def size(h):  # one byte for fewer than 256 vectors, and not for 256 too
        return nbytes(shapes, rank, b, k, h, index=1 if h < 256 else 2)

    return max((h for h in range(1, 5000) if size(h) <= budget), default=0)


def depths(printed, block, rank):
    return [d for d in range(1, 201) if reproduces(rank * d * block, printed)]


RIGHT = {"counting-1": reproduces, "counting-2": largest, "counting-3": depths}
WRONG = [
    ("counting-1", lambda n, p: reproduces(n, p, ways=(ROUND_HALF_UP,)), "also cut digits"),
    ("counting-1", lambda n, p: reproduces(n, p, ways=(ROUND_DOWN,)), "also round"),
    ("counting-1", lambda n, p: reproduces(n, p, thousand=1024), "1,024"),
    ("counting-1", lambda n, p: reproduces(n, p) or (n % 1024 == 0 and n // 1024 == float(p[:-1])), "1,024"),
    ("counting-1", lambda n, p: reproduces(n, p, ways=(ROUND_HALF_EVEN, ROUND_DOWN)), "a tie rounds up"),
    ("counting-1", lambda n, p: p[-1] == "M" and reproduces(n, p), "a thousand"),
    ("counting-1", lambda n, p: True, "let a number pass"),
    (
        "counting-1",
        lambda n, p: abs(n / {"K": 1e3, "M": 1e6}[p[-1]] - float(p[:-1])) < 1e-6,
        "also cut|also round|refuse",
    ),
    ("counting-1", lambda n, p: int(reproduces(n, p)), "True or False"),
    ("counting-2", lambda s, r, b, k, budget: budget // (4 * b), "bank alone"),
    ("counting-2", lambda s, r, b, k, budget: largest(s, r, b, k, budget, weights=0), "follows from the others"),
    ("counting-2", lambda s, r, b, k, budget: largest(s, r, b, k, budget, index=1), "names 256"),
    ("counting-2", lambda s, r, b, k, budget: largest(s, r, b, k, budget, index=2), "one is enough"),
    ("counting-2", lambda s, r, b, k, budget: largest256(s, r, b, k, budget), "one is enough"),
    ("counting-2", lambda s, r, b, k, budget: largest(s, r, b, k, budget) + 1, "does not fit"),
    ("counting-2", lambda s, r, b, k, budget: largest(s, r, b, k, budget) - 1, "larger one"),
    ("counting-2", lambda s, r, b, k, budget: float(largest(s, r, b, k, budget)), "should be an int"),
    ("counting-3", lambda p, block, r: [], "found none"),
    ("counting-3", lambda p, block, r: depths(p, block, r)[::-1], "order"),
    ("counting-3", lambda p, block, r: depths(p, block, r)[:1], "missing"),
    ("counting-3", lambda p, block, r: [d + 1 for d in depths(p, block, r)], "do not give"),
    ("counting-3", lambda p, block, r: depths(p, block, r)[0], "Return a list"),
]
