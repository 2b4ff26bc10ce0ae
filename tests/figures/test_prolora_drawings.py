"""The drawing of the chapter PRoLoRA."""

import numpy as np
import pytest

from vbank.figures.prolora import stored_numbers

COPIED = np.array([[0, 1, 2, 3], [2, 3, 0, 1]])  # a chunk of 2 x 2 beside its copy, turned along the rank


def test_equal_numbers_share_letter_and_shade():
    figure = stored_numbers({"turned": (COPIED, (2, 2)), "along rank": (np.array([[0, 1], [0, 1]]), (1, 2))})
    turned, along = figure.axes
    assert [text.get_text() for text in turned.texts] == list("abcdcdab")
    assert [text.get_text() for text in along.texts] == list("abab")
    image = turned.images[0].get_array()  # (rows, columns, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4
    assert np.array_equal(image[0, :2], image[1, 2:])
    outline = turned.patches[0]
    assert (outline.get_width(), outline.get_height()) == (2, 2)
    assert [axis.get_title() for axis in figure.axes] == ["turned", "along rank"]


@pytest.mark.parametrize(
    ("panels", "words"),
    [
        ({}, "no panels"),
        ({"many": (np.arange(30).reshape(5, 6), (1, 1))}, "0 to 25"),
        ({"flat": (np.arange(4), (1, 1))}, "needs a matrix"),
        ({"wide": (COPIED, (2, 5))}, r"the chunk \(2, 5\)"),
    ],
)
def test_refused(panels, words):
    with pytest.raises(ValueError, match=words):
        stored_numbers(panels)
