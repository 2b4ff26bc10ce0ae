"""Footprints, first and last choices, and the animation, from a log made by hand."""

import base64
import io
import itertools
import json
import zlib

import numpy as np
import pytest
import torch
from browser import Browser, needs_browser
from bs4 import BeautifulSoup
from PIL import Image
from recorded import by_hand
from test_figures import SIGHT, cielab, linear, svg

import vbank
from vbank import figures
from vbank.figures import through_training as drawn
from vbank.selections_log import Recorder

LOG = by_hand()
DRAWINGS = {
    "footprints": lambda: figures.footprints({"k = 2": LOG, "again": LOG}),
    "periods": lambda: figures.footprints(LOG, periods=2),
    "first_and_last": lambda: figures.first_and_last(LOG),
    "animation": lambda: figures.bank_animation(LOG).draw(10),
}


def cells(axis, **names):
    """The names of the colours in a panel, a string a bank vector."""
    by_colour = {tuple(round(255 * channel) for channel in shade): letter for letter, shade in names.items()}
    image = axis.images[0].get_array()
    return ["".join(by_colour[tuple(int(channel) for channel in cell)] for cell in row) for row in image]


SHADES = {"o": drawn.NEVER, "b": drawn.BEFORE, "L": drawn.LAST}
TIMES = {"o": drawn.NEVER, "f": drawn.FIRST_ONLY, "L": drawn.LAST, "B": drawn.BOTH}


def test_footprints_by_hand():
    figure = figures.footprints({"k = 2": LOG})
    (axis,) = figure.axes
    assert cells(axis, **SHADES) == ["Loob", "bLoL", "LbLL", "oLLb", "oooo"]
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("k = 2", "sub-vector", "bank vector")
    words = ["chosen last", "chosen before", "never"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == words
    assert str(figure).split("\n")[1].split() == ["k", "=", "2", "3", "3.00", "25.0%"]  # 12 tried by 4; (1 + 3) / 16


def test_footprints_of_periods_keep_to_their_steps():
    figure = figures.footprints(LOG, periods=2)
    assert [axis.get_title() for axis in figure.axes] == ["steps 0 to 15", "steps 16 to 30"]
    assert cells(figure.axes[0], **SHADES) == ["LooL", "bLoo", "LLLo", "ooLL", "oooo"]
    assert cells(figure.axes[1], **SHADES) == ["Looo", "oLoL", "LoLL", "oLLo", "oooo"]
    assert [line.split()[-3:] for line in str(figure).split("\n")[1:]] == [["2", "2.25", "12.5%"], ["1", "2.00", "-"]]


def test_a_recording_is_in_one_period_alone():
    figure = figures.footprints(by_hand(steps=(0, 10, 20)), periods=2)
    assert [axis.get_title() for axis in figure.axes] == ["steps 0 to 9", "steps 10 to 20"]
    assert [line.split()[-3] for line in str(figure).split("\n")[1:]] == ["1", "2"]


def test_chosen_rows_and_vectors_are_drawn_and_numbered():
    (axis,) = figures.footprints(LOG, rows=[1, 3], vectors=[4, 2]).axes
    assert cells(axis, **SHADES) == ["oo", "bL"]
    assert axis.get_xlabel() == "sub-vector (2 of 4)"
    assert [axis.xaxis.get_major_formatter()(place, None) for place in (0, 1, 2)] == ["1", "3", ""]
    assert [axis.yaxis.get_major_formatter()(place, None) for place in (0, 1)] == ["4", "2"]


def test_first_and_last_by_hand():
    figure = figures.first_and_last(LOG)
    assert cells(figure.axes[0], **TIMES) == ["Boof", "fBoL", "LfBL", "oLBf", "oooo"]
    rows = {line[:16].strip(): line[16:].split() for line in str(figure).split("\n")}
    assert rows["chosen in both"] == ["4", "50.0%"]
    assert rows["first only"] == rows["last only"] == ["4", "50.0%"]
    assert rows["both, by chance"] == ["3.2", "40.0%"]  # 8 choices, k / h = 2 / 5


def frames(html):
    packed = BeautifulSoup(html, "html.parser").select_one(".vbank-explore")["data-frames"]
    held = json.loads(zlib.decompress(base64.b64decode(packed)))
    return ["\n".join(held["lines"][i] for i in frame["svg"]) for frame in held["frames"]]


def test_animation_has_a_frame_a_recording():
    control = figures.bank_animation(LOG)
    assert control.choices == {"step": [0, 10, 30]}
    above = [cells(control.draw(step).axes[0], **SHADES) for step in (0, 10, 30)]
    assert above[0] == ["LooL", "LLoo", "oLLo", "ooLL", "oooo"]
    assert above[1] == ["LooL", "bLoo", "LLLo", "ooLL", "oooo"]
    assert above[2] == ["Loob", "bLoL", "LbLL", "oLLb", "oooo"]
    curve, dot = control.draw(30).axes[1].lines
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([10, 30], [0.125, 0.375])
    assert (dot.get_xdata(), dot.get_ydata()) == ([30], [0.375])
    assert len(control.draw(0).axes[1].lines) == 1  # no exchange before the first step
    assert [line.split() for line in repr(control).split("\n")[1:]] == [
        ["0", "4", "2.00", "-"],
        ["10", "4", "2.25", "12.5%"],
        ["30", "4", "3.00", "37.5%"],
    ]
    left = figures.bank_animation(by_hand((((0, 1),) * 4, ((1, 2),) * 4), (0, 5)))
    assert repr(left).split("\n")[2].split() == ["5", "2", "3.00", "50.0%"]  # vector 0 is no longer in use
    assert len(set(frames(control.html))) == 3
    soup = BeautifulSoup(control.html, "html.parser")
    assert soup.img["alt"].endswith("Now: step 0.") and soup.input["aria-valuetext"] == "0"
    assert control._repr_mimebundle_()["text/plain"] == repr(control)


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@needs_browser
def test_play_moves_the_slider_with_no_kernel_and_no_network_and_stops(browser):
    browser.open(figures.bank_animation(LOG).html)
    browser.until("document.querySelector('.vbank-sliders:not([hidden])') !== null")
    said, button = (f"document.querySelector('.vbank-{name}')" for name in ("said", "play"))
    image = browser["document.querySelector('img').src"]
    browser[f"{button}.focus()"]
    browser.press(" ")
    browser.until(f"{said}.textContent === 'Shown: step 30.'")
    browser.until(f"{button}.textContent === 'Play'")  # it stops at the end
    assert browser["document.querySelector('img').src"] != image
    browser.press(" ")  # and begins again
    assert browser[f"{said}.textContent"] == "Shown: step 0."
    assert browser[f"[{button}.textContent, {said}.getAttribute('aria-live')]"] == ["Pause", "off"]
    browser["document.querySelector('input').focus()"]
    browser.press("ArrowRight")  # the reader takes over
    assert browser[f"[{button}.textContent, {said}.getAttribute('aria-live')]"] == ["Play", "polite"]


def test_play_in_a_live_notebook_draws_the_step():
    play, slider, place = figures.bank_animation(LOG).widget().children
    play.value = 2
    assert slider.value == 30 and "Now: step 30." in place.value


def test_a_full_animation_is_light_and_the_same_bytes_each_time():
    draw = torch.Generator().manual_seed(0)
    T, N, h = 24, 500, 256
    indices = torch.rand(T, N, h, generator=draw).topk(2).indices
    log = by_hand(indices, range(T), bank_after=torch.zeros(h, 2), spans=((0, 250, 500),), sites=("0",))
    control = figures.bank_animation(log, frames=24, rows=range(192))
    assert len(control.choices["step"]) == 24
    assert len(control.html) < 300_000
    assert figures.bank_animation(LOG).html == figures.bank_animation(LOG).html


def test_a_reader_s_own_recording(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(8, 8))
    config = vbank.VBLoRA(2, num_vectors=6, vector_length=4)
    method = vbank.attach(network, config, targets=["0"]).method
    recorder = Recorder(method, 1)
    recorder.record(0)
    with torch.no_grad():
        method.logits.neg_()  # from the two largest to the two smallest of six
    recorder.record(1)
    recorder.write(tmp_path / "log.safetensors")
    figure = figures.footprints(tmp_path / "log.safetensors")
    assert str(figure).split()[-3:] == ["2", "4.00", "100.0%"]
    assert "0.0%" in str(figures.first_and_last(tmp_path / "log.safetensors"))
    assert str(figures.bank_usage(tmp_path / "log.safetensors")) == str(figures.bank_usage(network))


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_the_same_byte_for_byte_small_and_legible(name):
    first = svg(DRAWINGS[name]())
    assert first == svg(DRAWINGS[name]())
    assert len(first) < 200_000
    figure = DRAWINGS[name]()
    assert figure.get_figwidth() == figures.WIDTH
    sizes = [text.get_fontsize() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))]
    assert min(sizes) * 360 / (72 * figures.WIDTH) >= 9  # pixels on a phone


