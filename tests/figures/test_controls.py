"""The sliders: widgets in a live notebook, frames in a page, the same pictures in both."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import nbformat
import pytest
from browser import Browser, needs_browser
from bs4 import BeautifulSoup
from nbclient import NotebookClient

import vbank
from vbank import figures
from vbank.figures import controls

ALT = "A, B and the update of one layer"


def draw(rank, share):
    return figures.composition(vbank.PRoLoRA(rank, 0, share, share), [(6, 6)])


@pytest.fixture(scope="module")
def control():
    return figures.explore(draw, alt=ALT, rank=[2, 3], share=[1, 2, 7], start={"rank": 3})


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def frames(html):
    packed = BeautifulSoup(html, "html.parser").select_one(".vbank-explore")["data-frames"]
    held = json.loads(zlib.decompress(base64.b64decode(packed)))
    return [
        frame | {"svg": "\n".join(held["lines"][i] for i in frame["svg"])} if "svg" in frame else frame
        for frame in held["frames"]
    ]


def test_a_frame_for_each_combination(control):
    stored = frames(control.html)
    assert len(stored) == 6
    assert stored[1]["svg"] == controls.small_svg(draw(2, 2))
    assert stored[3]["svg"] == controls.small_svg(draw(3, 1))
    assert "share_a 7" in stored[2]["refused"]


def test_the_page_says_what_it_shows(control):
    soup = BeautifulSoup(control.html, "html.parser")
    assert soup.img["alt"] == f"{ALT}. Now: rank 3, share 1."
    assert soup.img["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert [label.span.text for label in soup.find_all("label")] == ["rank", "share"]
    assert [slider["aria-valuetext"] for slider in soup.find_all("input")] == ["3", "1"]
    assert soup.select_one("[aria-live]").text == "Shown: rank 3, share 1."
    assert not soup.find_all(id=True)  # several controls on a page cannot clash


def test_nothing_from_elsewhere_and_the_same_bytes_each_time(control):
    assert not re.search(r"https?://(?!www\.w3\.org)", control.html)
    again = figures.explore(draw, alt=ALT, rank=[2, 3], share=[1, 2, 7], start={"rank": 3})
    assert again.html == control.html


def test_weight_of_a_full_control():
    def full(rank, share):
        return figures.composition(vbank.PRoLoRA(rank, 1, share, share), [(12, 12), (12, 12)])

    control = figures.explore(full, alt=ALT, rank=[2, 3, 4, 5], share=[1, 2, 3, 4, 5, 6])
    assert len(control.html) < 120_000


@needs_browser
def test_sliders_choose_frames_with_no_kernel_and_no_network(control, browser):
    browser.open(control.html * 2)
    browser.until("document.querySelectorAll('.vbank-sliders:not([hidden])').length === 2")
    stored = frames(control.html)
    browser["document.querySelectorAll('input')[3].focus()"]
    browser.press("ArrowRight")
    shown = "[...document.querySelectorAll('.vbank-said')].map((p) => p.textContent)"
    assert browser[shown] == ["Shown: rank 3, share 1.", "Shown: rank 3, share 2."]
    image = "document.querySelectorAll('img')[1]"
    assert browser[f"decodeURIComponent({image}.src.split(',').slice(1).join(','))"] == stored[4]["svg"]
    assert browser[f"{image}.alt"] == f"{ALT}. Now: rank 3, share 2."
    browser.until(f"{image}.complete && {image}.naturalWidth > 0")
    browser.press("ArrowRight")
    assert browser[f"{image}.hidden"] is True
    assert "share_a 7" in browser["document.querySelectorAll('.vbank-refused')[1].textContent"]
    browser.press("ArrowLeft")
    assert browser[f"{image}.hidden"] is False
    slider = browser.place("input", 0)
    browser.drag((slider[0] + 40, slider[1]), (slider[0] - 150, slider[1]))
    assert browser[shown][0] == "Shown: rank 2, share 1."


@needs_browser
def test_fits_a_telephone(control, browser):
    browser.open(control.html)
    browser.until("document.querySelector('.vbank-sliders:not([hidden])') !== null")
    assert browser["document.documentElement.scrollWidth"] <= 390
    assert browser["[...document.querySelectorAll('label')].every((l) => l.getBoundingClientRect().height >= 40)"]


@needs_browser
def test_without_scripts_the_first_frame_stands_alone(control, browser):
    browser.open(control.html, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser["document.querySelector('img').naturalWidth"] > 0
    assert browser["document.querySelector('.vbank-sliders').hidden"] is True


def test_moving_a_widget_calls_draw():
    calls = []

    def recorded(rank, share):
        calls.append((rank, share))
        return draw(rank, share)

    control = figures.explore(recorded, alt=ALT, rank=[2, 3], share=[1, 2, 7])
    calls.clear()
    rank, share, place = control.widget().children
    assert calls == [(2, 1)] and rank.description == "rank"
    before = place.value
    rank.value = 3
    assert calls == [(2, 1), (3, 1)]
    assert place.value != before and "Now: rank 3, share 1." in place.value
    share.value = 7
    assert "share_a 7" in place.value and "<img" not in place.value


@pytest.mark.parametrize(
    ("variables", "kinds"),
    [
        ({}, {"text/plain", "text/html"}),
        ({"JPY_SESSION_NAME": "a.ipynb"}, {"text/plain", "application/vnd.jupyter.widget-view+json"}),
        ({"JPY_SESSION_NAME": "a.ipynb", "VBANK_CONTROLS": "frames"}, {"text/plain", "text/html"}),
    ],
)
def test_widgets_only_where_a_front_end_serves_them(variables, kinds, control, monkeypatch):
    for name in ("JPY_SESSION_NAME", "VBANK_CONTROLS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert set(control._repr_mimebundle_()) == kinds


def test_a_notebook_run_by_a_script_stores_no_widget(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    source = (
        "from vbank import figures\n"
        "control = figures.explore(lambda n: figures.lines({'LoRA': ([0, 1], [0, n])}), n=[1, 2],\n"
        "                          alt='a line that rises to n')\n"
        "control"
    )
    live = (
        "import os\nos.environ['JPY_SESSION_NAME'] = 'a.ipynb'\n"
        "before = figures.controls.small_svg\nslider, place = control.widget().children\n"
        "slider.value = 2\nassert 'n 2' in place.value\ncontrol"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (source, live)])
    folder = {"metadata": {"path": str(Path(vbank.__file__).parents[1])}}
    NotebookClient(notebook, kernel_name="python3", resources=folder).execute()
    (stored,), (view,) = (cell.outputs for cell in notebook.cells)
    assert set(stored.data) == {"text/plain", "text/html"}
    assert "application/vnd.jupyter.widget-view+json" in view.data
    # the widget that the front end shows is the one whose slider the kernel serves
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    model = view.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    names = {state[child.removeprefix("IPY_MODEL_")]["model_name"] for child in state[model]["state"]["children"]}
    assert names == {"SelectionSliderModel", "HTMLModel"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": []}, "nothing to choose from"),
        ({"rank": list(range(13)), "share": [1, 2]}, "26 combinations of rank, share"),
        ({"start": {"rank": 5}}, "rank=5"),
        ({"start": {"width": 5}}, "width=5"),
        ({"alt": "figure"}, "say in a sentence"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        figures.explore(draw, **({"alt": ALT, "rank": [2], "share": [1]} | change))


def test_draw_must_return_a_figure():
    with pytest.raises(TypeError, match="returned NoneType"):
        figures.explore(lambda rank: None, alt=ALT, rank=[1])


def test_too_heavy():
    def noise(seed):
        import numpy as np

        return figures.heatmaps({"noise": np.random.default_rng(seed).normal(size=(400, 400))})

    with pytest.raises(ValueError, match="bytes of page"):
        figures.explore(noise, alt=ALT, seed=[1, 2, 3])


def test_unknown_mode(control, monkeypatch):
    monkeypatch.setenv("VBANK_CONTROLS", "sliders")
    with pytest.raises(ValueError, match="frames or widgets"):
        control._repr_mimebundle_()


def test_assets_are_packaged():
    text = (Path(vbank.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    folder = Path(controls.__file__).parent
    for path in folder.iterdir():
        if path.suffix in (".js", ".css"):
            assert f"figures/*{path.suffix}" in text
