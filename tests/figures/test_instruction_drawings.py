"""The drawings of the chapter *Instruction tuning*."""

import pytest

from vbank.figures import instruction as drawings
from vbank.figures.palette import METHOD_COLOURS


def test_levels_stand_under_the_density_and_in_rows():
    figure = drawings.levels(([-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]), {"NF4": [-1.0, 0.0, 0.5, 1.0], "even": [-1.0, 1.0]})
    above, below = figure.axes
    ticks = [sorted({segment[0][0] for segment in group.get_segments()}) for group in below.collections]
    assert ticks == [[-1.0, 0.0, 0.5, 1.0], [-1.0, 1.0]]
    assert above.collections[-1].get_segments()[2][1][1] == pytest.approx(0.5)  # height of the curve at 0.5
    assert [text.get_text() for text in below.get_yticklabels()] == ["NF4", "even"]


def test_memory_stacks_its_parts_and_marks_what_was_printed():
    figure = drawings.memory({"LoRA": [3, 1, 1, 2, 1, 1], "VB-LoRA": [3, 0.5, 0.5, 1, 1, 1]}, {"LoRA": 8.5})
    axis = figure.axes[0]
    ends = [max(bar.get_x() + bar.get_width() for bar in axis.patches if bar.get_y() > y) for y in (0.5, -0.5)]
    assert ends == [9.0, 9.0] and len(axis.patches) == 12
    assert list(axis.lines[0].get_xdata()) == [8.5] and list(axis.lines[0].get_ydata()) == [1]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"as printed", *drawings.PARTS}


def test_scores_have_whiskers_and_their_methods_colours():
    figure = drawings.scores([("7B", "LoRA", 5.63), ("7B", "none", 4.79), ("13B", "VB-LoRA", 6.31)], 0.25, "score")
    axis = figure.axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["7B", "LoRA", "none", "13B", "VB-LoRA"] and axis.yaxis_inverted()
    bars = [collection.get_segments()[0] for collection in axis.collections]
    assert [float(bar[1][0] - bar[0][0]) for bar in bars] == pytest.approx([0.5] * 3)
    marks = [container.lines[0] for container in axis.containers]
    assert [mark.get_color() for mark in marks] == [METHOD_COLOURS[key] for key in ("LoRA", "full", "VB-LoRA")]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: drawings.levels(([0], [1]), {}), "no grid"),
        (lambda: drawings.levels(([0, 1], [1]), {"a": [0]}), "2 values of x and 1 heights"),
        (lambda: drawings.memory({}, {}), "no account"),
        (lambda: drawings.memory({"a": [1, 2]}, {}), "'a' must have 6 parts"),
        (lambda: drawings.memory({"a": [1] * 6}, {"b": 1}), "'b', which is not drawn"),
        (lambda: drawings.scores([], 0.1, ""), "no score"),
        (lambda: drawings.scores([("a", "b", 1.0)], -1, ""), "error is -1"),
    ],
)
def test_nothing_to_draw(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
