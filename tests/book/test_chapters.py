"""What every chapter has: its rooms in order, exercises with solutions, figures from one place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prose import exercises, headings

from vbank.exercises import EXERCISES

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(path for path in BOOK.glob("*/*.ipynb") if path.parent.name not in (".ipynb_checkpoints", "appendix"))
DERIVATIONS = [path for path in CHAPTERS if path.parent.name == "derivations"]
ROOMS = [
    "The question left open",
    "The idea in one picture",
    "The derivation",
    "From scratch",
    "What it costs",
    "Try it",
    "What the paper",
    "The `vbank` twin",
    "Exercises",
    "Summary",
    "Further reading",
]


def each(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in load(path)["cells"] if cell["cell_type"] == "code")


@each(CHAPTERS)
def test_every_chapter_begins_and_ends_alike(path: Path) -> None:
    notebook = load(path)
    first = "".join(notebook["cells"][0]["source"])
    label = path.stem.replace("_", "-")
    assert re.match(rf"\({label}\)=\n# [^\n]+\n\n\S", first), f"begin with ({label})=, a title and an opening"
    if path.stem != "cost_of_a_copy":
        assert re.search(r"\*Before this chapter: .*\{doc\}", first), "name what the chapter builds on"
    assert [title for level, title in headings(notebook) if level == 2][-3:] == ROOMS[-3:]


@each([path for path in DERIVATIONS if path.stem != "shootout"])  # the shoot-out compares, it derives no method
def test_a_derivation_has_its_rooms_in_order(path: Path) -> None:
    titles = iter([title for level, title in headings(load(path)) if level == 2])
    for room in ROOMS:
        assert any(title.startswith(room) for title in titles), f"no room '{room}', or not in this place"


@each(DERIVATIONS)
def test_a_derivation_draws_its_composition(path: Path) -> None:
    assert "figures.composition(" in code(path)


@each(CHAPTERS)
def test_figures_come_from_one_place(path: Path) -> None:
    assert not re.search(r"\b(?:import|from) matplotlib|\bplt\.", code(path)), "draw with vbank.figures"


@each(CHAPTERS)
def test_exercises_have_checkers_and_solutions(path: Path) -> None:
    found = exercises(load(path))
    assert 3 <= len(found) <= 6
    titles = [exercise.heading for exercise in found]
    assert all(title.startswith(f"Exercise {i}: ") for i, title in enumerate(titles, start=1)), titles
    checked = []
    for exercise in found:
        solution = re.search(r"\{admonition\} Solution\n:class: dropdown\n(.*)", exercise.markdown, re.S)
        assert solution and len(solution[1].strip("`~ \n")) > 80, f"{exercise.heading}: no solution, or an empty one"
        names = re.findall(r"\bcheck\(\s*\"([\w-]+)\"", exercise.code)
        checked += names
        for name in names:
            assert name in EXERCISES, name
            assert f"# {name}\n" in exercise.markdown, f"{exercise.heading}: no solution begins with '# {name}'"
            assert f"{name}: not yet." in exercise.verdicts, f"{exercise.heading}: start from an unfinished answer"
    assert len(set(checked)) >= 2, "at least two exercises have a checker"


def test_every_checker_serves_a_chapter() -> None:
    used = "".join(exercise.code for path in CHAPTERS for exercise in exercises(load(path)))
    assert [name for name in EXERCISES if f'check("{name}"' not in used] == []


def test_exercises_are_found_with_what_belongs_to_them() -> None:
    first = "## Exercises\n\n### Exercise 1: one\n\nDo.\n\n```python\n### Exercise 9: no heading\n```\n"
    cells = [
        {"cell_type": "markdown", "source": first},
        {"cell_type": "code", "source": "check('a')", "outputs": [{"data": {"text/plain": "a: not yet."}}]},
        {"cell_type": "markdown", "source": "Answer.\n\n### Exercise 2: two\nThink.\n\n## Summary\nEnd."},
    ]
    one, two = exercises({"cells": cells})
    assert one.heading == "Exercise 1: one" and "Answer." in one.markdown
    assert "check('a')" in one.code and one.verdicts == "a: not yet."
    assert two.markdown.strip() == "Think." and two.code == ""
    assert headings({"cells": cells}) == [
        (2, "Exercises"),
        (3, "Exercise 1: one"),
        (3, "Exercise 2: two"),
        (2, "Summary"),
    ]
