"""The drawings of the chapter VB-LoRA II: share."""

import numpy as np
import pytest

from vbank.figures.palette import tint
from vbank.figures.vb_lora_share import COLOUR, footprints, reachable

BANK = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]


def test_reachable_draws_points_edges_and_faces():
    one, two, three = reachable(BANK).axes
    assert [axis.get_title() for axis in (one, two, three)] == ["k = 1: points", "k = 2: edges", "k = 3: faces"]
    assert [len(axis.lines) for axis in (one, two, three)] == [1, 6 + 1, 6 + 1]  # edges, and the points as one line
    assert [len(axis.patches) for axis in (one, two, three)] == [0, 0, 4]


@pytest.mark.parametrize("bank", [BANK[:2], [(0.0, 0.0, 0.0)] * 4, []])
def test_reachable_refuses_what_is_no_bank_in_the_plane(bank):
    with pytest.raises(ValueError, match="at least 3 vectors of length 2"):
        reachable(bank)


def test_footprints_shade_what_was_chosen_when():
    ever = np.array([[True, True, False], [False, True, False]])
    last = np.array([[True, False, False], [False, True, False]])
    figure = footprints({"k = 2": (ever, last), "k = 1": (last, last), "k = 3": (ever, ever)})
    image = figure.axes[0].images[0].get_array()  # (h, N, 3)
    dark, light, white = tint(COLOUR, 1.0), tint(COLOUR, 0.4), (1.0, 1.0, 1.0)
    assert [tuple(cell) for cell in image[:, 0]] == [dark, light, white]
    assert [tuple(cell) for cell in image[:, 1]] == [white, dark, white]
    assert [axis.get_title() for axis in figure.axes] == ["k = 2", "k = 1", "k = 3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "chosen at the end",
        "chosen at some time",
        "never",
    ]


def test_footprints_refuse_nothing_and_matrices_that_do_not_fit():
    with pytest.raises(ValueError, match="no panels"):
        footprints({})
    with pytest.raises(ValueError, match="'k = 1' has matrices of the shapes"):
        footprints({"k = 1": (np.zeros((2, 3)), np.zeros((3, 2)))})
