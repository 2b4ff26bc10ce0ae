"""Around the text: the landing page, notation, glossary, bibliography, the tables of everything, and downloads."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from by_path import ROOT, load
from prose import lines
from test_site import PAGES, SITE, parse

import vbank
from vbank import ledger, recipes
from vbank.figures import METHOD_COLOURS
from vbank.figures.navigation import STOPS, navigation

BOOK = ROOT / "book"
NOTEBOOKS = sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
first_use = load("book/_ext/first_use.py")

rendered = pytest.mark.skipif(SITE is None, reason="the book is not rendered; `make test` does it first")


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown")


def texts(path: Path) -> str:
    """What the cells of a notebook put out, as text."""
    outputs = [output for cell in cells(path) for output in cell.get("outputs", [])]
    return "\n".join("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in outputs)


PAGE_SOURCES = [*NOTEBOOKS, *sorted(BOOK.rglob("*.md"))]


# The landing page


def test_the_map_leads_to_every_method() -> None:
    assert [stop.method for stop in STOPS] == ["LoRA", "VeRA", "Tied-LoRA", "PRoLoRA", "VB-LoRA"]
    assert {stop.method for stop in STOPS} <= METHOD_COLOURS.keys()
    for stop in STOPS:
        assert (BOOK / f"{stop.chapter}.ipynb").exists()
        assert (
            navigation().html.count(f'<a href="{stop.chapter}.ipynb" aria-label="{stop.method}: {stop.answer}">') == 2
        )
        assert f"{stop.method} ({stop.chapter})" in str(navigation())


@rendered
def test_the_landing_page_leads_on() -> None:
    assert SITE is not None
    soup = parse(SITE / "book/index.html")
    ways = [link["href"] for link in soup.select(".vbank-map .vbank-wide a")]
    assert ways == [f"{stop.chapter}.html" for stop in STOPS]
    assert [link["href"] for link in soup.select(".vbank-map .vbank-narrow a")] == ways
    starts = soup.article.find("ul").find_all("li", recursive=False)
    assert [item.strong.get_text() for item in starts] == ["Learn", "Run", "Use", "Check"]
    assert all(item.find("a") for item in starts)
    listed = {link["href"] for link in soup.article.select(".toctree-wrapper a")}
    assert {f"{path.relative_to(BOOK).with_suffix('').as_posix()}.html" for path in NOTEBOOKS} <= listed | {
        "index.html"
    }


# Notation


@pytest.mark.parametrize(
    ("formula", "symbol"),
    [
        (r"y = Wx + s\,B(Ax)", "s"),
        (r"\Delta W = s\,BA", r"\Delta W"),
        (r"\mathbf{u} \in \R^{r_1}", r"\mathbf{u}"),
        (r"\boldsymbol{\alpha}_1, \dots", r"\boldsymbol{\alpha}_s"),
        (r"\lceil n / c_{A} \rceil", "c_A"),
        (r"\sigma_1 \ge 0", r"\sigma_i"),
    ],
)
def test_a_symbol_is_found(formula: str, symbol: str) -> None:
    (wanted,) = first_use.symbols(symbol)
    assert first_use.uses(formula, wanted)


@pytest.mark.parametrize(
    ("formula", "symbol"),
    [
        (r"\Delta W", "W"),
        (r"\mathbf{u}", "u"),
        (r"\sum_s w_s", "s"),
        (r"A_0", "A"),
        (r"\text{share}", "s"),
        (r"\begin{aligned} y &= x \end{aligned}", "n"),
        (r"\alpha / r", r"\boldsymbol{\alpha}_s"),
        (r"c_B", "c_A"),
        (r"\operatorname{rank} M", "r"),
    ],
)
def test_another_symbol_is_not_taken_for_it(formula: str, symbol: str) -> None:
    (wanted,) = first_use.symbols(symbol)
    assert not first_use.uses(formula, wanted)


@rendered
def test_every_symbol_links_to_its_first_use() -> None:
    assert SITE is not None
    soup = parse(SITE / "book/notation.html")
    tables = [table for table in soup.find_all("table") if table.th.get_text() == "symbol"]
    assert len(tables) >= 5
    places = {}
    for table in tables:
        assert table.find_all("th")[-1].get_text() == first_use.HEAD
        for row in table.tbody.find_all("tr"):
            first, *_, last = row.find_all("td")
            assert last.find("a"), f"{first.get_text()} has no link"
            places |= {symbol: last.a["href"].partition("#")[0] for symbol in re.findall(r"\\\((.+?)\\\)", str(first))}
    # Looked up by eye.
    assert places["W"] == "problem/cost_of_a_copy.html"
    assert places[r"\Delta W"] == "problem/low_rank.html"
    assert places[r"\alpha"] == "derivations/lora.html"
    assert places["c_A"] == "derivations/prolora.html"
    assert places["h"] == "derivations/vb_lora_divide.html"
    assert places["k"] == "derivations/vb_lora_share.html"


# Glossary and bibliography


def terms() -> list[str]:
    _, _, body = markdown(BOOK / "appendix/glossary.md").partition("```{glossary}\n")
    return [line for line in body.partition("\n```")[0].splitlines() if re.match(r"[^\s:]", line)]


def test_the_glossary_explains_words_that_the_book_uses() -> None:
    found = terms()
    assert len(found) > 40
    assert found == sorted(found, key=str.lower)
    assert [term for term, times in Counter(found).items() if times > 1] == []
    chapters = "\n".join(markdown(path) for path in NOTEBOOKS if path.parent.name != "appendix").lower()
    assert [term for term in found if not re.search(rf"\b{re.escape(term.lower())}", chapters)] == []


def test_every_work_is_cited_and_every_citation_is_a_work() -> None:
    works = re.findall(r"^@\w+\{([^,\s]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert [key for key, times in Counter(works).items() if times > 1] == []
    cited = set()
    for path in PAGE_SOURCES:
        for group in re.findall(r"\{cite[\w:]*\}`([^`]+)`", markdown(path)):
            cited |= {key.strip() for key in group.split(",")}
    assert cited == set(works)


def test_every_work_can_be_found() -> None:
    entries = re.split(r"^@", (BOOK / "references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    fields = ("title", "author", "year")
    lacking = [entry.splitlines()[0] for entry in entries if not all(re.search(rf"\b{f}\s*=", entry) for f in fields)]
    assert lacking == []


@rendered
def test_the_bibliography_lists_every_work() -> None:
    assert SITE is not None
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    soup = parse(SITE / "book/appendix/bibliography.html")
    assert len(soup.select("div.citation, dl.citation > dt")) == len(re.findall(r"^@\w+\{", text, re.MULTILINE))


# Everything, as tables


def test_the_ledger_page_has_every_run() -> None:
    """`python scripts/book.py --write book/appendix/ledger.ipynb` brings it up to date."""
    shown = re.findall(r"\b[0-9a-f]{8}-seed\d+\b", texts(BOOK / "appendix/ledger.ipynb"))
    assert Counter(shown) == Counter(record["run"] for record in ledger.read(ROOT / "results"))


def test_the_audit_page_has_every_row() -> None:
    notes = texts(BOOK / "appendix/audit.ipynb")
    table = [line for line in notes.splitlines() if re.match(r"(?:VeRA|VB-LoRA|PRoLoRA), ", line)]
    rows = vbank.audit()
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        assert row["table"] in line and row["printed"] in line and row["status"] in line and row["note"] in line


def test_every_recipe_has_its_table_of_hyperparameters() -> None:
    shown = texts(BOOK / "appendix/hyperparameters.ipynb")
    for experiment, variants in recipes.available().items():
        _, found, table = shown.partition(f"What differs: {experiment}.\n")
        assert found, experiment
        listed = [line.split()[0] for line in table.splitlines()[1 : len(variants) + 1]]
        assert listed == variants


# Downloads


@rendered
@pytest.mark.parametrize("path", [page for page in PAGES if "appendix" not in page.parts], ids=lambda path: path.stem)
def test_a_chapter_can_be_downloaded_as_a_notebook(path: Path) -> None:
    assert SITE is not None
    source = BOOK / path.relative_to(SITE / "book").with_suffix(".ipynb")
    if not source.exists():
        source = source.with_suffix(".md")
    (button,) = parse(path).select("a.btn-download-source-button")
    target = (path.parent / button["href"]).resolve()
    assert target.suffix == source.suffix
    assert target.is_relative_to(SITE), "it would leave the book"
    offered = target.read_text(encoding="utf-8")
    if source.suffix == ".md":
        assert offered == source.read_text(encoding="utf-8")
        return
    code = [cell["source"] for cell in cells(source) if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in json.loads(offered)["cells"] if cell["cell_type"] == "code"] == code


def test_a_page_has_one_title() -> None:
    for path in (BOOK / "appendix").iterdir():
        titles = [line for line, code in lines(markdown(path)) if re.match(r"# ", line) and not code]
        assert len(titles) == 1, path.name
