"""The book on paper: pages joined into one document whose links lead within it, and the cheat sheet on one sheet."""

from pathlib import Path

import pytest
from by_path import load
from pypdf import PdfReader
from test_site import SITE

pdf = load("scripts/pdf.py")

pytestmark = pytest.mark.skipif(
    pdf.chromium() is None, reason="no browser: install Debian's chromium, or name one in CHROMIUM"
)

ONE = """<!doctype html><title>One</title><h1>One</h1>
<a href="two.html">next</a> <a href="two.html#far">far</a> <a href="#below">below</a> <a href="gone.html">gone</a>
<a href="https://example.org/">outside</a>
<style>.headerlink { display: none } #below { margin-top: 2000px; width: 3em }</style>
<h2 id="below">Below &amp; <i>beyond</i><a class="headerlink" href="#">#</a></h2>"""
TWO = """<!doctype html><title>Two</title><h1>Two</h1><a href="#far">far</a>
<h2 id="far" style="break-before: page">Far</h2><p>the end"""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> PdfReader:
    """Two pages, printed and joined."""
    folder = tmp_path_factory.mktemp("paper")
    pages = [folder / "one.html", folder / "two.html"]
    for page, text in zip(pages, (ONE, TWO), strict=True):
        page.write_text(text, encoding="utf-8")
        pdf.print_page(page, page.with_suffix(".pdf"))
    joined = pdf.join(pages, {page: page.with_suffix(".pdf") for page in pages}, "A title", "An author")
    joined.write(folder / "book.pdf")
    return PdfReader(folder / "book.pdf")


def test_the_pages_stand_in_order(document: PdfReader) -> None:
    texts = [" ".join(sheet.extract_text().split()) for sheet in document.pages]
    assert texts[0].startswith("One next far below gone outside")
    assert texts[-2:] == ["Two far", "Far the end"]
    assert document.metadata is not None
    assert (document.metadata.title, document.metadata.author) == ("A title", "An author")


def test_the_outline_has_every_heading(document: PdfReader) -> None:
    flat: list[tuple[str, int]] = []

    def walk(entries: list) -> None:
        for entry in entries:
            if isinstance(entry, list):
                walk(entry)
            else:
                flat.append((entry.title, document.get_destination_page_number(entry)))

    walk(document.outline)
    last = len(document.pages) - 1
    assert flat == [("One", 0), ("Below & beyond", last - 2), ("Two", last - 1), ("Far", last)]


def test_links_lead_within_the_document(document: PdfReader) -> None:
    last = len(document.pages) - 1
    numbers = {sheet.indirect_reference.idnum: number for number, sheet in enumerate(document.pages)}
    found = []
    for sheet in document.pages:
        for link in (link.get_object() for link in sheet.get("/Annots") or []):
            if "/Dest" in link:
                found.append(numbers[link["/Dest"][0].idnum])
            else:
                found.append(link["/A"]["/URI"])
    # next, far, below, and outside; the link to a page that is not in the book is none; then the far of the second
    assert found == [last - 1, last, last - 2, "https://example.org/", last]


@pytest.mark.skipif(SITE is None, reason="the book is not rendered; `make test` does it first")
def test_the_cheat_sheet_is_one_sheet(tmp_path: Path) -> None:
    assert SITE is not None
    pdf.print_page(SITE / "book/appendix/cheat_sheet.html", tmp_path / "sheet.pdf")
    (sheet,) = PdfReader(tmp_path / "sheet.pdf").pages
    text = sheet.extract_text()
    assert text.startswith("Cheat sheet") and "All settings" in text
    assert [round(float(length)) for length in sheet.mediabox[2:]] == [595, 842]  # A4


def test_no_browser_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pdf, "chromium", lambda: None)
    assert pdf.main() == 1
    assert "apt install chromium" in capsys.readouterr().out
