"""Checkers of the chapter *Mathematics: Mistral and Gemma*."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from vbank.exercises.checker import Wrong, recognise, require_integer, settle

BOXES: tuple[tuple[str, str], ...] = (
    (r"So the answer is $\boxed{42}$.", "42"),
    (r"First $\boxed{1}$, no: $\boxed{2}$.", "2"),
    (r"It is \boxed{\frac{3}{4}} of it.", r"\frac{3}{4}"),
    (r"\boxed{\text{a }\frac{1}{\sqrt{2}}} and {more} text }", r"\text{a }\frac{1}{\sqrt{2}}"),
    (r"\boxed{\begin{pmatrix} 1 \\ {2} \end{pmatrix}}", r"\begin{pmatrix} 1 \\ {2} \end{pmatrix}"),
    ("There are 7 of them.", ""),
    (r"It is \boxed{\frac{1}{2", ""),
    (r"\boxed{x^{2}} was wrong. So it is \boxed{y^{10}}", "y^{10}"),
    (r"\boxed{\sqrt{1+\frac{1}{\sqrt{x^{2}}}}}", r"\sqrt{1+\frac{1}{\sqrt{x^{2}}}}"),
    (r"\boxed{1}, then \boxed{\frac{1}{2", ""),
)


def boxed(function: Callable[..., Any]) -> int:
    r"""mathematics-1: the content of the last \boxed{...}, braces within braces included; "" if there is none."""
    for text, right in BOXES:
        answer = function(text)
        case = f"for the text {text!r}"
        if answer == right:
            continue
        if not isinstance(answer, str):
            raise Wrong(f"Return a text; yours {case} is of type {type(answer).__name__}.")
        if not right:
            reason = "there is no box" if "boxed" not in text else "the last box is never closed"
            raise Wrong(f"Return the empty text {case}: {reason}; yours is {answer[:60]!r}.")
        if not answer:
            raise Wrong(f"You found nothing {case}.")
        if text.count("\\boxed") > 1 and answer in text[: text.rindex("\\boxed")]:
            raise Wrong(f"That is not the last box {case}.")
        if "boxed" in answer:
            raise Wrong(f"Return what is inside the box alone {case}; yours is {answer[:60]!r}.")
        if right.startswith(answer):
            raise Wrong(f"You stop at the first closing brace {case}: count the braces that open, too.")
        if answer.startswith(right):
            raise Wrong(f"You go on to a closing brace that is not the box's {case}.")
        raise Wrong(f"Yours is {answer[:60]!r} {case}.")
    return len(BOXES)


NUMBERS: tuple[tuple[str, str, bool], ...] = (
    ("18", "18", True),
    ("18.0", "18", True),
    ("10", "100", False),
    ("1,234", "1234", True),
    ("1,234,567.50", "1234567.5", True),
    ("1/2", "0.5", True),
    ("2/4", "1/2", True),
    ("1/3", "0.333333333", False),
    ("1/3", "2/6", True),
    ("-3/4", "-0.75", True),
    ("-3/4", "3/4", False),
    ("50%", "0.5", True),
    ("12.5%", "1/8", True),
    ("50%", "5", False),
    ("0.1", "0.10", True),
    ("9007199254740993", "9007199254740992", False),
    ("1/3", "0." + 28 * "3", False),  # as many digits as `decimal` keeps
    ("2/3", "0." + 50 * "6" + "7", False),
)


def same_number(function: Callable[..., Any]) -> int:
    """mathematics-2: whether two texts are the same number, exactly; commas, fractions and percent signs included."""
    for one, other, right in NUMBERS:
        for a, b in ((one, other), (other, one)):
            answer = function(a, b)
            case = f"for {a!r} and {b!r}"
            if not isinstance(answer, bool):
                raise Wrong(f"Return True or False; yours {case} is of type {type(answer).__name__}.")
            if answer is right:
                continue
            if right:
                signs = {",": "commas", "/": "a fraction", "%": "a percent sign"}
                has = [name for sign, name in signs.items() if sign in a + b]
                raise Wrong(f"They are the same number {case}" + (f": mind {' and '.join(has)}." if has else "."))
            if "3333" in a + b or "6666" in a + b:
                raise Wrong(f"A decimal is exact {case}: a third is not that. Compare fractions, not floats.")
            if len(a) > 15:
                raise Wrong(f"A float cannot tell these two apart {case}; an exact fraction can.")
            raise Wrong(f"They are different numbers {case}.")
    return 2 * len(NUMBERS)


Z = 1.959963984540054  # of a normal distribution, 2.5 % lie above


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: the p with |right/n - p| <= z sqrt(p (1 - p) / n)."""
    share, shrink = right / n, 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / shrink
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / shrink
    return middle - half, middle + half


