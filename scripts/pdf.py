"""Print the rendered book into one PDF file, _build/book.pdf, with an outline and links that lead within it.

    python scripts/pdf.py

Chromium prints page by page, in the order of the table of contents and with solutions unfolded; JOBS pages at a time.
CHROMIUM names the program where it is not on the PATH.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, Fit, NameObject, TextStringObject

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
TARGET = ROOT / "_build" / "book.pdf"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PRINTING = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --no-pdf-header-footer --generate-pdf-document-outline"
    " --virtual-time-budget=60000"  # formulas are set by a script: wait for it, however slow the machine
).split()


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def print_page(page: Path, target: Path) -> None:
    """One page of the site as PDF.

    Raises:
        RuntimeError: Chromium wrote no file; the message has its last words.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium() or "chromium", *PRINTING, f"--user-data-dir={profile}"]
        command += [f"--print-to-pdf={target}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or not target.exists():
        raise RuntimeError(f"{page.name} was not printed: {done.stderr.strip()[-300:]}")


def join(pages: Iterable[Path], printed: Mapping[Path, Path], title: str, author: str) -> PdfWriter:
    """One document of the printed pages, in order; links between pages lead to their place in it.

    Args:
        pages: HTML files in reading order.
        printed: page -> its PDF file.
        title, author: of the document.
    """
    writer = PdfWriter()
    places: dict[tuple[Path, str], tuple[int, float]] = {}  # page and anchor -> sheet and height
    owner: list[Path] = []  # of each sheet
    for page in pages:
        reader = PdfReader(printed[page])
        first = len(owner)
        owner += [page.resolve()] * len(reader.pages)
        places[page.resolve(), ""] = first, float(reader.pages[0].mediabox.top)
        for name, place in reader.named_destinations.items():
            sheet = reader.get_destination_page_number(place)
            if sheet is not None and sheet >= 0:
                places[page.resolve(), name.lstrip("/")] = first + sheet, float(place.top or 0)
        writer.append(reader, import_outline=True)
    for sheet, page in zip(writer.pages, owner, strict=True):
        kept = [link for link in sheet.get("/Annots") or [] if lead(link.get_object(), page, places, writer)]
        sheet[NameObject("/Annots")] = ArrayObject(kept)
    spaced = {joined(title): title for page in printed for title in headings(page)}
    name_entries(writer.root_object["/Outlines"].get_object(), spaced)
    writer.compress_identical_objects()
    writer.add_metadata({"/Title": title, "/Author": author})
    return writer


def headings(page: Path) -> list[str]:
    """The text of every heading of a page."""
    found = re.findall(r"(?s)<h([1-6])\b[^>]*>(.*?)</h\1>", page.read_text(encoding="utf-8"))
    plain = (re.sub(r'(?s)<a class="headerlink".*?</a>|<[^>]*>', "", inside) for _, inside in found)
    return [" ".join(html.unescape(text).split()) for text in plain]


def joined(title: str) -> str:
    return "".join(title.split())


def name_entries(parent: DictionaryObject, spaced: Mapping[str, str]) -> None:
    """Give outline entries their words back: Chromium leaves out the space where a heading breaks into two lines."""
    entry = parent.get("/First")
    while entry is not None:
        entry = entry.get_object()
        title = str(entry["/Title"])
        entry[NameObject("/Title")] = TextStringObject(spaced.get(joined(title), title))
        name_entries(entry, spaced)
        entry = entry.get("/Next")


def lead(link: Any, page: Path, places: Mapping[tuple[Path, str], tuple[int, float]], writer: PdfWriter) -> bool:
    """Let a link to a page of the book lead to its sheet; False where it leads to a file that is not in the book."""
    if "/Dest" in link:
        target, anchor = page, str(link["/Dest"]).lstrip("/")
    else:
        url = urlsplit(str(link.get("/A", {}).get("/URI", "")))
        if url.scheme != "file":
            return True
        target, anchor = Path(unquote(url.path)).resolve(), unquote(url.fragment)
    place = places.get((target, anchor)) or places.get((target, ""))
    if place is None:
        return False
    link.pop("/A", None)
    number, top = place
    fit = Fit.xyz(left=0, top=top)
    link[NameObject("/Dest")] = ArrayObject(
        [writer.pages[number].indirect_reference, NameObject(fit.fit_type), *fit.fit_args]
    )
    return True


def main() -> int:
    if chromium() is None:
        print("error: no Chromium found; install it (apt install chromium), or name one: CHROMIUM=/path/to/it make pdf")
        return 1
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    pages = [SITE / f"{name}.html" for name in names]
    if missing := [page for page in pages if not page.exists()]:
        print(f"error: {missing[0].relative_to(ROOT)} is not there; run `make book` first")
        return 1
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    jobs = max(1, int(os.environ.get("JOBS") or 2))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        printed = {page: Path(folder) / f"{number}.pdf" for number, page in enumerate(pages)}
        for page, _ in zip(pages, pool.map(print_page, pages, printed.values()), strict=True):
            print(f"printed {page.relative_to(SITE)}", flush=True)
        document = join(pages, printed, config["title"], config["author"])
        document.write(TARGET)
    print(f"\n{TARGET.relative_to(ROOT)}: {len(document.pages)} pages, {TARGET.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
