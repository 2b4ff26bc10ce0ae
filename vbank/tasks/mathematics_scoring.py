"""What a model answered to a problem, and whether it is the right answer.

Three steps. `extract` finds the answer in the model's text by named rules in a fixed order. `equivalent` compares it
with the reference: plain numbers as exact fractions, tuples, intervals, sets and matrices entry by entry, and what
remains, such as roots and polynomials, by the library math-verify in a process of its own. `judge` does both.

The scorers of published results differ from this one; `vbank.tasks.mathematics_published` has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from vbank.tasks.mathematics_symbolic import symbolic

LONGEST = 200  # characters of an answer that is compared other than as a string
DEEPEST = 4  # brackets within brackets

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
LAST_NUMBER = re.compile(rf"(?:(?<![\w.,)\]}}])-)?(?<![\w.])(?:{DIGITS})(?:/\d+)?(?:\s?\\?%)?")
NUMBER = re.compile(rf"([-+]?)\s*({DIGITS})(?:e([-+]?\d{{1,3}}))?", re.IGNORECASE)
POWER_OF_TEN = re.compile(r"(.+?)\s*(?:\\times|\\cdot)\s*10\^(?:\{([-+]?\d{1,3})\}|(\d))")
FRACTION = re.compile(r"([-+]?)\s*(\d*)\s*\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
SLASHED = re.compile(r"([-+]?)\s*(?:(\d+)\s+)?([^\s/]+)\s*/\s*([^\s/]+)")
DOZEN = 12
MULTIPLIERS = {
    "dozen": DOZEN,
    "dozens": DOZEN,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
NO_UNITS = {
    "pi",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "inf",
    "infinity",
    "and",
    "or",
    "am",
    "pm",
}
UNIT = r"(?:\\(?:text|mathrm|textrm|mbox)\{[^{}]*\}|[A-Za-z]{2,}\.?(?:\s*/\s*[A-Za-z]+\.?)?)(?:\s*\^\s*\{?\d\}?)?"
WITH_UNIT = re.compile(rf"(.*[\d}}%.])\s*((?:{UNIT}\s*){{1,4}})")
NAMED = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*(?:=|\\in(?![a-z]))\s*(.+)", re.DOTALL)
BASED = re.compile(r"([-+]?\d[0-9A-Za-z]*)_\{?(\d+)\}?")
MATRIX = re.compile(r"\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
CLOCK = re.compile(r"\d:\d")  # a time, or a ratio: compared as words are
WORDS = re.compile(r"\(?[A-Za-z]\)|[A-Za-z][A-Za-z' -]{2,}")
RELATION = re.compile(r"=|<|>|\\(?:leq?|geq?|neq?)(?![a-z])")
RECKONING = re.compile(
    r"(?=.*[\d)]\s*(?:[-+*/]|\\times|\\cdot|\\div))(?:[\d\s.,()*/+-]|\\times|\\cdot|\\div)+=([^=<>]+)"
)
UNFINISHED = re.compile(r"(?:[-+*/^]|\\(?:times|cdot|div))\s*$")

# Other ways to write a sign, what is a space, and what is not part of the answer. A doubled backslash is a matrix' row.
SIGNS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "°": r"^\circ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "½": r"\frac12 ",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\langle": "(",
    r"\rangle": ")",
    r"\%": "%",
    "{,}": ",",
}
SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-z]))|~|\s+")
IGNORED = re.compile(
    r"(?<!\\)\\(?:[()\[\]!$]|(?:left|right|displaystyle)(?![a-z]))"
    r"|[$€£]|\*\*|\^\{?\\(?:circ|degree)\}?|\\degree|\s*\bdegrees?\b"
)


@dataclass(frozen=True)
class Found:
    """An answer as it stands in a text, and the rule that found it."""

    answer: str
    rule: str


def after_the_answer_is(text: str) -> str | None:
    """What follows the last "The answer is", to the end of its sentence or line: MetaMath's form of an answer."""
    begins = [match.end() for match in re.finditer(r"answer\s+is\b\s*:?", text, re.IGNORECASE)]
    return _sentence(text[begins[-1] :]) if begins else None


def after_hashes(text: str) -> str | None:
    """What follows the last ####, to the end of its line: GSM8K's form of an answer."""
    _, hashes, rest = text.rpartition("####")
    return _sentence(rest) if hashes else None


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces within braces included: MATH's form of an answer."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("{")
    if rest[0].strip() not in ("\\boxed", "\\fbox"):  # \boxed 5, without braces
        return _sentence(text[start:].removeprefix("\\boxed").removeprefix("\\fbox"))
    depth = 1
    for i, character in enumerate(rest[2]):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return rest[2][:i].strip() or None
    return None  # cut off before it was closed


def last_number(text: str) -> str | None:
    """The last number: of an answer in no form at all."""
    found = LAST_NUMBER.findall(text)
    return found[-1] if found else None


