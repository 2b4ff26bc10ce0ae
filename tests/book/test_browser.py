"""The rendered book as its readers meet it: in Chromium, on a screen, a tablet and a phone, light and dark, offline.

Each page is loaded once and looked at in every width and theme; the tests then ask what was seen. The second half
uses the book as a reader does. `python tests/book/page_report.py` prints weight, time and findings of every page.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rendered as book
from test_site import PAGES, SITE

pytest.importorskip("playwright", reason="Playwright is missing: pip install vbank[test]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SITE is None, reason="the book is not rendered; `make test` does it first"),
    pytest.mark.skipif(
        book.chromium() is None,
        reason="no browser: install Debian's chromium, or name one in CHROMIUM",
    ),
]
ROOT = SITE or Path()
VISITED = [*PAGES, *(ROOT / name for name in ("search.html", "genindex.html"))]
every_page = pytest.mark.parametrize("page", VISITED, ids=lambda page: page.relative_to(ROOT).as_posix())

SMALLEST_LETTER = 9  # pixels, on a phone
OWN_WEIGHT = 1_500_000  # bytes of files beside those that the pages share
# What may travel before the text shows: two seconds of Lighthouse's slow 4G (1.6 Mbit/s), less four round trips.
FIRST_VIEW = int((2 - 4 * 0.150) * 1.6e6 / 8)


@pytest.fixture(scope="module")
def site() -> Iterator[book.Site]:
    assert SITE is not None
    served = book.Site(SITE)
    yield served
    served.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with book.launched() as browser:
        yield browser


Visit = Callable[[Path], book.Seen]


@pytest.fixture(scope="module")
def seen(site: book.Site, chromium: Any) -> Iterator[Visit]:
    """What each page showed; it is visited when a test first asks."""
    context = chromium.new_context(reduced_motion="reduce")
    yield cache(lambda page: book.visit(context, site, page))
    context.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A fresh visitor's tab."""
    context = chromium.new_context(
        viewport={"width": 1440, "height": book.HEIGHT}, color_scheme="light", reduced_motion="reduce"
    )
    context.set_default_timeout(book.PATIENCE)
    yield context.new_page()
    context.close()


def page_with(selector: str) -> Path:
    """The first page that has a `class="..."` which matches."""
    return next(page for page in PAGES if re.search(selector, page.read_text(encoding="utf-8")))


# What was seen


@every_page
def test_nothing_complains_and_nothing_comes_from_elsewhere(page: Path, seen: Visit) -> None:
    assert seen(page).complaints == []
    assert seen(page).elsewhere == []


@every_page
def test_formulas_are_set(page: Path, seen: Visit) -> None:
    once = seen(page).once
    assert once["formula errors"] == [] and once["formulas not set"] == [] and once["raw TeX"] == []


@every_page
def test_the_page_never_scrolls_sideways(page: Path, seen: Visit) -> None:
    looks = seen(page).looks
    assert len(looks) == len(book.WIDTHS) * len(book.THEMES)
    assert {case: look["too wide"] for case, look in looks.items() if look["sideways"] > 0} == {}


@every_page
def test_the_keyboard_reaches_what_scrolls_in_its_own_box(page: Path, seen: Visit) -> None:
    looks = seen(page).looks
    assert {case: look["boxes out of reach"] for case, look in looks.items() if look["boxes out of reach"]} == {}


@every_page
def test_printed_sentences_are_not_cut_off(page: Path, seen: Visit) -> None:
    looks = seen(page).looks
    assert {case: look["cut-off sentences"] for case, look in looks.items() if look["cut-off sentences"]} == {}


@every_page
def test_a_formula_is_set_smaller_before_it_scrolls(page: Path, seen: Visit) -> None:
    looks = seen(page).looks
    assert {case: look["cut-off formulas"] for case, look in looks.items() if look["cut-off formulas"]} == {}


def test_a_checkers_verdict_counts_as_a_sentence_and_a_table_does_not(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(ROOT / "book/derivations/lora.html"))
    sentences = tab.locator(".cell_output .vbank-prose").all_inner_texts()
    assert {"lora-1", "lora-2", "lora-3"} <= {sentence.partition(": not yet. ")[0] for sentence in sentences}
    assert tab.locator(".cell_output .vbank-prose", has_text=re.compile(r"^rank\s+query")).count() == 0
    assert tab.locator(".cell_output pre", has_text=re.compile(r"rank\s+query")).count() == 1


