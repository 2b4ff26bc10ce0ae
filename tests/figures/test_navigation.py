"""The map of methods as navigation: reached by keys, one layout at a time, cells as the large map has them."""

import pytest
from browser import Browser, needs_browser
from bs4 import BeautifulSoup

from vbank.figures.navigation import GAP, RANK, ROWS, STOPS, layer_cells, navigation


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.mark.parametrize("method", [stop.method for stop in STOPS])
def test_a_layer_is_covered_once(method):
    """B and A, and beside them the scales where a method has some: no cell twice, none left out."""
    scales = ROWS + RANK if method in ("VeRA", "Tied-LoRA") else 0
    for layer in range(2):
        cells = list(layer_cells(method, layer))
        assert sum(width * height for _, _, width, height, _ in cells) == pytest.approx(2 * ROWS * RANK + scales)
        assert len({(x, y) for x, y, *_ in cells}) == len(cells)
        assert max(x + width for x, _, width, _, _ in cells) <= RANK + GAP + 2.2 + ROWS


def test_what_is_shared_has_one_colour():
    """Frozen pairs are hatched; LoRA's layers have nothing in common, Tied-LoRA's have the pair."""
    colours = {stop.method: [{c[4] for c in layer_cells(stop.method, layer)} for layer in (0, 1)] for stop in STOPS}
    assert colours["LoRA"][0].isdisjoint(colours["LoRA"][1])
    assert colours["VeRA"][0] & colours["VeRA"][1] == {None}
    assert len(colours["Tied-LoRA"][0] & colours["Tied-LoRA"][1]) == 1
    assert colours["PRoLoRA"][0].isdisjoint(colours["PRoLoRA"][1])
    assert colours["VB-LoRA"][0] == colours["VB-LoRA"][1] and len(colours["VB-LoRA"][0]) == 5


def test_each_drawing_has_patterns_of_its_own():
    soup = BeautifulSoup(navigation().html, "html.parser")
    names = [pattern["id"] for pattern in soup.find_all("pattern")]
    assert len(names) == len(set(names)) == 2
    for drawing, name in zip(soup.find_all("svg"), names, strict=True):
        assert {path["fill"] for path in drawing.find_all("path", fill=lambda f: f and f[0] == "u")} == {
            f"url(#{name})"
        }


@needs_browser
@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1000, "wide")])
def test_keys_reach_every_method_in_order(browser, width, shown):
    browser.open(navigation().html, width=width)
    assert browser["document.documentElement.scrollWidth"] <= width
    visible = "[...document.querySelectorAll('svg')].filter((e) => e.getBoundingClientRect().width)"
    assert browser[f"{visible}.map((e) => e.getAttribute('class')).join()"] == f"vbank-{shown}"
    for stop in STOPS:
        browser.press("Tab")
        assert browser["document.activeElement.getAttribute('href')"] == f"{stop.chapter}.ipynb"
    edges = "(e) => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.bottom]; }"
    links = f"[...{visible}[0].querySelectorAll('a')]"
    tiles = browser[f"{links}.map((a) => a.querySelector('.vbank-tile')).map({edges})"]
    texts = browser[f"{links}.map((a) => [...a.querySelectorAll('text')].map({edges}))"]
    for tile, lines in zip(tiles, texts, strict=True):
        assert lines and all(line[0] >= tile[0] and line[1] <= tile[1] and line[2] <= tile[2] for line in lines)
