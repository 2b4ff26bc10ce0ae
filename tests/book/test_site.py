"""The rendered book: complete, with no dead links, and with nothing from any other server."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
# `make test` renders the committed outputs into the first, `make book` the fresh ones into the second.
SITE = next((site for site in (ROOT / "_build/check/_build/html", ROOT / "_build/html") if site.is_dir()), None)
PAGES = sorted((SITE / "book").rglob("*.html")) if SITE else []

pytestmark = pytest.mark.skipif(SITE is None, reason="the book is not rendered; `make test` does it first")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(SITE / "book")))


def parse(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def is_elsewhere(url: str) -> bool:
    return bool(urlsplit(url).scheme in ("http", "https") or url.startswith("//"))


def test_every_page_is_there() -> None:
    sources = {path.relative_to(ROOT / "book").with_suffix("") for path in (ROOT / "book").rglob("[!._]*.ipynb")}
    assert SITE is not None
    assert sources <= {page.relative_to(SITE / "book").with_suffix("") for page in PAGES}
    assert (SITE / "index.html").exists()


@every_page
def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    soup = parse(page)
    loaded = [tag["src"] for tag in soup.find_all(["script", "img", "iframe", "source", "video"], src=True)]
    loaded += [tag["href"] for tag in soup.find_all("link", href=True) if "canonical" not in tag.get("rel", [])]
    assert [url for url in loaded if is_elsewhere(url)] == []
    inline = "\n".join(tag.get_text() for tag in soup.find_all(["script", "style"]))
    assert re.findall(r"https?://[^\s\"']*\.(?:js|css|woff2?)\b", inline) == []


def test_stylesheets_and_scripts_load_nothing_from_elsewhere() -> None:
    assert SITE is not None
    for sheet in SITE.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == [], sheet
    for script in SITE.rglob("*.js"):
        if script.name != "searchindex.js":
            text = script.read_text(encoding="utf-8")
            assert re.findall(r"https?://[^\s\"')]*\.(?:js|css|woff2?)\b", text) == [], script


@every_page
def test_links_and_files_exist(page: Path) -> None:
    assert SITE is not None
    soup = parse(page)
    urls = [tag["href"] for tag in soup.find_all(["a", "link"], href=True)]
    urls += [tag["src"] for tag in soup.find_all(["img", "script"], src=True)]
    dead = []
    for url in urls:
        parts = urlsplit(url)
        if is_elsewhere(url) or parts.scheme or url == "#":
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if target.is_dir():
            target = target / "index.html"
        if not target.exists():
            dead.append(url)
        elif parts.fragment and target.suffix == ".html":
            there = soup if target == page else parse(target)
            if not there.find(id=unquote(parts.fragment)) and not there.find(attrs={"name": parts.fragment}):
                dead.append(url)
    assert dead == []


def images(page: Path) -> set[Path]:
    """The image files that a page shows; an image inside the page is part of its own size."""
    sources = (urlsplit(image["src"]) for image in parse(page).find_all("img", src=True))
    return {(page.parent / unquote(source.path)).resolve() for source in sources if not source.scheme}


@pytest.fixture(scope="module")
def users() -> Counter[Path]:
    """On how many pages each image stands."""
    return Counter(image for page in PAGES for image in images(page))


@every_page
def test_light(page: Path, users: Counter[Path]) -> None:
    """What a page loads beyond what the site's pages share."""
    own = [page, *(image for image in images(page) if users[image] == 1 and image.is_file())]
    weight = sum(path.stat().st_size for path in own)
    assert weight <= 1_500_000, f"{weight:,} bytes: draw less, or fewer frames"


@every_page
def test_readable_by_everyone(page: Path) -> None:
    soup = parse(page)
    article = soup.find("article") or soup
    assert soup.html is not None and soup.html.get("lang") == "en"
    assert len(article.find_all("h1")) == 1
    for image in soup.find_all("img"):
        assert image.get("alt", "").strip(), f"no alternative text: {image.get('src')}"
    assert all(head.get_text(strip=True) for head in soup.find_all("th")), "the head of a row or column is empty"
    title = soup.select_one("a.navbar-brand")
    assert title is not None and title.find_parent("nav") is not None
    for drawing in article.find_all("svg"):
        told = drawing.get("aria-label") or drawing.get("aria-hidden") or drawing.find("title")
        assert told, "an inline SVG with neither title nor aria-label"


@every_page
def test_nothing_unresolved_is_shown(page: Path) -> None:
    article = parse(page).find("article")
    assert article is not None
    for code in article.find_all(["pre", "code"]):
        code.decompose()
    text = article.get_text()
    assert "{glue:" not in text and "{cite}" not in text and "[?]" not in text
    assert not re.search(r"\{(?:numref|ref|eq|doc)\}", text)
