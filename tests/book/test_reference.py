"""The reference has every public name and every command, and chapters link to it where they first use one."""

import re
from collections import Counter
from pathlib import Path

import pytest
import typer
from bs4 import BeautifulSoup
from by_path import ROOT, load
from test_site import PAGES, SITE, parse

import vbank
from vbank import figures
from vbank.cli import app

links = load("book/_ext/links.py")
API, COMMANDS = (f"book/appendix/{name}.html" for name in ("api", "command_line"))

rendered = pytest.mark.skipif(SITE is None, reason="the book is not rendered; `make test` does it first")


def page(name: str) -> BeautifulSoup:
    assert SITE is not None
    return parse(SITE / name)


def test_every_public_name_has_one_entry() -> None:
    text = (ROOT / "book/appendix/api.md").read_text(encoding="utf-8")
    entries = Counter(
        re.findall(r"^\.\. auto(?:function|class|exception):: vbank\.(\w+)(?:\(\))?$", text, re.MULTILINE)
    )
    assert entries == Counter(vbank.__all__)


@rendered
def test_every_name_is_shown_with_its_docstring() -> None:
    soup = page(API)
    names = [f"vbank.{name}" for name in vbank.__all__]
    names += [f"vbank.figures.{name}" for name in figures.__all__ if callable(getattr(figures, name))]
    for name in names:
        head = soup.find("dt", id=name)
        assert head is not None, f"{name} has no entry"
        text = head.find_next_sibling("dd").get_text().strip()
        assert len(text) > 30, f"{name} says nothing"


@rendered
def test_docstrings_are_set_as_they_are_meant() -> None:
    """Arguments and errors as lists, backquotes as code."""
    soup = page(API)
    attach = soup.find("dt", id="vbank.attach").find_next_sibling("dd")
    assert [item.get_text() for item in attach.select("dl.field-list > dt")] == ["Parameters:", "Returns:", "Raises:"]
    assert "nn.Linear" in [code.get_text() for code in attach.find_all("code")]
    assert attach.select("div.highlight .gp"), "the example is no doctest"
    assert "`" not in soup.find("article").get_text()


@rendered
def test_every_command_says_what_the_program_says() -> None:
    soup = page(COMMANDS)
    program = typer.main.get_command(app)
    names = program.list_commands(program.context_class(program))
    assert len(names) > 4
    for name in names:
        command = program.get_command(program.context_class(program), name)
        section = soup.find(id=f"command-{name}")
        assert section is not None and section.find("h2").get_text().startswith(f"vbank {name}")
        shown = section.find("pre").get_text()
        assert shown.startswith(f"Usage: vbank {name} ")
        for option in [o for parameter in command.params for o in parameter.opts if o.startswith("--")]:
            assert option in shown


MENTION = re.compile(r"(?<![\w.])(?:vbank\.figures|figures|vbank)\.[a-zA-Z]\w*")


@rendered
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_first_use_on_a_page_is_a_link(path: Path) -> None:
    soup = parse(path)
    assert soup.article is not None
    made = [link["href"] for link in soup.article.select("a.vbank-api")]
    assert all(re.search(r"(?:api|command_line)\.html#|^#", url) for url in made)
    if path.stem == "api":
        return
    assert [url for url, times in Counter(made).items() if times > 1] == []
    for heading in soup.article.find_all(re.compile("^h[1-6]$")):
        heading.decompose()
    used = {match[0] for code in soup.article.find_all("code") if (match := MENTION.match(code.get_text()))}
    used = {name if name.startswith("vbank.") else f"vbank.{name}" for name in used}
    linked = {url.partition("#")[2] for url in made}
    known = {f"vbank.{name}" for name in vbank.__all__}
    elsewhere = {link.get_text() for link in soup.article.select("a:not(.vbank-api)")}
    assert {name for name in used & known if name not in elsewhere} <= linked


# The extension itself, on made-up pages.

CODE = '<code class="docutils literal notranslate"><span class="pre">{}</span></code>'
CALL = '<span class="n">vbank</span><span class="o">.</span><span class="n">{}</span>'


def address(name: str) -> str | None:
    known = ("vbank.attach", "vbank.figures.lines", "command-run")
    return f"api.html#{name}" if name in known else None


def linked(body: str, reference: bool = False) -> list[str]:
    """What the links of a page lead to."""
    found = links.link(body, address, reference)
    assert re.sub(r"</?a\b[^>]*>", "", found) == re.sub(r"</?a\b[^>]*>", "", body)  # nothing else is changed
    return [link["href"] for link in BeautifulSoup(found, "html.parser").select("a.vbank-api")]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (CODE.format("vbank.attach"), ["api.html#vbank.attach"]),
        (CODE.format("vbank.attach(model, ...)"), ["api.html#vbank.attach"]),
        (CODE.format('vbank</span> <span class="pre">run</span> <span class="pre">X'), ["api.html#command-run"]),
        (CODE.format("figures.lines"), ["api.html#vbank.figures.lines"]),
        (CALL.format("attach"), ["api.html#vbank.attach"]),
        (CALL.format("attach") + CODE.format("vbank.attach"), ["api.html#vbank.attach"]),
        (CODE.format("vbank.attached"), []),
        (CODE.format("attach"), []),
        (CALL.format("attach").replace("vbank", "other"), []),
        (f'<a href="x">{CODE.format("vbank.attach")}</a>', []),
        (f"<h2>{CODE.format('vbank.attach')}</h2>", []),
    ],
)
def test_what_becomes_a_link(body: str, found: list[str]) -> None:
    assert linked(body) == found


def test_in_the_reference_every_name_is_a_link() -> None:
    code = CODE.format("attach") + CODE.format("vbank.attach")
    assert linked(code, reference=True) == ["api.html#vbank.attach"] * 2


def test_links_of_outputs_lead_to_pages() -> None:
    body = '<a href="derivations/lora.ipynb" aria-label="x"><rect/></a> <a href="other.ipynb">y</a>'
    pages = {"derivations/lora": "derivations/lora.html"}
    assert links.to_pages(body, pages.get) == body.replace("lora.ipynb", "lora.html")