def interval(function: Callable[..., Any]) -> int:
    """mathematics-3: Wilson's 95 % interval of a share of right answers."""
    cases = ((913, 1319), (0, 20), (20, 20), (1, 1319), (895, 5000), (7, 10))
    for right, n in cases:
        answer = function(right, n)
        case = f"for {right} right of {n:,}"
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two numbers: the lower end and the upper end.")
        if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in answer):
            raise Wrong(f"Both should be finite plain numbers; yours are {answer!r}.")
        low, high = wilson(right, n)
        given = (float(answer[0]), float(answer[1]))
        if all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(given, (low, high), strict=True)):
            continue
        share = right / n
        error = math.sqrt(share * (1 - share) / n)
        mistakes = (
            ((high, low), "The ends are the wrong way round {}."),
            ((100 * low, 100 * high), "Return shares from 0 to 1, not percent {}."),
            (
                (share - Z * error, share + Z * error),
                "That is p ± z·error {}, with the error taken at the share found; solve for p instead.",
            ),
            ((share - error, share + error), "That is one standard error to each side {}."),
        )
        recognise(given, mistakes, case, _near)
        if not 0 <= given[0] <= given[1] <= 1:
            raise Wrong(f"A share lies between 0 and 1; your interval {case} is from {given[0]:.4f} to {given[1]:.4f}.")
        below, above = given[0] - low, given[1] - high
        if abs(below) < 1e-4 or abs(above) < 1e-4:
            end, off = ("upper", above) if abs(below) < 1e-4 else ("lower", below)
            raise Wrong(f"Your {end} end is too {'high' if off > 0 else 'low'} {case}.")
        if (below > 0) == (above > 0):
            raise Wrong(f"Both your ends are too {'high' if below > 0 else 'low'} {case}.")
        raise Wrong(f"Your interval is too {'wide' if below < 0 else 'narrow'} {case}.")
    return len(cases)


def _near(given: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(given, other, strict=True))


def grouped(function: Callable[..., Any]) -> int:
    """mathematics-4: sub-vectors of VB-LoRA on all linear layers of a model with grouped-query attention.

    Arguments: layers, hidden, intermediate, heads, key_value_heads, head_size, rank, length.
    """
    cases = (
        ("Gemma-7B", (28, 3072, 24576, 16, 16, 256, 4, 256)),
        ("Mistral-7B", (32, 4096, 14336, 32, 8, 128, 4, 256)),
        ("Llama-2-7B", (32, 4096, 11008, 32, 32, 128, 4, 256)),
        ("Llama-2-70B", (80, 8192, 28672, 64, 8, 128, 4, 256)),
        ("a small model", (2, 128, 384, 4, 2, 32, 2, 64)),
    )
    for name, (layers, hidden, wide, heads, shared, size, rank, length) in cases:
        answer = require_integer(function(layers, hidden, wide, heads, shared, size, rank, length), "The number")
        query, key = heads * size, shared * size
        count = partial(pieces, layers, hidden, wide, rank=rank, length=length)  # of the widths of queries and keys
        right, not_stored = count(query, key), "Count the sub-vectors {}, not what is stored for each."
        mistakes = (
            (count(query, query), "You gave keys and values as many heads as the queries {}."),
            (
                count(hidden, hidden),
                "You took every projection of attention as hidden x hidden {}: mind the heads' size.",
            ),
            (count(hidden, key), "The queries are heads x head_size wide {}, which is not the hidden size."),
            (right / layers, "That is one layer {}."),
            (right * length, "That is how many numbers A and B hold {}; how many sub-vectors are they?"),
            (right // rank, "You left the rank out {}."),
            *((factor * right, not_stored) for factor in (2, 3, 1.5)),
        )
        settle(answer, right, mistakes, "The number", f"for {name}")
    return len(cases)


def pieces(layers: int, hidden: int, wide: int, query: int, key: int, rank: int, length: int) -> int:
    """Sub-vectors of seven linear layers a block: query, key, value, output, gate, up, down."""
    sums = 2 * (hidden + query) + 2 * (hidden + key) + 3 * (hidden + wide)  # in + out
    return layers * rank * sums // length


EXERCISES = {
    "mathematics-1": boxed,
    "mathematics-2": same_number,
    "mathematics-3": interval,
    "mathematics-4": grouped,
}
