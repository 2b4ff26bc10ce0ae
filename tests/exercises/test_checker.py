"""What all checkers share: the words for a wrong answer, by the mistake that leads to it."""

import math
from functools import partial

import pytest
import torch

from vbank.exercises.checker import Wrong, close, recognise, settle

MISTAKES = ((60, "That is in minutes {}; return hours."), (2, "Twice the hours {}."), (60, "Never said {}."))


def message(answer, right, mistakes=MISTAKES, **how):
    with pytest.raises(Wrong) as caught:
        settle(answer, right, mistakes, "The time", "for n = 3", **how)
    return str(caught.value)


def test_a_right_answer_passes_whatever_else_it_agrees_with():
    settle(1, 1, MISTAKES, "The time", "for n = 3")
    settle(60, 60, MISTAKES, "The time", "for n = 3")


def test_the_first_mistake_that_fits_has_the_word_and_names_the_case():
    assert message(60, 1) == "That is in minutes for n = 3; return hours."
    assert message(2, 1) == "Twice the hours for n = 3."


def test_a_case_may_hold_braces():
    with pytest.raises(Wrong, match=r"^Drop it for \{0: 1\.5\}\.$"):
        recognise(3, [(3, "Drop it {}.")], "for {0: 1.5}")


def test_what_is_no_known_mistake_is_too_large_or_too_small():
    assert message(7, 1) == "The time is too large for n = 3."
    assert message(-7, 1) == "The time is too small for n = 3."
    assert message(7, 1, mistakes=()) == "The time is too large for n = 3."


def test_numbers_agree_as_the_checker_says():
    near = partial(math.isclose, rel_tol=1e-3)
    settle(1.0005, 1.0, MISTAKES, "The time", "for n = 3", near)
    assert message(60.03, 1.0, same=near) == "That is in minutes for n = 3; return hours."
    assert message(60.03, 1.0) == "The time is too large for n = 3."


def test_tensors():
    right = torch.tensor([1.0, -2.0])
    mistakes = ((right * 0, "All zeros {}."), (-right, "The sign is wrong {}."))
    settle(right + 1e-5, right, mistakes, "The update", "for n = 3", close)
    assert message(1e-5 - right, right, mistakes, same=close) == "The sign is wrong for n = 3."
    assert message(3 * right, right, mistakes, same=close) == "The time has the right shape but wrong values for n = 3."
    assert message(right + 1e-5, right, mistakes, same=partial(close, tolerance=1e-8)).startswith("The time has")


def test_recognise_lets_pass_what_is_no_mistake():
    recognise(7, MISTAKES, "for n = 3")
    recognise(7, (), "for n = 3")
