"""Answers found by named rules, and verdicts on pairs of answers: a matrix by hand, and properties of numbers."""

import json
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vbank.tasks import mathematics_symbolic
from vbank.tasks.mathematics_scoring import RULES, boxed, equivalent, extract, judge, number
from vbank.tasks.mathematics_symbolic import Symbolic

SAME, OTHER = True, False

# answer, reference, verdict
PAIRS = {
    "whole numbers and decimals": [
        ("18", "18", SAME),
        ("18.", "18", SAME),
        ("18.0", "18", SAME),
        ("018", "18", SAME),
        ("+18", "18", SAME),
        ("-18", "18", OTHER),
        ("−5", "-5", SAME),
        ("- 5", "-5", SAME),
        ("10", "100", OTHER),
        ("100", "10", OTHER),
        ("1.8", "18", OTHER),
        ("1e3", "1000", SAME),
        ("1.0e-3", "0.001", SAME),
        (r"2\times 10^3", "2000", SAME),
        (r"2 \cdot 10^{3}", "2000", SAME),
        (r"2\times 10^3", "200", OTHER),
        ("5 million", "5000000", SAME),
        ("5 million", "5", OTHER),
        ("1.0000001", "1", OTHER),
    ],
    "thousands": [
        ("1,234", "1234", SAME),
        ("1234", "1,234", SAME),
        ("1,234,567", "1234567", SAME),
        ("1{,}234", "1234", SAME),
        (r"1\,234", "1234", SAME),
        ("1 234", "1234", SAME),
        ("10,000", "10", OTHER),
        ("1,2", "12", OTHER),
        ("1,23", "123", OTHER),
        ("12,34", "1234", OTHER),
    ],
    "money and units": [
        ("$18", "18", SAME),
        (r"\$18", "18", SAME),
        (r"\$1,234.50", "1234.5", SAME),
        ("18 dollars", "18", SAME),
        (r"18\text{ dollars}", "18", SAME),
        (r"18\text{ cm}^2", "18", SAME),
        (r"18\,\text{cm}", "18", SAME),
        (r"\frac{1}{2}\text{ cm}", "0.5", SAME),
        (r"2\sqrt{3} \text{ cm}", r"2\sqrt3", SAME),
        ("18 dollars", "81", OTHER),
        ("€18", "18", SAME),
        ("£18", "18", SAME),
        ("3 dozen", "36", SAME),
        ("3 dozen eggs", "36", SAME),
        ("36", "3 dozens", SAME),
        ("3 dozen eggs", "3", SAME),
        (r"5\text{ million dollars}", "5000000", SAME),
        ("3 dozen", "3", SAME),  # to "how many dozen"
        ("3 dozen", "3 dozen", SAME),
        ("3 dozen", "36 dozen", OTHER),
        ("3 dozen", "12", OTHER),
        ("9*2 = 18", "18", SAME),
        (r"9 \times 2 = $18", "18", SAME),
        ("9*2 = 18", "9", OTHER),
        ("18 = 9*2", "9", OTHER),
        ("2 = 3", "3", OTHER),
        ("5-", "5", OTHER),
        ("5 +", "5", OTHER),
        ("18 cm", "18 inches", SAME),  # units are left out of account, as in MATH's own scorer
        ("5:30 pm", "5:30 am", OTHER),
        ("3:30", "3:30", SAME),
        ("3:30", "3:31", OTHER),
    ],
    "fractions": [
        (r"\frac{1}{2}", r"\frac12", SAME),
        ("1/2", r"\frac{1}{2}", SAME),
        ("0.5", r"\frac{1}{2}", SAME),
        (".5", r"\frac12", SAME),
        (r"\dfrac{1}{2}", r"\tfrac{1}{2}", SAME),
        ("2/4", "1/2", SAME),
        (r"\frac{-1}{2}", r"-\frac{1}{2}", SAME),
        (r"\frac{3}{-4}", r"-\frac{3}{4}", SAME),
        (r"\frac1{72}", "1/72", SAME),
        (r"1\frac{1}{2}", r"\frac32", SAME),
        ("1 1/2", "1.5", SAME),
        ("11/2", "1.5", OTHER),
        (r"-\frac12", r"\frac12", OTHER),
        (r"\frac{1}{2}", r"\frac{2}{1}", OTHER),
        (r"\frac{1}{3}", "0.333", OTHER),
        ("1/0", "2/0", OTHER),
    ],
    "percent": [
        (r"50\%", "0.5", SAME),
        ("50%", r"\frac{1}{2}", SAME),
        (r"50\%", "50", SAME),
        ("50", r"50\%", SAME),
        ("0.5", r"50\%", SAME),
        ("50 percent", r"50\%", SAME),
        (r"100\%", "1", SAME),
        (r"0.5\%", "0.5", OTHER),
        (r"5\%", r"50\%", OTHER),
        ("5", "0.05", OTHER),
        ("500", "5", OTHER),
        ("5", "500", OTHER),
    ],
    "degrees": [
        (r"90^\circ", "90", SAME),
        ("90", r"90^{\circ}", SAME),
        ("90°", r"90^\circ", SAME),
        ("90 degrees", "90", SAME),
        (r"9^\circ", "90", OTHER),
    ],
    "words": [
        (r"\text{Monday}", "Monday", SAME),
        ("monday", r"\text{Monday}", SAME),
        ("Tuesday", r"\text{Monday}", OTHER),
        (r"\text{(A)}", "A", SAME),
        ("(B)", r"\text{(A)}", OTHER),
        (r"\text{even}", r"\text{odd}", OTHER),
    ],
    "equations": [
        ("x=5", "5", SAME),
        ("x = 5", "x=5", SAME),
        ("5", "x=5", SAME),
        ("x=5", "6", OTHER),
        ("x=5", "y=5", OTHER),
        ("y=2x+1", "2x+1", SAME),
        ("y=2x+1", "y=1+2x", SAME),
        ("f(x)=2x", "2x", SAME),
        ("x+y=3", "3", OTHER),
        ("x^2+y^2=1", "x^2+y^2=4", OTHER),
        ("1 < x < 2", "1<x<2", SAME),
    ],
    "roots and expressions": [
        (r"\sqrt{2}", r"\sqrt2", SAME),
        (r"2\sqrt{3}", r"\sqrt{12}", SAME),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", SAME),
        ("sqrt(2)", r"\sqrt{2}", SAME),
        (r"\sqrt[3]{8}", "2", SAME),
        (r"\sqrt{2}", r"\sqrt{3}", OTHER),
        ("1.41421356", r"\sqrt{2}", OTHER),
        ("3.14159", r"\pi", OTHER),
        (r"2\pi", r"\pi", OTHER),
        (r"\frac{\pi}{2}", r"\pi/2", SAME),
        ("2^{10}", "1024", SAME),
        ("2^{10}", "1023", OTHER),
        ("3!", "6", SAME),
        ("2+3", "6", OTHER),
        ("(x+1)(x-1)", "x^2-1", SAME),
        ("x^2-1", "x^2+1", OTHER),
        ("x", "y", OTHER),
        ("3+2i", "2i+3", SAME),
        ("2i", "2", OTHER),
        (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}", SAME),
        (r"\log_2 8", "3", SAME),
        (r"-\infty", r"\infty", OTHER),
        ("1010_2", "1010_{2}", SAME),
        ("1010_2", "1010", OTHER),
        ("1010_2", "1010_3", OTHER),
    ],
    "tuples, intervals, sets": [
        ("(1,2)", "(1, 2)", SAME),
        ("(1,2)", "(2,1)", OTHER),
        ("(2,1)", "(3,1)", OTHER),
        ("(1,2)", "[1,2]", OTHER),
        ("[1,2)", "[1,2]", OTHER),
        ("1,2", "(1,2)", OTHER),
        ("12", "(1,2)", OTHER),
        ("1,2", "2,1", SAME),
        ("1,2", "1,2,3", OTHER),
        ("1,1,1", "1", OTHER),
        ("1 and 2", "1,2", SAME),
        (r"x=1 \text{ or } x=2", "1,2", SAME),
        (r"\{1,2\}", r"\{2,1\}", SAME),
        (r"\{1,2\}", "1,2", SAME),
        (r"\{5,6\}", "(5,6)", OTHER),
        (r"(\frac12, 3)", "(0.5,3)", SAME),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)", SAME),
        ("(1,2,3)", "(1,2)", OTHER),
        (r"(-\infty, 2]", r"(-\infty,2]", SAME),
        (r"(-\infty, 2]", r"(-\infty,2)", OTHER),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", SAME),
        (r"(1,2)\cup(3,4)", r"(1,2)\cup(3,5)", OTHER),
        (r"x \in [1,2]", "[1,2]", SAME),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", SAME),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\4&3\end{pmatrix}", OTHER),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", OTHER),
        (r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac12 \\ 2\end{pmatrix}", SAME),
        (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", SAME),
    ],
    "nothing": [("", "5", OTHER), ("nothing", "5", OTHER), ("5", "", OTHER), (r"\boxed{5}", "5", SAME)],
}
MATRIX = [(kind, *pair) for kind, pairs in PAIRS.items() for pair in pairs]


