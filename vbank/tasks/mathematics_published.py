r"""The scorers that published tables were made with; kinder and harsher than ours, and kept to compare with them.

Sources: MetaMath's `eval_gsm8k.py`; `is_equiv` of Hendrycks et al. (2021); and `gsm8k_eval.py` with `grader.py` of
VB-LoRA's published code, which are those of LoRA-XS. Written anew from what these do.
"""

from __future__ import annotations

import math
import re

MARKER = "The answer is: "
# The first number behind the marker; of 1,234,567 it takes 1,234.
FIRST_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")


def metamath_number(text: str) -> int | None:
    """MetaMath's reading of an answer to GSM8K: the first number behind the last marker, rounded to a whole one.

    So 17.6 becomes 18. None where there is no marker, or no number behind it.
    """
    before, marker, rest = text.rpartition(MARKER)
    found = FIRST_NUMBER.search(rest) if marker else None
    if found is None:
        return None
    top, slash, bottom = found[0].replace(",", "").partition("/")
    if not slash:
        return _rounded(top)
    if not re.fullmatch(r"[-+]?\d+", top):
        return None
    return _rounded(top) if not int(bottom) else round(int(top) / int(bottom))


def _rounded(digits: str) -> int | None:
    value = float(digits)
    return round(value) if math.isfinite(value) else None


def metamath_gsm8k(text: str, reference: str) -> bool:
    """Whether MetaMath's scorer counts an answer to GSM8K as right."""
    return metamath_number(text) == int(reference.replace(",", ""))


def vb_lora_gsm8k(text: str, reference: str) -> bool:
    """Whether the scorer of VB-LoRA's Table 4 counts an answer to GSM8K as right.

    MetaMath's reading, and then a hundredth and a hundredfold of the reference are right as well: the comparison was
    made for percentages. Relative tolerance 1e-4.
    """
    answer, right = metamath_number(text), int(reference.replace(",", ""))
    if answer is None:
        return False
    return any(math.isclose(answer, value, rel_tol=1e-4) for value in (right / 100, right, right * 100))


def metamath_math(text: str, reference: str) -> bool:
    """Whether MetaMath's scorer counts an answer to MATH as right: what follows the marker, compared by `is_equiv`."""
    before, marker, rest = text.rpartition(MARKER)
    return bool(marker) and hendrycks_equal(rest.split(".\n")[0].strip().removesuffix("."), reference)


def hendrycks_equal(answer: str, reference: str) -> bool:
    r"""MATH's own `is_equiv`: equality of strings after a few rewritings, no arithmetic.

    So 2\sqrt{3} and \sqrt{12} differ, (1,2) and (1, 2) do not, and of decimals 0.5 alone equals its fraction.
    """
    return _rewritten(answer) == _rewritten(reference)


def _rewritten(text: str) -> str:
    for written, ours in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")):
        text = text.replace(written, ours)
    for dropped in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(dropped, "")
    text = text.split("\\text{ ")[0]  # units
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    name, equals, rest = text.partition("=")
    if equals and len(name) <= 2 and "=" not in rest:
        text = rest
    text = re.sub(r"\\sqrt(?=[^{])(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
