"""The drawings of *Images with ViT*."""

import numpy as np
import pytest

from vbank.figures.images import draws_and_seeds, patches


def test_patches_are_cut_where_the_model_cuts():
    figure = patches({"upright": np.zeros((3, 8, 8)), "turned": np.ones((3, 8, 8))}, patch=4)
    assert len(figure.axes) == 6
    assert [axis.get_ylabel() for axis in figure.axes] == ["upright", "", "", "turned", "", ""]
    for axis in figure.axes:
        across, down = axis.lines
        assert list(across.get_ydata()) == [3.5, 3.5] and list(down.get_xdata()) == [3.5, 3.5]


@pytest.mark.parametrize("rows", [{}, {"a": np.zeros((2, 8, 8)), "b": np.zeros((3, 8, 8))}, {"a": np.zeros((2, 8, 9))}])
def test_pictures_that_cannot_be_cut(rows):
    with pytest.raises(ValueError, match="patches"):
        patches(rows, patch=4)


def test_scores_are_shown_by_draw_and_by_seed():
    table = [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]
    left, right = draws_and_seeds(table, "LoRA").axes
    means = [float(line.get_ydata()[0]) for line in left.lines if len(line.get_xdata()) == 2 and line.get_lw() == 2]
    assert means == pytest.approx([0.2, 0.6])
    assert len(left.get_xticks()) == 2 and len(right.get_xticks()) == 3
    assert left.get_xlabel() == "one draw a column" and right.get_xlabel() == "one seed a column"


def test_a_table_of_scores_is_needed():
    for scores in ([0.1, 0.2], [[0.1, 0.2]], []):
        with pytest.raises(ValueError, match="at least 2 draws and 2 seeds"):
            draws_and_seeds(scores, "LoRA")
    with pytest.raises(ValueError, match="no colour for the method"):
        draws_and_seeds([[0.1, 0.2], [0.3, 0.4]], "LoRAX")
