"""The simplex picture: the library's own mathematics, in the reader's hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from browser import Browser, needs_browser
from bs4 import BeautifulSoup

from vbank import figures
from vbank.figures.simplexes import BANK, LOGITS
from vbank.methods.selection import top_k as select

HANDLES = ".vbank-handle"
U = len(BANK)  # the sub-vector's handle comes last


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def where(browser, index) -> tuple[float, float]:
    text = browser[f"document.querySelectorAll('{HANDLES}')[{index}].getAttribute('aria-valuetext')"]
    across, up = text.replace("−", "-").split(", ")
    return float(across.split()[0]), float(up.split()[0])


def weights(browser) -> list[float]:
    return browser["[...document.querySelectorAll('label output')].map((o) => Number(o.textContent))"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mix_is_the_methods_own(k):
    picture = figures.simplex(top_k=k)
    chosen, shares, u = picture.mix()
    indices, expected = select(torch.tensor([LOGITS], dtype=torch.float64), k)
    assert chosen.tolist() == indices[0].tolist()
    np.testing.assert_allclose(shares, expected[0])
    np.testing.assert_allclose(u, expected[0].numpy() @ np.array(BANK)[chosen])


def test_static_html_has_a_still_picture_and_no_ids():
    soup = BeautifulSoup(figures.simplex().html, "html.parser")
    assert len(soup.img["alt"]) > 20 and soup.img["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert not soup.find_all(id=True)
    assert len(figures.simplex().html) < 60_000
    assert figures.simplex().html == figures.simplex().html


@needs_browser
@pytest.mark.parametrize("k", [1, 2, 3])
def test_page_computes_what_python_computes(browser, k):
    picture = figures.simplex(top_k=k)
    browser.open(picture.html)
    browser.until("document.querySelector('.vbank-said') !== null")
    chosen, shares, u = picture.mix()
    expected = np.zeros(len(BANK))
    expected[chosen] = shares
    np.testing.assert_allclose(weights(browser), expected, atol=0.006)
    np.testing.assert_allclose(where(browser, U), u, atol=0.006)
    assert browser["document.querySelector('.vbank-simplex img').hidden"] is True
    polygons = browser["document.querySelectorAll('.vbank-sides > svg polygon').length"]
    assert polygons == {1: len(BANK), 2: 0, 3: 35}[k] + 1  # regions or faces, and what is chosen


def to_pixels(browser, point):
    box = browser[
        "(() => { const b = document.querySelector('.vbank-sides > svg').getBoundingClientRect();"
        " return [b.x, b.y, b.width]; })()"
    ]
    unit = box[2] / 400
    return box[0] + unit * (200 + 165 * point[0]), box[1] + unit * (200 - 165 * point[1])


@needs_browser
@pytest.mark.parametrize("finger", [False, True])
def test_dragging_the_sub_vector_finds_the_nearest_reachable_point(browser, finger):
    browser.open(figures.simplex(top_k=2).html)
    browser.until("document.querySelector('.vbank-said') !== null")
    wish = (np.array(BANK[0]) + np.array(BANK[5])) / 2 + (0.02, -0.05)
    browser.drag(browser.place(HANDLES, U), to_pixels(browser, wish), finger)
    browser.until("/α₁.*α₆|α₆.*α₁/.test(document.querySelector('.vbank-said').textContent)")
    shares = weights(browser)
    assert abs(shares[0] - 0.5) < 0.1 and abs(shares[0] + shares[5] - 1) < 0.02
    np.testing.assert_allclose(where(browser, U), wish, atol=0.08)


@needs_browser
def test_k_1_jumps_and_k_3_follows(browser):
    browser.open(figures.simplex(top_k=1).html)
    browser.until("document.querySelector('.vbank-said') !== null")
    browser.drag(browser.place(HANDLES, U), to_pixels(browser, (-0.7, -0.3)))
    assert where(browser, U) == BANK[0]
    browser.place(HANDLES, U)
    browser["document.querySelectorAll('button')[2].click()"]
    np.testing.assert_allclose(where(browser, U), (-0.7, -0.3), atol=0.03)
    assert browser["[...document.querySelectorAll('button')].map((b) => b.getAttribute('aria-pressed'))"] == [
        "false",
        "false",
        "true",
    ]


@needs_browser
def test_dragging_a_bank_vector_takes_the_sub_vector_along(browser):
    browser.open(figures.simplex(top_k=2).html)
    browser.until("document.querySelector('.vbank-said') !== null")
    before, shares = where(browser, U), weights(browser)
    browser.drag(browser.place(HANDLES, 1), to_pixels(browser, (-0.9, 0.3)))
    moved = where(browser, 1)
    np.testing.assert_allclose(moved, (-0.9, 0.3), atol=0.03)
    expected = np.array(before) + shares[1] * (np.array(moved) - BANK[1])
    np.testing.assert_allclose(where(browser, U), expected, atol=0.02)
    assert weights(browser) == shares


@needs_browser
def test_everything_by_keyboard(browser):
    browser.open(figures.simplex(top_k=2).html)
    browser.until("document.querySelector('.vbank-said') !== null")
    browser[f"document.querySelectorAll('{HANDLES}')[2].focus()"]
    browser.press("ArrowLeft")
    browser.press("ArrowDown")
    np.testing.assert_allclose(where(browser, 2), np.array(BANK[2]) - 0.05, atol=0.006)
    browser["document.querySelectorAll('input')[1].focus()"]
    shares = weights(browser)
    browser.press("ArrowRight")
    assert weights(browser)[1] > shares[1]
    browser["document.querySelector('button').focus()"]
    browser.press(" ")
    reached = browser["document.querySelectorAll('button')[0].getAttribute('aria-pressed')"]
    assert reached == "true" or weights(browser).count(1.0) == 1


@needs_browser
def test_fits_a_telephone(browser):
    browser.open(figures.simplex().html)
    browser.until("document.querySelector('.vbank-said') !== null")
    assert browser["document.documentElement.scrollWidth"] <= 390
    size = "parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement.getBoundingClientRect().width / 400)"
    assert browser[f"Math.min(...[...document.querySelectorAll('svg text')].map((e) => {size}))"] >= 11
    labels = "[...document.querySelectorAll('input, .vbank-handle, svg')].every((e) => e.getAttribute('aria-label'))"
    assert browser[labels]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bank": [(0, 0), (1, 1)]}, r"shape \(2, 2\)"),
        ({"logits": [1.0]}, "1 logits for 7"),
        ({"logits": [9.0] * 7}, "outside"),
        ({"bank": [(2, 0)] * 7}, "outside"),
        ({"top_k": 4}, "top_k is 4"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        figures.simplex(**change)
