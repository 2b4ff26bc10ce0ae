"""Printed figures: what they say, and when a computed number gives them."""

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbank.audits.printed import CLAIMED, ROUNDED, TRUNCATED, fits, holds, read, readings


@pytest.mark.parametrize(
    ("text", "binary", "value", "step"),
    [
        ("0.35M", False, 350_000, 10_000),
        ("9437.1K", False, 9_437_100, 100),
        ("1,376MB", False, 1_376_000_000, 1_000_000),
        ("1,376MB", True, 1376 * 2**20, 2**20),
        ("5.4 MB", True, Fraction(54, 10) * 2**20, Fraction(2**20, 10)),
        ("24,552 MiB", False, 24_552 * 2**20, 2**20),
        ("4.6GB", True, Fraction(46, 10) * 2**30, Fraction(2**30, 10)),
        ("275TB", True, 275 * 2**40, 2**40),
        ("589.8K", True, 589_800, 100),  # no byte, no power of two
        ("about 160 million", False, 160_000_000, 1_000_000),
        ("0.4%", False, Fraction(4, 10), Fraction(1, 10)),
        ("3 times", False, 3, 1),
        ("896", False, 896, 1),
        ("125M", False, 125_000_000, 1_000_000),
    ],
)
def test_reading(text, binary, value, step):
    found = read(text, binary)
    assert (found.value, found.step) == (value, step)


def test_words_without_a_number_are_refused():
    with pytest.raises(ValueError, match="'half' holds no number"):
        read("half")


@pytest.mark.parametrize(
    ("value", "text", "binary", "expected"),
    [
        (36_864, "36.8K", False, TRUNCATED),  # rounded it would be 36.9K
        (589_824, "589.8K", False, ROUNDED),
        (49_920, "49.5K", False, None),
        (301_989_888, "288MB", True, ROUNDED),
        (301_989_888, "288MB", False, None),
        (159_907_840, "153MB", True, ROUNDED),  # 152.5 MiB, a tie
        (159_907_840, "152MB", True, ROUNDED),
        (23_904, "0.023M", False, TRUNCATED),
        (25_344, "0.024M", False, None),
    ],
)
def test_figures_of_the_papers(value, text, binary, expected):
    assert fits(Fraction(value), text, binary) == expected


@pytest.mark.parametrize(
    ("value", "text", "binary", "expected"),
    [
        (2_359_488, "2.4M", False, {ROUNDED}),  # VeRA's d and b on GPT-3 at rank 1
        (2_384_064, "2.4M", False, {ROUNDED}),  # and with the frozen pair
        (43_392, "0.043M", False, {ROUNDED, TRUNCATED}),
        (23_904, "0.023M", False, {TRUNCATED}),
        (1_170_816, "1.1M", False, {TRUNCATED}),
        (49_920, "49.5K", False, set()),
        (96 * 1024, "96KB", True, {ROUNDED, TRUNCATED}),
    ],
)
def test_both_readings_are_told(value, text, binary, expected):
    assert readings(Fraction(value), text, binary) == expected


@given(value=st.integers(0, 10**12), digits=st.integers(0, 4), suffix=st.sampled_from(["", "K", "M"]))
def test_what_is_rounded_or_cut_fits_and_what_is_further_off_does_not(value, digits, suffix):
    unit = {"": 1, "K": 10**3, "M": 10**6}[suffix]
    shown, quantum = Decimal(value) / unit, Decimal(1).scaleb(-digits)
    assert fits(Fraction(value), f"{shown.quantize(quantum, ROUND_HALF_UP)}{suffix}") == ROUNDED
    cut = shown.quantize(quantum, ROUND_DOWN)
    assert fits(Fraction(value), f"{cut}{suffix}") in (ROUNDED, TRUNCATED)
    for wrong in (cut + 2 * quantum, cut - quantum):
        assert wrong < 0 or fits(Fraction(value), f"{wrong}{suffix}") is None


@given(value=st.fractions(0, 10**6), step=st.integers(0, 3))
def test_a_figure_fits_in_one_window_of_less_than_two_steps(value, step):
    """The printed numbers that fit are the nearest one (two at a tie) and the one below."""
    scale = 10**step
    near = range(max(0, int(value * scale) - 3), int(value * scale) + 4)
    fitting = [n for n in near if fits(value, f"{Decimal(n).scaleb(-step):f}")]
    assert 1 <= len(fitting) <= 2 and int(value * scale) in fitting


@pytest.mark.parametrize(
    ("value", "claim", "expected"),
    [
        ("10.1", "over 10", True),
        ("10", "over 10", False),
        ("39.9", "below 40", True),
        ("40", "below 40", False),
        ("3", "between 3 4", True),
        ("4", "between 3 4", False),
        ("1", "equal 1", True),
        ("1.0005", "equal 1", False),
        ("24.9", "about 20", True),
        ("25.1", "about 20", False),
        ("0.45", "about 0.5", True),
        ("0.44", "about 0.5", False),
        ("2.6", "about 2", False),
        ("150", "about 100", True),
        ("151", "about 100", False),
        ("3.2", "order 10", True),
        ("31.6", "order 10", True),
        ("3.1", "order 10", False),
        ("31.7", "order 10", False),
    ],
)
def test_claims(value, claim, expected):
    assert holds(Fraction(value), claim) is expected
    assert fits(Fraction(value), "in words", claim=claim) == (CLAIMED if expected else None)


@pytest.mark.parametrize("claim", ["roughly 10", "over", "between 3", "over 1 2"])
def test_an_unknown_claim_is_refused(claim):
    with pytest.raises(ValueError, match="is none of: over N, below N"):
        holds(Fraction(1), claim)
