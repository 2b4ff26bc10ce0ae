"""The committed notebooks: what a reader on GitHub or Colab sees. Running them again is nbval's part."""

import base64
import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
# The chapters of Part 2 that derive something; the shoot-out only compares.
DERIVATIONS = [path for path in NOTEBOOKS if path.parent.name == "derivations" and path.stem != "shootout"]
# Folders that only one machine has.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|opt|var|workspace)/\w|site-packages")
PROGRESS_BAR = re.compile(r"\d+%\|")
IMAGE_LIMIT = {"image/svg+xml": 200_000, "image/png": 100_000}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "book")))


def load(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in load(path).cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[tuple[int, Any]]:
    return [(cell.execution_count, output) for cell in code_cells(path) for output in cell.outputs]


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def text_of(output: Any) -> str:
    parts = [output.get("text", "")]
    for mime, value in output.get("data", {}).items():
        if not mime.endswith(("png", "jpeg", "svg+xml")):
            parts.append(value if isinstance(value, str) else str(value))
    return "\n".join(parts)


def test_table_of_contents_and_folder_agree() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {toc["root"]} | {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    pages = [path for path in (ROOT / "book").rglob("*.md") if not {"_ext", "_static"} & set(path.parts)]
    present = {str(path.relative_to(ROOT).with_suffix("")) for path in [*NOTEBOOKS, *pages]}
    assert listed == present


@every_notebook
def test_valid_and_executed_in_order(path: Path) -> None:
    nbformat.validate(load(path))
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run it with `python scripts/book.py --write`"


@every_notebook
def test_no_error_no_warning_no_progress_bar(path: Path) -> None:
    for count, output in outputs(path):
        assert output.output_type != "error", f"cell {count} failed"
        assert output.get("name") != "stderr", f"cell {count} writes to stderr: {output.text[:200]}"
        text = text_of(output)
        assert "\r" not in text and not PROGRESS_BAR.search(text), f"cell {count} stores a progress bar"
        assert "Warning:" not in text, f"cell {count} stores a warning"
        widgets = [mime for mime in output.get("data", {}) if "widget" in mime]
        assert not widgets, f"cell {count} stores a widget, which a static page shows as an empty place"


@every_notebook
def test_no_machine_paths_or_passing_metadata(path: Path) -> None:
    notebook = load(path)
    for cell in notebook.cells:
        assert not MACHINE_PATH.search(cell.source), cell.source
        assert "execution" not in cell.metadata, "time stamps: run `python scripts/book.py --write`"
    for count, output in outputs(path):
        found = MACHINE_PATH.search(text_of(output))
        assert not found, f"cell {count} prints a path of one machine: {found.group()}"
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


@every_notebook
def test_figures_have_alt_text_and_are_small(path: Path) -> None:
    for cell in code_cells(path):
        for output in cell.outputs:
            for mime, data in output.get("data", {}).items():
                kind = mime.removeprefix("application/papermill.record/")
                if kind not in IMAGE_LIMIT:
                    continue
                size = len(base64.b64decode(data)) if kind == "image/png" else len(data.encode())
                assert size < IMAGE_LIMIT[kind], f"cell {cell.execution_count}: {kind} of {size} bytes"
                assert "<dc:date>" not in data, f"cell {cell.execution_count}: SVG with a date"
                if mime == kind and "remove-output" not in tags(cell) and "remove-cell" not in tags(cell):
                    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                    assert len(alt) > 20, (
                        f"cell {cell.execution_count}: say what to see in the cell's metadata, "
                        '{"mystnb": {"image": {"alt": "..."}}}'
                    )


def is_drawing(cell: Any) -> bool:
    return bool(cell.outputs) and all({"image/svg+xml", "image/png"} & set(out.get("data", {})) for out in cell.outputs)


@every_notebook
def test_what_is_shown_is_also_said(path: Path) -> None:
    """Figures, tables and controls have a plain text of their own, for terminals and for readers who hear a page."""
    for count, output in outputs(path):
        data = output.get("data", {})
        if {"image/svg+xml", "image/png", "text/html"} & set(data):
            said = data.get("text/plain", "")
            assert not said.startswith("<"), f"cell {count} says only {said}; run it with `scripts/book.py --write`"
            assert "\n" in said or len(said) > 40, f"cell {count} says only {said!r}"


@every_notebook
def test_outputs_not_compared_are_asserted(path: Path) -> None:
    """A cell that nbval does not compare, or one of the two after it, holds an assertion; none is skipped."""
    cells = code_cells(path)
    for index, cell in enumerate(cells):
        assert "nbval-skip" not in tags(cell)
        if "nbval-ignore-output" in tags(cell) and not is_drawing(cell):
            near = "\n".join(other.source for other in cells[index : index + 3])
            assert "assert" in near, f"cell {cell.execution_count} is neither compared nor asserted"


@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.stem)
def test_derivations_have_a_control(path: Path) -> None:
    pages = [output.get("data", {}).get("text/html", "") for _, output in outputs(path)]
    assert any('class="vbank-control' in page for page in pages), "show figures.explore or figures.simplex somewhere"


@every_notebook
def test_controls_say_what_they_show(path: Path) -> None:
    for count, output in outputs(path):
        for image in re.findall(r"<img[^>]*>", output.get("data", {}).get("text/html", "")):
            found = re.search(r'alt="([^"]*)"', image)
            assert found and len(found[1]) > 20, f"cell {count}: an image without alternative text"


def test_make_book_runs_every_notebook():
    spec = importlib.util.spec_from_file_location("book_script", ROOT / "scripts" / "book.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert sorted(script.notebooks()) == [path.relative_to(ROOT) for path in NOTEBOOKS]
