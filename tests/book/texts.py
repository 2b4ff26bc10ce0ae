"""The words and formulas of the book's sources, page by page: what a reader reads, without code."""

import functools
import json
import re
from pathlib import Path
from typing import Any

from by_path import ROOT
from prose import captions, lines

BOOK = ROOT / "book"
PAGES = sorted(path for path in BOOK.rglob("*") if path.suffix in (".ipynb", ".md") and path.parent.name[0] not in "_.")
FORMULA = re.compile(r"\$\$(.+?)\$\$(?:\s*\([\w-]+\))?|(?<![\\$])\$([^$]+)\$", re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def notebook(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code(path: Path) -> list[str]:
    """The code cells of a notebook."""
    return ["".join(cell["source"]) for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]


def markdown(path: Path) -> list[str]:
    """The markdown cells of a notebook, or the one text of a page."""
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    return ["".join(cell["source"]) for cell in notebook(path)["cells"] if cell["cell_type"] == "markdown"]


def alternatives(path: Path) -> list[str]:
    """Captions and alternative texts of a notebook."""
    return [text for text in captions(notebook(path)) if text] if path.suffix == ".ipynb" else []


def without_code(text: str) -> str:
    """The markdown without code, roles reduced to what they show; formulas stay."""
    kept = []
    fenced = ""  # a fenced formula is a formula, other fenced code is none
    for line, is_code in lines(text):
        mark = re.match(r"\s*[`~]{3,}\s*(\S*)", line)
        if is_code and mark:
            kept.append("$$" if "{math}" in (mark[1], fenced) else "")
            fenced = mark[1]
        elif is_code:
            kept.append(line if fenced == "{math}" and not re.match(r"\s*:\w+:", line) else "")
        elif not re.match(r"\s*:[\w-]+:|\([\w-]+\)=\s*$", line):
            kept.append(re.sub(r"^\s*[`~]{3,}(?:\{[\w-]+\})?", "", line))
    text = re.sub(r"(?<=\n)\n(?: {4,}\S.*\n?)+", "\n", "\n".join(kept))  # indented code
    text = re.sub(r"\{(?:doc|ref|term|numref)\}`([^`<]*?)\s*<[^`]*>`|\{term\}`([^`]*)`", r"\1\2", text)
    text = re.sub(r"\{[\w:]+\}`[^`]*`|(?<!`)`[^`]*`(?!`)|https?://\S+|<!--.*?-->", " … ", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)\s]*\)", "]", text)


def words_only(text: str) -> str:
    """The markdown without code and formulas."""
    return re.sub(r"</?[a-z][^>]*>", " ", FORMULA.sub(" … ", without_code(text)))


@functools.cache
def paragraphs(path: Path) -> list[str]:
    return [part for text in markdown(path) for part in re.split(r"\n\s*\n", without_code(text))]


@functools.cache
def formulas(paragraph: str) -> list[str]:
    return [display or inline for display, inline in FORMULA.findall(paragraph)]
