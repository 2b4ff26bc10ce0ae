"""The drawings of the chapter *What independent measurements say*."""

import pytest

from vbank.figures import independent as drawings
from vbank.figures.palette import METHOD_COLOURS

POINTS = [
    drawings.Point("LoRA, rank 32", "LoRA", 47.8, 1.4, 36.7e6, 942, repeats=(48.2, 49.1)),
    drawings.Point("VB-LoRA", "VB-LoRA", 33.4, 1.3, 4.9e6, 1198, compact=289e3),
    drawings.Point("IA3", "", 31.1, 1.3, 1.2e6, 987),
]


def test_quality_stands_at_both_sizes_and_at_the_time():
    figure = drawings.quality_by_cost(POINTS, "solved, %")
    by_bytes, by_seconds = figure.axes
    marks = {(float(x), float(y)) for line in by_bytes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(36.7e6, 47.8), (36.7e6, 48.2), (36.7e6, 49.1), (4.9e6, 33.4), (289e3, 33.4), (1.2e6, 31.1)} <= marks
    hollow = [line for line in by_bytes.lines if line.get_markerfacecolor() == "white"]
    assert [(list(line.get_xdata()), line.get_color()) for line in hollow] == [([289e3], METHOD_COLOURS["VB-LoRA"])]
    assert not [line for line in by_seconds.lines if line.get_markerfacecolor() == "white"]
    assert {float(line.get_xdata()[0]) for line in by_seconds.lines if len(line.get_xdata())} == {942, 1198, 987}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LoRA", "VB-LoRA", "others"]
    assert [text.get_text() for text in by_bytes.get_xticklabels()] == ["1 MB", "10 MB"]
    lines = str(figure).splitlines()
    assert lines[2].split() == ["VB-LoRA", "33.4", "1.3", "4.9", "MB", "289", "kB", "1,198"]


def test_a_reach_has_both_groups_of_numbers():
    figure = drawings.reach({"theirs": {"one": (0.25, 0.5)}, "ours": {"two": (0.1, 4.0)}}, {"at the start, 0.02": 0.02})
    (axis,) = figure.axes
    marks = [(line.get_marker(), float(line.get_xdata()[0])) for line in axis.lines if line.get_marker() in "so"]
    assert marks == [("s", 0.25), ("o", 0.5), ("s", 0.1), ("o", 4.0)]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["theirs", "one", "ours", "two"]
    assert axis.get_xscale() == "log"
    assert [line.split()[-2:] for line in str(figure).splitlines()[1:]] == [["0.2500", "0.5000"], ["0.1000", "4.0000"]]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["bank", "logits", "at the start, 0.02"]


def test_a_guide_is_the_same_list_in_words():
    steps = [drawings.Step("Room enough?", "LoRA", "three seeds", "LoRA"), drawings.Step("Tiny?", "VB-LoRA", "unsure")]
    figure = drawings.guide(steps, drawings.Step("", "VeRA, all layers", "one seed", "VeRA"))
    assert str(figure).splitlines() == [
        "1. Room enough? Yes: LoRA [three seeds]",
        "2. Tiny? Yes: VB-LoRA [unsure]",
        "3. Otherwise: VeRA, all layers [one seed]",
    ]
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown.count("yes") == shown.count("no") == 2
    for step in ("Room enough?", "LoRA", "(three seeds)", "Tiny?", "(unsure)", "VeRA, all layers", "(one seed)"):
        assert step in shown


def test_the_words_of_a_guide_stay_in_their_boxes():
    long = "a rather long question that needs several lines of the box to be asked in full?"
    figure = drawings.guide([drawings.Step(long, long, long, "LoRA")], drawings.Step("", long, long))
    axis = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [patch.get_window_extent() for patch in axis.patches if hasattr(patch, "get_boxstyle")]
    words = [text for text in axis.texts if text.get_text() not in ("", "yes", "no")]
    for text in words:
        inner = text.get_window_extent()
        assert any(
            box.x0 <= inner.x0 and inner.x1 <= box.x1 and box.y0 <= inner.y0 and inner.y1 <= box.y1 for box in boxes
        )
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no points"):
        drawings.quality_by_cost([], "")
    with pytest.raises(ValueError, match="nothing to draw"):
        drawings.reach({"a": {}}, {})
    with pytest.raises(ValueError, match="'x': a reach of 0"):
        drawings.reach({"a": {"x": (0, 1)}}, {})
    with pytest.raises(ValueError, match="at least one step"):
        drawings.guide([], drawings.Step("", "", ""))
