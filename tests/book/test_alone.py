"""A notebook on its own, as in Colab: one cell fetches the book, installs what it needs and goes to its folder."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
run = subprocess.run


def install_cell(path: Path) -> str:
    """The first code cell of a notebook."""
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def script() -> Any:
    spec = importlib.util.spec_from_file_location("install_cell", ROOT / "scripts" / "install_cell.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(*arguments: str, cwd: Path) -> None:
    run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], cwd=cwd, check=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A repository with one chapter of each kind of folder, that knows its own address."""
    source = tmp_path / "source"
    for name in ("index.ipynb", "derivations/tied_lora.ipynb"):
        (source / "book" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "book" / name, source / "book" / name)
    shutil.copytree(ROOT / "results" / "first-finetune", source / "results" / "first-finetune")
    shutil.copytree(ROOT / "vbank" / "audits", source / "vbank" / "audits")
    shutil.copy(ROOT / "pyproject.toml", source)
    assert script().put_all(source, f"file://{source}") == 2 * [f"file://{source}"]
    git("init", "--quiet", cwd=source)
    git("add", ".", cwd=source)
    git("commit", "--quiet", "--message", "all", cwd=source)
    return source


@pytest.mark.parametrize("name", ["index.ipynb", "derivations/tied_lora.ipynb"])
def test_one_cell_makes_a_lone_notebook_run(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    cell = install_cell(elsewhere / "book" / name)
    commands: list[list[str]] = []

    def note(command: list[str], check: bool) -> None:
        commands.append(command)
        if command[0] == "git":
            run(command, check=check, capture_output=True)

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.chdir(alone)
    exec(cell, {})
    assert [command[0] for command in commands] == ["git", sys.executable]
    assert Path.cwd() == (alone / "vbank-book" / "book" / name).parent
    assert (alone / "vbank-book" / "pyproject.toml").is_file() and "./vbank-book[notebooks]" in commands[1]
    up = ".." if name == "index.ipynb" else "../.."
    assert Path(up, "results", "first-finetune").is_dir()  # what chapters read by this path
    exec(cell, {})  # run again: nothing to do
    assert len(commands) == 2
    monkeypatch.chdir(alone)  # after a restart of the kernel
    exec(cell, {})
    assert [command[0] for command in commands] == ["git", sys.executable, sys.executable]
    assert Path.cwd() == (alone / "vbank-book" / "book" / name).parent


def test_every_notebook_begins_with_that_cell() -> None:
    """All alike but for their folder, and with one address."""
    addresses = set()
    for path in NOTEBOOKS:
        cell, folder = install_cell(path), path.parent.relative_to(ROOT).as_posix()
        found = re.search(r'BOOK = "(.*)"', cell)
        assert found, f"{path.stem} does not begin with it: python scripts/install_cell.py"
        assert cell == script().install_cell(folder, found[1])
        addresses.add(found[1])
    assert len(addresses) == 1


def test_a_new_notebook_gets_the_cell(tmp_path: Path) -> None:
    """Before its first code, with the counts of what follows raised by one; a second time nothing changes."""
    path = tmp_path / "book" / "part" / "new.ipynb"
    path.parent.mkdir(parents=True)
    notebook = nbformat.v4.new_notebook()
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# New"),
        nbformat.v4.new_code_cell("1 + 1", execution_count=1, outputs=[shown]),
    ]
    nbformat.write(notebook, path)
    assert script().put_all(tmp_path) == [""]
    once = path.read_text()
    title, first, sum_ = nbformat.read(path, as_version=4).cells
    assert title.source == "# New" and 'chdir("vbank-book/book/part")' in first.source
    assert (first.execution_count, sum_.execution_count, sum_.outputs[0].execution_count) == (1, 2, 2)
    assert script().put_all(tmp_path) == [""] and path.read_text() == once


def test_in_a_clone_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    for path in NOTEBOOKS:
        monkeypatch.chdir(path.parent)
        exec(install_cell(path), {})
        assert Path.cwd() == path.parent


def test_without_an_address_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book").mkdir()
    path = Path(shutil.copy(ROOT / "book" / "index.ipynb", tmp_path / "book"))
    assert script().put_all(tmp_path, "") == [""]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="give BOOK the address"):
        exec(install_cell(path), {})
