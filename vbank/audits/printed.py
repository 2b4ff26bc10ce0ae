"""What a printed figure claims: its value, its last digit, and whether a computed number gives it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s*(million|[KMGT]?B|MiB|[KM%])?")
THOUSANDS = {"K": 1, "M": 2, "G": 3, "T": 4}
ROUNDED, TRUNCATED, CLAIMED = "rounded", "truncated", "as claimed"


@dataclass(frozen=True)
class Printed:
    """A printed number.

    Args:
        value: the number in units of one (parameters, bytes, percent points).
        step: what one more in its last printed digit would add.
    """

    value: Fraction
    step: Fraction


def read(text: str, binary: bool = False) -> Printed:
    """The first number of a printed string such as ``"0.35M"``, ``"1,376MB"``, ``"0.4%"`` or ``"4 times"``.

    Args:
        text: the string as printed.
        binary: whether KB, MB, GB, TB stand for powers of 1024; MiB always does.

    Raises:
        ValueError: there is no number in it.
    """
    found = NUMBER.search(text)
    if found is None:
        raise ValueError(f"printed figure {text!r} holds no number")
    digits, suffix = found[1].replace(",", ""), found[2] or ""
    decimals = len(digits.partition(".")[2])
    base = 1024 if suffix == "MiB" or (binary and suffix.endswith("B")) else 1000
    unit = Fraction(base) ** (THOUSANDS.get("M" if suffix == "million" else suffix[:1], 0))
    return Printed(Fraction(digits) * unit, unit / 10**decimals)


def fits(value: Fraction, text: str, binary: bool = False, claim: str | None = None) -> str | None:
    """How a computed `value` gives the printed `text`: rounded, truncated, as claimed, or None where it does not.

    Where both rounding and truncating give it, this says rounded; `readings` says both.
    Rounded: the printed number is a nearest one with as many digits; at an exact tie both neighbours are. Truncated:
    the digits after the last printed one were dropped. For words, `claim` says what they mean: ``"over 10"``,
    ``"below 40"``, ``"between 40 55"`` (55 left out), ``"equal 1"``, ``"about 100"`` (the value, rounded to as many
    digits as are not trailing zeros) or ``"order 10"`` (the nearest power of ten on a logarithmic scale).

    Raises:
        ValueError: the claim is none of these.
    """
    if claim is not None:
        return CLAIMED if holds(value, claim) else None
    found = readings(value, text, binary)
    return next((how for how in (ROUNDED, TRUNCATED) if how in found), None)


def readings(value: Fraction, text: str, binary: bool = False) -> set[str]:
    """All ways in which `value` gives the printed `text`: rounded, truncated, both or none (see `fits`)."""
    printed = read(text, binary)
    ways = {
        ROUNDED: abs(value - printed.value) <= printed.step / 2,
        TRUNCATED: printed.value <= value < printed.value + printed.step,
    }
    return {how for how, gives in ways.items() if gives}


def holds(value: Fraction, claim: str) -> bool:
    """Whether `value` is what the words claim (see `fits`)."""
    kind, *numbers = claim.split()
    bounds = [Fraction(number) for number in numbers]
    match kind, bounds:
        case "over", [least]:
            return value > least
        case "below", [most]:
            return value < most
        case "between", [least, most]:
            return least <= value < most
        case "equal", [same]:
            return value == same
        case "about", [near]:
            whole, _, decimals = numbers[0].partition(".")
            step = Fraction(1, 10 ** len(decimals)) if decimals else 10 ** (len(whole) - len(whole.rstrip("0")))
            return abs(value - near) <= Fraction(step) / 2
        case "order", [power]:
            return power**2 / 10 <= value**2 <= power**2 * 10
    raise ValueError(f"claim {claim!r} is none of: over N, below N, between N M, equal N, about N, order N")