@pytest.mark.parametrize(("kind", "answer", "reference", "verdict"), MATRIX)
def test_the_verdict_on_a_pair(kind: str, answer: str, reference: str, verdict: bool) -> None:
    assert equivalent(answer, reference) is verdict


def test_the_matrix_has_enough_of_both_verdicts() -> None:
    verdicts = [verdict for *_, verdict in MATRIX]
    assert len(verdicts) >= 60 and min(verdicts.count(SAME), verdicts.count(OTHER)) >= 40


# Numbers written differently

WAYS = {
    "plain": lambda value: f"{value}",
    "zeros": lambda value: f"{value}.00",
    "commas": lambda value: f"{value:,}",
    "dollars": lambda value: rf"\${value:,}" if value >= 0 else f"{value}",
    "unit": lambda value: rf"{value}\text{{ cm}}",
    "word": lambda value: f"{value} apples",
    "over one": lambda value: rf"\frac{{{value}}}{{1}}",
    "over": lambda value: f"{3 * value}/3",
    "named": lambda value: f"x = {value}",
    "boxed": lambda value: rf"\boxed{{{value:,}}}",
    "math": lambda value: f"${value}$.",
}
numbers = st.integers(-(10**9), 10**9)
ways = st.sampled_from(sorted(WAYS))