@every_page
def test_figures_are_legible(page: Path, seen: Visit) -> None:
    """Letters of a size to read on a phone; drawings on white of their own, whatever the theme."""
    once, looks = seen(page).once, seen(page).looks
    assert once["broken images"] == []
    assert set(once["grounds of figures"]) <= {"255 255 255 255"}
    sizes = {case: look["letters of figures"] for case, look in looks.items()}
    assert {case: size for case, size in sizes.items() if size is not None and size < SMALLEST_LETTER} == {}


@every_page
def test_headings_are_in_order(page: Path, seen: Visit) -> None:
    levels = seen(page).once["headings"]
    assert levels[:1] == [1] and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False)), levels


@every_page
def test_axe_finds_nothing_serious(page: Path, seen: Visit) -> None:
    for theme, findings in seen(page).axe.items():
        assert book.grave(findings) == [], theme


@every_page
def test_controls_respond(page: Path, seen: Visit) -> None:
    assert seen(page).once["dead controls"] == []


@every_page
def test_weight(page: Path, seen: Visit, site: book.Site) -> None:
    files = {site.file(url) for url in seen(page).requests}
    own = {file.name: file.stat().st_size for file in files if "_static" not in file.parts}
    assert page.name in own
    assert sum(own.values()) <= OWN_WEIGHT, own


@every_page
def test_little_travels_before_the_text_shows(page: Path, seen: Visit, site: book.Site) -> None:
    blocking = {url: len(site.sent(site.file(url))) for url in seen(page).once["blocking"]}
    assert any(url.endswith("basic.css") for url in blocking)
    total = sum(blocking.values()) + len(site.sent(page))
    assert total <= FIRST_VIEW, blocking


# A reader's ways


def test_axe_on_formulas_as_they_are_set(tab: Any, site: book.Site) -> None:
    """On the other pages formulas are left out of axe's sight, which would take minutes."""
    book.open_page(tab, site.url(ROOT / "book/notation.html"))
    assert tab.locator("mjx-container").count() > 10
    book.inject_axe(tab)
    assert book.grave(book.axe(tab)) == []


EVERYWHERE = [".search-button__button", ".bd-links a", ".primary-toggle", ".theme-switch-button", ".prev-next-area a"]
# What a page's source has -> what of it the keyboard must reach.
REACHED = {
    'class="vbank-control vbank-simplex': [
        *(".copybtn", ".toggle-button", "summary"),
        *(".vbank-explore input", ".vbank-simplex button", ".vbank-handle"),
    ],
    'class="vbank-map': [".vbank-map a"],
    'class="vbank-sortable': [".vbank-sortable input", ".vbank-sortable button"],
}


@pytest.mark.parametrize("source", REACHED)
def test_keyboard(tab: Any, site: book.Site, source: str) -> None:
    """Tab goes to everything that can be used, and shows where it is."""
    wanted = EVERYWHERE + REACHED[source]
    book.open_page(tab, site.url(page_with(source)))
    tab.evaluate(book.LOOK)
    tab.evaluate("book.rememberUnfocused()")
    stops: list[dict[str, Any]] = []
    while len(stops) < 600:
        tab.keyboard.press("Tab")
        stop = tab.evaluate("wanted => book.focused(wanted)", wanted)
        if stop is None:  # past the last one
            break
        stops.append(stop)
    assert stops[0]["name"] == "a" and stops[0]["text"] == "Skip to main content"
    assert [stop["name"] for stop in stops if not stop["shown"]] == []
    assert [selector for selector in wanted if not any(selector in stop["matches"] for stop in stops)] == []


def test_skip_link_leads_to_the_text(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(PAGES[0]))
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.querySelector('#main-content').contains(document.activeElement)")


def test_search_finds_a_word_and_leads_to_its_page(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(ROOT / "book/index.html"))
    tab.keyboard.press("Control+k")
    tab.locator("#pst-search-dialog input").fill("Eckart")
    tab.keyboard.press("Enter")
    hit = tab.locator("#search-results li a").first
    hit.wait_for()
    assert "search.html?q=Eckart" in tab.url
    hit.click()
    tab.wait_for_url("**/book/**")
    assert "Eckart" in tab.locator("article").inner_text()


