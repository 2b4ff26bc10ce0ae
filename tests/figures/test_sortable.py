"""Sortable tables: numbers as numbers, empty cells last, search, keys, no scripts, text."""

import pytest
from browser import Browser, needs_browser
from bs4 import BeautifulSoup

from vbank import figures

RUNS = [
    {"run": "b10", "score": 0.5, "bytes": 1200, "note": "won <i>"},
    {"run": "a", "score": None, "bytes": 900, "note": ""},
    {"run": "b9", "score": -0.25, "bytes": 13000, "note": "lost"},
    {"run": "c", "score": 0.5, "bytes": 70, "note": "lost"},
]


@pytest.fixture(scope="module")
def table():
    return figures.sortable(RUNS, "Four & runs.", {"score": ".2f"})


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def test_the_page_holds_the_whole_table_in_its_order(table):
    soup = BeautifulSoup(table.html, "html.parser")
    assert soup.select_one(".vbank-caption").text == "Four & runs." == soup.select_one("[role=region]")["aria-label"]
    assert [head.text for head in soup.select("thead th[scope=col]")] == ["run", "score", "bytes", "note"]
    assert [row.text for row in soup.select("tbody th[scope=row]")] == ["b10", "a", "b9", "c"]
    assert [cell.text for cell in soup.select("tbody td")][:6] == ["0.50", "1,200", "won <i>", "", "900", ""]
    assert len(soup.select("tbody td.n")) == 8
    assert not soup.find_all(id=True)  # several tables on a page cannot clash


def test_the_text_is_the_same_table(table):
    assert str(table).splitlines() == [
        "Four & runs.",
        "run  score   bytes  note",
        "b10   0.50   1,200  won <i>",
        "a              900",
        "b9   -0.25  13,000  lost",
        "c     0.50      70  lost",
    ]


@pytest.mark.parametrize(
    ("rows", "formats", "said"),
    [
        ([], {}, "no rows"),
        ([{"a": 1}, {"b": 1}], {}, r"row 1 has the columns \['b'\]"),
        ([{"a": float("nan")}], {}, "a = nan"),
        ([{"a": 1}], {"b": ".1f"}, "formats has 'b'"),
    ],
)
def test_what_is_no_table_is_refused(rows, formats, said):
    with pytest.raises(ValueError, match=said):
        figures.sortable(rows, "None.", formats)


SHOWN = "[...document.querySelectorAll('tbody tr:not([hidden]) th')].map((e) => e.textContent).join(' ')"
SAID = "document.querySelector('output').textContent"


def sorts(browser):
    return browser["[...document.querySelectorAll('thead th')].map((e) => e.getAttribute('aria-sort'))"]


@needs_browser
def test_sorting_by_click_and_by_key(table, browser):
    browser.open(table.html)
    assert browser[SAID] == "4 rows"
    point = browser.place("thead button", 2)
    browser.drag(point, point)  # a click
    assert browser[SHOWN] == "c a b10 b9"  # 70, 900, 1,200, 13,000: numbers, not words
    assert sorts(browser) == [None, None, "ascending", None]
    assert browser[SAID] == "4 rows, by bytes, ascending"
    browser["document.querySelectorAll('thead button')[1].focus()"]
    browser.press(" ")
    assert browser[SHOWN] == "b9 b10 c a"  # equal ones keep their order, the empty one is last
    browser.press(" ")
    assert browser[SHOWN] == "b10 c b9 a"
    assert sorts(browser) == [None, "descending", None, None]
    browser["document.querySelectorAll('thead button')[0].click()"]
    assert browser[SHOWN] == "a b9 b10 c"  # nine before ten


@needs_browser
def test_search_keeps_what_contains_all_words(table, browser):
    browser.open(table.html * 2)
    field = "document.querySelector('input')"
    browser[f"{field}.value = 'LOST  b'; {field}.dispatchEvent(new Event('input'))"]
    assert browser[SHOWN] == "b9 b10 a b9 c"  # the second table is another one
    assert browser[SAID] == "1 of 4 rows"
    browser[f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))"]
    assert browser[SAID] == "4 rows"


@needs_browser
def test_without_scripts_the_table_stands_there(table, browser):
    browser.open(table.html, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser[SHOWN] == "b10 a b9 c"
    assert browser["document.querySelectorAll('button').length"] == 0
    assert browser["document.querySelector('.vbank-search').hidden"] is True


@needs_browser
def test_a_wide_table_scrolls_in_its_own_box(browser):
    wide = figures.sortable([{f"a long heading {i}": "a long word here" for i in range(20)}], "Wide.")
    browser.open(wide.html)
    assert browser["document.documentElement.scrollWidth"] <= 390
    assert browser["document.querySelector('[role=region]').scrollWidth"] > 800
