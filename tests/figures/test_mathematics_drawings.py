"""The drawing of the chapter Mathematics."""

import pytest

from vbank.figures.mathematics import differences

PANELS = {"GSM8K": {"Mistral, LoRA": (1.5, 3.5), "Gemma, LoRA": (4.6, 3.4)}, "MATH": {"Mistral, LoRA": (-1.8, 1.5)}}


def test_a_difference_that_may_be_noise_is_hollow():
    figure = differences(PANELS, "points", {"Mistral, LoRA": "LoRA"})
    upper, lower = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["GSM8K", "MATH"]
    assert [label.get_text() for label in upper.get_yticklabels()] == ["Mistral, LoRA", "Gemma, LoRA"]
    zero, whisker, noise, _, clear = upper.get_lines()
    assert list(zero.get_xdata()) == [0, 0]
    assert list(whisker.get_xdata()) == [-2.0, 5.0]
    assert noise.get_markerfacecolor() == "white" and clear.get_markerfacecolor() != "white"
    assert lower.get_lines()[-1].get_markerfacecolor() == lower.get_lines()[-1].get_color()
    assert lower.get_xlabel() == "points" and not upper.get_xlabel()


@pytest.mark.parametrize(
    ("panels", "words"),
    [({}, "no differences"), ({"GSM8K": {}}, "at least one"), ({"GSM8K": {"LoRA": (1.0, -1.0)}}, "cannot be negative")],
)
def test_refused(panels, words):
    with pytest.raises(ValueError, match=words):
        differences(panels, "points")
