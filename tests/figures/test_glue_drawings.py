"""The drawings of the chapter *GLUE with RoBERTa*."""

import pytest

from vbank.figures import glue as drawings
from vbank.figures.palette import METHOD_COLOURS

ROWS = [
    {"method": "full", "filled": True, "stored": 10_000, "scores": [0.8, 0.9, 0.7]},
    {"method": "LoRA", "filled": False, "stored": 50, "scores": [0.6]},
    {"method": "LoRA", "filled": True, "stored": 100, "scores": [0.7, 0.1, 0.8]},
    {"method": "BitFit", "filled": True, "stored": 30, "scores": [0.5, 0.6]},
    {"method": "head-only", "filled": True, "stored": 0, "scores": [0.4, 0.2, 0.3]},
]


def test_marks_stand_at_the_median_hollow_ones_tell_the_other_layers():
    figure = drawings.score_by_size({"one": ROWS, "two": ROWS[:2]}, {"one": "accuracy", "two": "Matthews"})
    axis = figure.axes[0]
    dashes, marks = axis.lines[0:8:2], axis.lines[1:8:2]
    assert [list(line.get_ydata()) for line in dashes] == [row["scores"] for row in ROWS[:4]]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx([0.8, 0.6, 0.7, 0.55])
    assert [line.get_xdata()[0] for line in marks] == [10_000, 50, 100, 30]
    assert [line.get_markerfacecolor() for line in marks[1:3]] == ["white", METHOD_COLOURS["LoRA"]]
    assert axis.lines[8].get_ydata()[0] == 0.3 and axis.lines[8].get_linestyle() == "--"
    assert [axis.get_ylabel() for axis in figure.axes] == ["accuracy", "Matthews"]


def test_the_legend_names_each_method_once():
    legend = drawings.score_by_size({"one": ROWS, "two": ROWS}, {"one": "", "two": ""}).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["full", "LoRA", "BitFit", "head-only"]
    assert legend.get_lines()[1].get_markerfacecolor() == METHOD_COLOURS["LoRA"]


@pytest.mark.parametrize("panels", [{}, {"one": []}])
def test_nothing_to_draw(panels):
    with pytest.raises(ValueError, match="nothing to draw"):
        drawings.score_by_size(panels, {"one": ""})