def test_cells_keep_their_size_in_the_picture():
    file = io.BytesIO()
    figures.footprints(LOG).savefig(file, format="png", dpi=72)
    picture = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
    dark, light = ((abs(picture - 255 * np.array(shade)).max(1) < 2).sum() for shade in (drawn.LAST, drawn.BEFORE))
    assert dark / light == pytest.approx(8 / 4, rel=0.1)  # of 20 cells 8 are dark and 4 light


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("shades", [SHADES, TIMES], ids=["footprints", "first and last"])
def test_shades_can_be_told_apart(sight, shades):
    seen = [cielab(SIGHT[sight] @ linear("#" + bytes(round(255 * c) for c in s).hex())) for s in shades.values()]
    assert min(np.linalg.norm(one - two) for one, two in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.footprints({}), "no log to draw"),
        (lambda: figures.footprints({"a": LOG, "b": LOG}, periods=2), "2 periods of 2 logs; cut one log"),
        (lambda: figures.footprints(LOG, periods=0), "periods is 0; give a whole number"),
        (lambda: figures.footprints(LOG, periods=4), "no recording in steps 16 to 22; give fewer periods than 4"),
        (lambda: figures.footprints({str(i): LOG for i in range(17)}), "17 panels do not fit a picture; give 16"),
        (
            lambda: figures.footprints(
                {"ours": LOG, "theirs": by_hand((((0, 1),), ((1, 2),)), (0, 1), spans=((0, 1, 1),), sites=("0",))}
            ),
            "'theirs' has 1 sub-vectors and 'ours' has 4, so their logs are of different models",
        ),
        (lambda: figures.first_and_last(by_hand((((0, 1),) * 4,), (0,))), "first_and_last: the log has one recording"),
        (lambda: figures.bank_animation(LOG, frames=1), "bank_animation: 3 recordings and frames=1; nothing moves"),
        (lambda: figures.bank_animation(LOG, rows=[9]), "bank_animation: rows is .9."),
    ],
)
def test_refusals(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()
