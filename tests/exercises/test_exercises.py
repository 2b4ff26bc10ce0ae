"""Checkers: right answers pass, wrong ones are told what is wrong, the book's solutions are right."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from vbank.exercises import EXERCISES, check

BOOK = Path(__file__).parents[2] / "book"


# A file answers_<chapter>.py beside this one holds RIGHT, {exercise: function}, and WRONG, a list of
# (exercise, function, words that the checker's message must contain).
ANSWERS = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("answers_*.py"))]
RIGHT = {name: function for module in ANSWERS for name, function in module.RIGHT.items()}
WRONG = [case for module in ANSWERS for case in module.WRONG]


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_pass(name):
    verdict = check(name, RIGHT[name])
    assert verdict, verdict
    assert "unseen cases agree" in repr(verdict)


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}: {w[2]}" for w in WRONG])
def test_wrong_answers_are_told_what_is_wrong(name, answer, words):
    verdict = check(name, answer)
    assert not verdict
    assert re.search(words, verdict.message), verdict


def test_checking_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("lora-1", lambda *arguments: torch.rand(2) and None)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_exercise_suggests():
    with pytest.raises(ValueError, match="lora-1"):
        check("lora1", len)
    with pytest.raises(ValueError, match="the exercise's name; yours is of type builtin"):
        check(len, "lora-1")
    for seconds in (0, "3", float("nan"), True):
        with pytest.raises(ValueError, match=f"seconds is {seconds!r}"):
            check("lora-1", len, seconds=seconds)


def solutions():
    """Code in the dropdowns of the chapters, by the exercise that its first comment names."""
    for path in sorted(BOOK.rglob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown" and "dropdown" in "".join(cell["source"]):
                for name, code in re.findall(r"```python\n# ([\w-]+)\n(.*?)```", "".join(cell["source"]), re.S):
                    yield path.stem, name, code


def test_every_exercise_has_a_solution_in_the_book():
    assert {name for _, name, _ in solutions()} >= set(EXERCISES)


@pytest.mark.parametrize(("chapter", "name", "code"), list(solutions()), ids=lambda value: str(value)[:20])
def test_solutions_in_the_book_are_right(chapter, name, code):
    scope: dict = {"torch": torch}
    exec(code, scope)
    function = next(value for key, value in reversed(scope.items()) if callable(value) and key != "__builtins__")
    verdict = check(name, function)
    assert verdict, f"{chapter}: {verdict}"