RULES: dict[str, Callable[[str], str | None]] = {
    "the answer is": after_the_answer_is,
    "####": after_hashes,
    "boxed": boxed,
    "last number": last_number,
}


def extract(text: str) -> Found | None:
    """The answer that a text gives: the first of `RULES`, in their order, that finds one; None if none does."""
    for rule, find in RULES.items():
        answer = find(text)
        if answer:
            return Found(answer, rule)
    return None


def _sentence(text: str) -> str | None:
    """What stands before the end of the sentence, or of the line; a matrix may take several lines."""
    taken = ""
    for line in text.strip().splitlines():
        taken = f"{taken} {line.strip()}".strip()
        if taken.count("{") == taken.count("}") and taken.count("\\begin") == taken.count("\\end"):
            break
    return re.split(r"\.(?=\s|$)", taken)[0].strip(" \t:*#") or None


def judge(text: str, reference: str) -> bool:
    """Whether the answer in a model's text is equivalent to the reference."""
    found = extract(text)
    return found is not None and equivalent(found.answer, reference)


def equivalent(answer: str, reference: str) -> bool:
    r"""Whether two answers are the same, however they are written.

    The same are: 1,234 and 1234; \frac12, 1/2 and 0.5; $5, 5 dollars, 5\text{ cm} and 5; x = 5 and 5; 50\% and 0.5,
    and also 50 where the reference is a whole number or bears the sign itself; 3 dozen and 36, and also 3, as
    "how many dozen" is answered; 9*2 = 18 and 18; 1,2 and 2,1 and \{2,1\}; (1, 2) and
    (1,2); equal expressions. Not the same are: 1/3 and 0.333, since a decimal is exact; (1,2), (2,1), [1,2] and 1,2;
    1010 in base 2 and 1010. Case of words and units are ignored.

    Args:
        answer: of the model. Longer than 200 characters, it is compared as a string.
        reference: the right one.
    """
    if not answer.strip() or not reference.strip():
        return False
    if answer.strip() == reference.strip():
        return True
    if max(len(answer), len(reference)) > LONGEST:
        return False
    return _same(tidy(answer), tidy(reference), DEEPEST)