@given(numbers, ways, ways)
def test_a_number_written_differently_is_the_same(value: int, one: str, other: str) -> None:
    assert equivalent(WAYS[one](value), WAYS[other](value))


@given(numbers, numbers, ways, ways)
def test_a_different_number_never_passes(value: int, second: int, one: str, other: str) -> None:
    assume(value != second)
    assert not equivalent(WAYS[one](value), WAYS[other](second))


@given(numbers, st.sampled_from([10, 100, 1000, -1]), ways, ways)
def test_neither_does_a_multiple_of_ten_or_the_other_sign(value: int, factor: int, one: str, other: str) -> None:
    assume(value)
    assert not equivalent(WAYS[one](factor * value), WAYS[other](value))


@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_compared_exactly(one: Fraction, other: Fraction) -> None:
    latex = rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
    assert equivalent(f"{one.numerator}/{one.denominator}", latex) is (one == other)


@given(st.decimals(-10000, 10000, places=3))
def test_a_decimal_equals_its_fraction(value: object) -> None:
    exact = Fraction(str(value))
    assert number(str(value)) == exact
    assert equivalent(str(value), rf"\frac{{{exact.numerator}}}{{{exact.denominator}}}")


@given(st.lists(numbers, min_size=2, max_size=5))
def test_order_matters_in_a_tuple_and_not_in_a_list(values: list[int]) -> None:
    turned = values[::-1]
    assert equivalent(", ".join(map(str, values)), ", ".join(map(str, turned)))
    tuples = [f"({', '.join(map(str, each))})" for each in (values, turned)]
    assert equivalent(*tuples) is (values == turned)


@given(st.text(max_size=300), st.text(max_size=30))
def test_no_text_whatever_raises(text: str, reference: str) -> None:
    found = extract(text)
    assert found is None or found.rule in RULES
    if not re.search(r"\w", text):  # without a letter or a digit nothing goes to the other process
        judge(text, reference)


# Where the answer stands

