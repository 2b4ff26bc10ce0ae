"""The chapter's drawing: every sub-vector stands in its factor and in U, with the same colour and number."""

from __future__ import annotations

import io
from collections import Counter

import pytest

from vbank import figures
from vbank.figures.vb_lora_divide import laid_out

SHAPES = [(8, 4), (4, 8)]


def test_every_sub_vector_is_drawn_twice_in_one_colour():
    (axis,) = laid_out(SHAPES, rank=2, length=4).axes
    assert Counter(patch.get_facecolor() for patch in axis.patches).most_common()[-1][1] == 2
    assert len({patch.get_facecolor() for patch in axis.patches}) == 12
    numbers = Counter(text.get_text() for text in axis.texts if text.get_text().isdigit())
    assert numbers == {str(i): 2 for i in range(1, 13)}


def test_a_is_cut_along_its_rows_and_b_along_its_columns():
    (axis,) = laid_out(SHAPES, rank=2, length=4).axes
    sizes = Counter((round(p.get_width(), 6), round(p.get_height(), 6)) for p in axis.patches)
    assert sizes == {(4, 1): 2 + 4, (1, 4): 4 + 2 + 12}  # A's lie, B's and the columns of U stand


def test_svg_is_small_readable_and_the_same_byte_for_byte():
    files = []
    for _ in range(2):
        figure, file = laid_out(SHAPES, rank=2, length=4), io.BytesIO()
        figure.savefig(file, format="svg", metadata=figures.SVG_METADATA)
        files.append(file.getvalue())
    assert files[0] == files[1]
    assert len(files[0]) < 200_000
    sizes = [text.get_fontsize() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))]
    assert min(sizes) >= 11


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="length 3 does not divide 8"):
        laid_out(SHAPES, rank=2, length=3)


def test_number_of_layers():
    with pytest.raises(ValueError, match="0 layers; give one to 2"):
        laid_out([], rank=2, length=4)