def tidy(text: str) -> str:
    r"""One way to write each sign: no $, \left, \text around everything, degrees, or full stop at the end."""
    text = boxed(text) or text if "\\boxed" in text or "\\fbox" in text else text
    for written, ours in SIGNS.items():
        text = text.replace(written, ours)
    text = re.sub(r"(?<=\d)\\,(?=\d{3}(?!\d))", ",", text)  # a thin space between thousands
    text = SPACE.sub(" ", IGNORED.sub("", text))
    text = re.sub(r"\s*\bpercent\b", "%", text).strip().rstrip(" .")
    wrapped = re.fullmatch(r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", text)
    return wrapped[1].strip() if wrapped else text


def _same(answer: str, reference: str, depth: int) -> bool:
    """`equivalent` for tidy strings."""
    if answer.replace(" ", "") == reference.replace(" ", "") != "":
        return True
    if not answer or not reference or not depth:
        return False
    (name, answer), (other, reference) = _unnamed(answer), _unnamed(reference)
    if name and other and name != other:
        return False
    a, b = number(answer), number(reference)
    if a is not None and b is not None:
        return _same_number(a, answer, b, reference)
    x, y = (None if value is not None else _parts(text) for value, text in ((a, answer), (b, reference)))
    if x is not None and y is not None:
        return _same_parts(x, y, depth - 1)
    if x is not None or y is not None:  # several entries against one
        return False
    bases = [BASED.fullmatch(text.replace(" ", "")) for text in (answer, reference)]
    if any(bases):
        return all(bases) and bases[0].groups() == bases[1].groups()  # type: ignore[union-attr]
    if any(WORDS.fullmatch(text) or CLOCK.search(text) for text in (answer, reference)):
        return answer.strip("() ").casefold() == reference.strip("() ").casefold()
    if any(UNFINISHED.search(text) for text in (answer, reference)):
        return False
    if bool(RELATION.search(answer)) != bool(RELATION.search(reference)):
        return False
    return symbolic().equal(without_unit(answer), without_unit(reference))


def _unnamed(text: str) -> tuple[str, str]:
    """The name before an equals sign and what follows it: x = 5 -> ("x", "5"), 9*2 = 18 -> ("", "18")."""
    reckoned = RECKONING.fullmatch(text)
    if reckoned:
        return "", reckoned[1].strip()
    found = NAMED.fullmatch(text)
    if found is None or RELATION.search(found[2]):
        return "", text
    return found[1], found[2].strip()


def without_unit(text: str) -> str:
    """A number without the words behind it."""
    found = WITH_UNIT.fullmatch(text)
    if found is None:
        return text
    words = [word.lower() for word in re.findall(r"[A-Za-z]+", re.sub(r"\\[a-z]+", " ", found[2]))]
    if words and words[0] in MULTIPLIERS:
        return f"{found[1]} {words[0]}"
    return text if any(word in NO_UNITS or word in MULTIPLIERS for word in words) else found[1]


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: whole, decimal, fraction, mixed, with commas, percent, power of ten, unit.

    None for anything else: a root, an expression, a word, a division by zero.
    """
    text = without_unit(text.strip()).strip()
    word = text.rpartition(" ")
    if word[2].lower() in MULTIPLIERS:
        value = number(word[0])
        return None if value is None else value * MULTIPLIERS[word[2].lower()]
    if text.endswith("%"):
        value = number(text[:-1])
        return None if value is None else value / 100
    found = NUMBER.fullmatch(text)
    if found:
        value = Fraction(found[2].replace(",", "").rstrip(".")) * Fraction(10) ** int(found[3] or 0)
        return -value if found[1] == "-" else value
    found = POWER_OF_TEN.fullmatch(text)
    if found:
        value = number(found[1])
        return None if value is None else value * Fraction(10) ** int(found[2] or found[3])
    found = FRACTION.fullmatch(text)
    if found:
        return _ratio(found[1], found[2], found[3] or found[4] or "", found[5] or found[6] or "")
    found = SLASHED.fullmatch(text)
    if found:
        return _ratio(found[1], found[2], found[3], found[4])
    # Digits in groups of three: 1 234 567
    return number(text.replace(" ", "")) if re.fullmatch(r"[-+]?\d{1,3}( \d{3})+(\.\d+)?", text) else None


def _ratio(sign: str, whole: str | None, top: str, bottom: str) -> Fraction | None:
    """sign (whole + top / bottom) of plain numbers."""
    parts = [NUMBER.fullmatch(part.strip(" ()")) for part in (top, bottom)]
    if not all(parts):
        return None
    numerator, denominator = (number(part.strip(" ()")) for part in (top, bottom))
    if numerator is None or not denominator:
        return None
    value = Fraction(whole or 0) + numerator / denominator
    return -value if sign == "-" else value


def _same_number(a: Fraction, answer: str, b: Fraction, reference: str) -> bool:
    """Equal values; a percent sign, or dozens, may also be a unit that one side leaves out."""
    if a == b:
        return True
    dozens = ["dozen" in text.casefold() for text in (answer, reference)]
    if any(dozens):
        return not all(dozens) and (a == DOZEN * b if dozens[0] else b == DOZEN * a)
    percent, expected = "%" in answer, "%" in reference
    if percent and not expected:
        return b.denominator == 1 and 100 * a == b
    return expected and not percent and a == 100 * b


Parts = tuple[str, list[str]]  # how entries are held together, and the entries; "set": their order does not matter


def _parts(text: str) -> Parts | None:
    """Entries of a matrix, a union, a tuple, an interval, a set or a list; None for anything else."""
    return _matrix(text) or _union(text) or _bracketed(text) or _listed(text)


def _matrix(text: str) -> Parts | None:
    found = MATRIX.fullmatch(text)
    if not found:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", found[2].strip().removesuffix("\\\\"))]
    shape = ",".join(str(len(row)) for row in rows)
    return f"matrix {shape}", [cell.strip() for row in rows for cell in row]


def _union(text: str) -> Parts | None:
    r"""The pieces of a union, A \cup B."""
    pieces = re.split(r"\s*\\cup(?![a-z])\s*", text)
    return ("set", pieces) if len(pieces) > 1 else None


def _bracketed(text: str) -> Parts | None:
    """(a, b), [a, b), {a, b}: the brackets and the entries; None without brackets or with a single entry."""
    opening, closing = text[:1], text[-1:]
    if text.startswith("\\{") and text.endswith("\\}"):
        opening, closing, inside = "{", "}", text[2:-2]
    elif opening in tuple("([") and closing in tuple(")]"):
        inside = text[1:-1]
    else:
        return None
    entries = _split(inside)
    if entries is None or (len(entries) < 2 and opening != "{"):
        return None
    return "set" if opening == "{" else opening + closing, entries


def _listed(text: str) -> Parts | None:
    """a, b and c without brackets: a set."""
    entries = _split(re.sub(r",?\s+(?:\\text\{\s*)?(?:and|or)(?:\s*\})?\s+", ",", text))
    return ("set", entries) if entries is not None and len(entries) > 1 else None


def _split(text: str) -> list[str] | None:
    """Entries between commas outside all brackets; None where brackets do not match."""
    entries, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return None
        if character == "," and not depth:
            entries.append("")
        else:
            entries[-1] += character
    return None if depth or not all(map(str.strip, entries)) else [entry.strip() for entry in entries]


def _same_parts(answer: Parts, reference: Parts, depth: int) -> bool:
    (kind, ours), (other, theirs) = answer, reference
    if kind != other or len(ours) != len(theirs):
        return False
    if kind != "set":
        return all(_same(a, b, depth) for a, b in zip(ours, theirs, strict=True))
    left = list(theirs)
    for a in ours:
        match = next((b for b in left if _same(a, b, depth)), None)
        if match is None:
            return False
        left.remove(match)
    return True