EXTRACTED = [
    ("So she has 18.\nThe answer is: 18", "18", "the answer is"),
    ("The answer is 18.", "18", "the answer is"),
    ("**The answer is: $18**. Hope it helps", "$18", "the answer is"),
    ("The answer is: 3.5. It was hard.", "3.5", "the answer is"),
    ("The answer is 3. No: the answer is 4", "4", "the answer is"),
    ("#### 7\nThe answer is: 8", "8", "the answer is"),
    (r"\boxed{7}" + "\nThe answer is: 8", "8", "the answer is"),
    (r"The answer is: $\boxed{\frac{1}{2}}$.", r"$\boxed{\frac{1}{2}}$", "the answer is"),
    ("The answer is:\n" + r"\begin{pmatrix} 1 \\" + "\n" + r"2 \end{pmatrix}", None, "the answer is"),
    ("She has 9.\n#### 18", "18", "####"),
    ("She has 9.\n#### 1,018\n", "1,018", "####"),
    ("The answer is:\n#### 5", "5", "the answer is"),
    (r"Therefore $\boxed{\frac{3}{4}}$ is left of 12.", r"\frac{3}{4}", "boxed"),
    (r"\boxed{1} and then \boxed{\text{a }\frac{1}{\sqrt{2}}}", r"\text{a }\frac{1}{\sqrt{2}}", "boxed"),
    (r"\fbox{5} of 7", "5", "boxed"),
    (r"so \boxed 5", "5", "boxed"),
    (r"cut off: 12 \boxed{\frac{1}{", "1", "last number"),
    ("She earns 9 * 2 = $18 every day.", "18", "last number"),
    ("It fell from 16-3 to -13 degrees", "-13", "last number"),
    ("1,234.50 in all", "1,234.50", "last number"),
    ("that is 3/4 of it", "3/4", "last number"),
    ("about 50% of them", "50%", "last number"),
]


@pytest.mark.parametrize(("text", "answer", "rule"), EXTRACTED)
def test_the_first_rule_that_finds_an_answer_decides(text: str, answer: str | None, rule: str) -> None:
    found = extract(text)
    assert found is not None and found.rule == rule
    assert answer is None or found.answer == answer


def test_no_answer_is_no_answer() -> None:
    assert extract("I do not know.") is None and extract("") is None
    assert not judge("I do not know.", "5")
    assert boxed(r"\boxed{1") is None
    assert list(RULES) == ["the answer is", "####", "boxed", "last number"]


def test_a_matrix_over_several_lines_is_read_whole() -> None:
    text = "The answer is: \\begin{pmatrix}\n1 \\\\\n2 \\end{pmatrix}\nGood."
    assert judge(text, r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}")


# What a model writes is not to be trusted

NASTY = [
    "__import__('os').system('touch {}')",
    r"\text{{__import__('os').system('touch {}')}}",
    "().__class__.__bases__[0]",
    "9^{{9^{{9^{{9}}}}}}",
    "(x+y+z+w)^{{200}}",
    "(" * 90 + "1" + ")" * 90,
    "1" * 5000,
    r"\frac" * 300,
]


def test_no_expression_runs_code_or_hangs(tmp_path: Path) -> None:
    target = tmp_path / "written"
    for text in NASTY:
        begun = time.monotonic()
        assert not equivalent(text.format(target), "7")
        assert time.monotonic() - begun < 60  # alarms of two seconds each, on a busy machine
    assert not target.exists()


def test_a_process_that_takes_too_long_is_killed_and_replaced() -> None:
    worker = Symbolic(seconds=0.05)
    try:
        assert not worker.equal("(x+y+z+w)^{200}", "(x+y+z+w)^{201}")
        assert worker.killed == 1 and worker.process is None
        worker.seconds = 60
        assert worker.equal("(x+1)(x-1)", "x^2-1")
        worker.process.kill()  # as if memory had run out
        assert not worker.equal("x", "y")
        assert worker.equal("x+y", "y+x")
    finally:
        worker.close()


def test_without_math_verify_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics_symbolic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vbank\[math\]'"):
        Symbolic()


def test_a_process_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics_symbolic, "START_SECONDS", 0.0)
    worker = Symbolic()
    with pytest.raises(RuntimeError, match="did not start"):
        worker.equal("x", "y")
    assert worker.process is None


def test_the_script_speaks_json() -> None:
    import subprocess

    lines = "".join(json.dumps(pair) + "\n" for pair in (["x+y", "y+x"], ["x", "y"], ["", ""]))
    script = mathematics_symbolic.__file__
    done = subprocess.run([sys.executable, "-P", script], input=lines, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["ready", "true", "false", "false"]