def test_search_button_opens_the_field(tab: Any, site: book.Site) -> None:
    tab.set_viewport_size({"width": 390, "height": book.HEIGHT})
    book.open_page(tab, site.url(ROOT / "book/index.html"))
    tab.locator(".search-button:visible").click()
    assert tab.evaluate("document.activeElement.name") == "q"


def test_next_and_previous_follow_the_contents(tab: Any, site: book.Site) -> None:
    """The arrows at the foot of the pages go through the side bar's list, both ways, and leave no page out."""
    book.open_page(tab, site.url(ROOT / "book/index.html"))
    links = tab.locator(".bd-sidebar-primary .bd-links a")
    listed = links.evaluate_all("links => links.map(({ href }) => href.split('#')[0])")
    feet = {}
    for page in PAGES:
        foot = [
            re.search(rf'"{way}"\s+href="([^"]+)"', page.read_text(encoding="utf-8"))
            for way in ("left-prev", "right-next")
        ]
        feet[site.url(page)] = [link and site.url((page.parent / link[1]).resolve()) for link in foot]
    assert sorted(feet) == sorted(listed)
    assert [feet[url][1] for url in listed] == [*listed[1:], None]
    assert [feet[url][0] for url in listed] == [None, *listed[:-1]]
    tab.locator("a.right-next").click()
    tab.wait_for_url(listed[1])


def test_the_side_bar_shows_where_the_reader_is(tab: Any, site: book.Site) -> None:
    """The list is longer than the screen; it keeps its place from page to page, but for the page read."""
    tab.set_viewport_size({"width": 1440, "height": 500})
    for name in ("appendix/bibliography", "notation"):
        book.open_page(tab, site.url(ROOT / f"book/{name}.html"))
        tab.wait_for_function(
            """() => { const { top, bottom } = document.querySelector(".bd-links .active > a").getBoundingClientRect();
              return top >= 0 && bottom <= innerHeight; }"""
        )
        assert tab.evaluate("scrollY") == 0


def test_a_chapter_can_be_had_as_a_notebook(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(ROOT / "book/derivations/lora.html"))
    tab.locator(".dropdown-download-buttons .dropdown-toggle").click()
    with tab.expect_download() as started:
        tab.locator(".btn-download-source-button").click()
    notebook = json.loads(started.value.path().read_text(encoding="utf-8"))
    assert started.value.suggested_filename == "lora.ipynb"
    assert notebook["nbformat"] == 4 and any(cell["cell_type"] == "code" for cell in notebook["cells"])


def test_dropdowns_open(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(ROOT / "book/derivations/lora.html"))
    answers = tab.locator(".admonition.dropdown")
    assert answers.count() >= 3
    for answer in answers.all():
        button, text = answer.locator(".toggle-button").first, answer.locator(":scope > :not(.admonition-title)").first
        assert button.get_attribute("aria-expanded") == "false" and not text.is_visible()
        button.focus()
        tab.keyboard.press("Enter")
        assert button.get_attribute("aria-expanded") == "true" and text.is_visible()
    for summary in tab.locator("article summary").all():
        listing = summary.locator("xpath=..").locator("pre").first
        assert not listing.is_visible()
        summary.focus()
        tab.keyboard.press("Enter")
        assert listing.is_visible()


def test_copy_button_copies_the_listing(tab: Any, site: book.Site) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    book.open_page(tab, site.url(ROOT / "book/derivations/lora.html"))
    listing = tab.locator(".cell_input .highlight:visible").first
    listing.locator("button.copybtn").focus()
    tab.keyboard.press("Enter")
    tab.locator("button.copybtn.success").first.wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == listing.locator("pre").text_content().strip() and len(copied) > 20


