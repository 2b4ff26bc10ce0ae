"""The examples in the docstrings run as they stand, and every main function has one."""

import doctest
import inspect
import re
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest

import vbank

# What shows itself in the examples of others: what functions return, raise or take.
WITHOUT = {"Adapter", "CheckpointError", "Config", "Count", "Method", "Site"}
API = Path(__file__).parents[1] / "book/appendix/api.md"
FINDER = doctest.DocTestFinder(recurse=False)


def example(name: str) -> doctest.DocTest:
    """All examples in the docstring of one public name, none of whose names stand at its disposal."""
    (found,) = FINDER.find(getattr(vbank, name), f"vbank.{name}", globs={}) or [None]
    assert found is not None, f"vbank.{name} has no docstring"
    return found


def assert_passes(test: doctest.DocTest) -> None:
    assert not any(doctest.SKIP in each.options for each in test.examples)
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert said == [], "".join(said)


@pytest.mark.parametrize("name", vbank.__all__)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = example(name)
    assert bool(test.examples) == (name not in WITHOUT)
    monkeypatch.chdir(tmp_path)  # some examples write an adapter
    assert_passes(test)


# What the book's reference lists beside the public names, by its full name.
LISTED = re.findall(r"auto(?:function|class):: (vbank\.[a-z_.]+\.\w+)", API.read_text(encoding="utf-8"))
SHOWN_ELSEWHERE = {"Storage", "Server", "Memory", "Row", "Selections", "Comparison", "Verdict"}


@pytest.mark.parametrize("name", LISTED)
def test_examples_of_what_the_reference_lists_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FINDER.find(locate(name), name, globs={})
    examples = found[0].examples if found else []
    assert bool(examples) == (name.rpartition(".")[2] not in SHOWN_ELSEWHERE)
    monkeypatch.chdir(tmp_path)
    for test in found:
        assert_passes(test)


def test_the_example_of_the_package_runs() -> None:
    (test,) = FINDER.find(vbank, "vbank", globs={})
    assert test.examples
    assert_passes(test)


@pytest.mark.parametrize("name", sorted(set(vbank.__all__) - {"CheckpointError"}))
def test_arguments_are_described(name: str) -> None:
    """An argument that a docstring describes exists, and a function with several describes each."""
    thing: Any = getattr(vbank, name)
    parameters = set(inspect.signature(thing).parameters) - {"self", "args", "kwargs"}
    text = inspect.getdoc(thing) or ""
    _, found, described = text.partition("\nArgs:\n")
    if not found:
        assert len(parameters) <= 2 or name in WITHOUT, f"{sorted(parameters)} are not described"
        return
    lines = described.split("\n\n")[0].splitlines()
    told = {line.strip().partition(":")[0] for line in lines if line.startswith("    ") and line[4] != " "}
    assert {word.strip() for words in told for word in words.split(",")} == parameters
