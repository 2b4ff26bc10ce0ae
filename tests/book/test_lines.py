"""Where lines of a page break, and what stands apart."""

import sys

import pytest
from by_path import ROOT, load

sys.path.insert(0, str(ROOT / "book/_ext"))
long_lines = load("book/_ext/long_lines.py")
glued_lines = load("book/_ext/glued_lines.py")
sys.path.remove(str(ROOT / "book/_ext"))

TABLE = "rank  error\n   1    0.5"
GLUED = "error  0.5\nrank   1"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (f"{TABLE}\n{GLUED}\n", f"{TABLE}\n\n{GLUED}"),
        (f"{TABLE}\n\n{GLUED}\n", f"{TABLE}\n\n{GLUED}"),
        (f"{GLUED}\n", GLUED),
        (f"{GLUED}\n{TABLE}\n", f"{GLUED}\n{TABLE}"),  # the last lines are no glued ones
        ("rank 2 is next\nranks  3\n", "rank 2 is next\nranks  3"),
    ],
)
def test_glued_lines_stand_apart(printed: str, shown: str) -> None:
    assert glued_lines.apart(printed, {"error", "rank"}) == shown


@pytest.mark.parametrize(
    ("line", "breaks"),
    [
        ("lora-1: not yet. The gradient has wrong values.", True),
        ("verdict       the two differ by more than chance explains", True),
        ("verdict   the two differ by more than noise", False),  # not longer than a phone's line
        (f"{'a loss for each kind of token':>45}", False),  # a head above columns
        ("rank     query     value     head     all", False),
        ("  1 2 3 4 5 6 7 8 seen in one run at most", True),
    ],
)
def test_sentences_break_and_columns_do_not(line: str, breaks: bool) -> None:
    assert long_lines.is_prose(line) is breaks


def test_what_closes_a_formula_stays_with_it() -> None:
    formula = r'<span class="math notranslate nohighlight">\(r\)</span>'
    kept = '<span class="vbank-closed">{}</span>'
    for closed in (f"{formula},", f"({formula})", f"{formula}-th"):
        assert long_lines.kept(f"a {closed} b") == f"a {kept.format(closed)} b"
    assert long_lines.kept(f"a {formula} b") == f"a {formula} b"


def test_names_in_code_may_break_after_an_underscore() -> None:
    code = '<code><span class="pre">{}</span></code> a_b'
    assert long_lines.kept(code.format("top_k=2")) == code.format("top_<wbr>k=<wbr>2")