def test_theme_switch(tab: Any, site: book.Site) -> None:
    """Each press changes the mode; both themes are met, look different, and stay on the next page."""
    book.open_page(tab, site.url(PAGES[0]))
    grounds = {}
    for _ in range(3):
        tab.locator(".theme-switch-button:visible").first.click()
        theme = tab.evaluate("document.documentElement.dataset.theme")
        grounds[theme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        if theme == "dark":
            book.open_page(tab, site.url(PAGES[1]))
            assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert set(grounds) == {"light", "dark"} and grounds["light"] != grounds["dark"]


def test_dark_from_the_first_paint(tab: Any, site: book.Site) -> None:
    """A reader whose system is dark never sees the page light: not the theme's late script settles it."""
    tab.route("**/pydata-sphinx-theme.js*", lambda route: route.abort())
    tab.emulate_media(color_scheme="dark")
    tab.goto(site.url(ROOT / "book/index.html"), wait_until="domcontentloaded")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


# What is pressed on a phone -> what it opens.
OPENED = {
    "button.primary-toggle": "#pst-primary-sidebar-modal",
    "button.secondary-toggle": "#pst-secondary-sidebar-modal",
    ".search-button": "#pst-search-dialog",
    ".dropdown-download-buttons .dropdown-toggle": ".dropdown-download-buttons .dropdown-menu",
    "article summary": "article details[open]",
    "article .toggle-button": "article .admonition.dropdown:not(.toggle-hidden)",
}


@pytest.mark.parametrize("theme", book.THEMES)
def test_axe_on_what_opens(tab: Any, site: book.Site, theme: str) -> None:
    """Side bars, menus, listings and answers that a page as loaded does not show."""
    book.open_page(tab, site.url(ROOT / "book/derivations/lora.html"))
    book.resize(tab, theme, 390)
    book.inject_axe(tab)
    tab.evaluate("book.thin()")
    for button, opened in OPENED.items():
        assert not tab.locator(opened).locator("visible=true").count(), button
        tab.locator(button).locator("visible=true").first.focus()
        tab.keyboard.press("Enter")
        tab.locator(opened).locator("visible=true").wait_for()
        assert book.grave(book.axe(tab, opened)) == [], button
        if not button.startswith("article"):
            tab.keyboard.press("Escape")
            tab.locator(opened).wait_for(state="hidden")


@pytest.mark.parametrize("theme", book.THEMES)
def test_axe_on_the_button_that_leads_back_to_the_top(tab: Any, site: book.Site, theme: str) -> None:
    """It shows where a reader turns round; its way back up is as long as the page."""
    book.open_page(tab, site.url(ROOT / "book/index.html"))
    book.resize(tab, theme, 390)
    book.inject_axe(tab)
    back = tab.locator("#pst-back-to-top")
    for up in (2000, 1000):
        tab.evaluate("up => scrollTo({ top: up, behavior: 'instant' })", up)
        tab.wait_for_function("up => scrollY === up", arg=up)
        tab.evaluate("() => new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)))")
    back.wait_for()
    assert book.grave(book.axe(tab, "#pst-back-to-top")) == []
    back.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_function("scrollY === 0")


def test_menu_on_a_phone(tab: Any, site: book.Site) -> None:
    book.open_page(tab, site.url(ROOT / "book/index.html"))
    book.resize(tab, "light", 390)
    menu = tab.locator("dialog#pst-primary-sidebar-modal")
    button = tab.locator("button.primary-toggle")
    button.focus()
    tab.keyboard.press("Enter")
    menu.get_by_role("link", name="Notation").wait_for()
    tab.keyboard.press("Escape")
    menu.wait_for(state="hidden")
    tab.keyboard.press("Enter")
    menu.get_by_role("link", name="Notation").click()
    tab.wait_for_url("**/book/notation.html")


def test_read_without_scripts(chromium: Any, site: book.Site) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": book.HEIGHT})
    tab = context.new_page()
    tab.goto(site.url(page_with('class="vbank-control vbank-explore')))
    assert tab.locator(".vbank-explore img").first.is_visible()
    assert not tab.locator(".vbank-sliders").first.is_visible()
    context.close()


def test_read_from_the_disk(tab: Any) -> None:
    """Opened as a file, with no server, a page has its formulas, and search finds a word."""
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    book.open_page(tab, (ROOT / "book/derivations/lora.html").as_uri())
    assert tab.locator("mjx-container").count() > 20
    assert complaints == []
    tab.goto((ROOT / "search.html").as_uri() + "?q=Eckart")
    tab.locator("#search-results li a").first.wait_for()
