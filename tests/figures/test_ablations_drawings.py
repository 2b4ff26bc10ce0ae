"""The drawings of the chapter *Ablations* say and show the numbers that they are given."""

import pytest

from vbank.figures import ablations as drawings

RUNS = {"default": [80.0, 82.0], "a": [81.0], "far": [40.0, 42.0], "mixed": [82.0, 20.0], "none": []}
GROUPS = {"near": {"default": {"here": RUNS["default"]}, "a": {"here": RUNS["a"]}}} | {
    "rest": {name: {"here": RUNS[name]} for name in ("far", "mixed", "none")}
}


def test_heaps_hold_every_run_around_its_own_mean():
    figure = drawings.seeds({"bed": [[80.0, 82.0], [50.0, 50.5], [70.0]]}, {"bed": 0.5}, "VB-LoRA")
    assert str(figure).splitlines() == [
        "testbed  variants  runs  deviation  furthest   2 e  seeds",
        "bed             3     4       0.50      1.00  1.00      2",
    ]
    (axis,) = figure.axes
    left, right, dots = axis.lines
    assert (left.get_xdata()[0], right.get_xdata()[0]) == (-1.0, 1.0)
    assert sorted(dots.get_xdata()) == pytest.approx([-1.0, -0.25, 0.25, 1.0], abs=0.5 / 22)
    assert axis.patches[0].get_x() == -0.5 and axis.patches[0].get_width() == 1.0


def test_runs_of_one_place_are_heaped():
    dots = drawings.seeds({"bed": [[80.0, 82.0], [60.0, 62.0]]}, {"bed": 1.0}, "VB-LoRA").axes[0].lines[2]
    assert sorted(zip(dots.get_xdata().round(), dots.get_ydata(), strict=True)) == [(-1, 1), (-1, 2), (1, 1), (1, 2)]


def test_variants_stand_beside_the_paper_and_around_the_reference():
    figure = drawings.compared(GROUPS, "default", {"here": 1.5}, "VeRA", {"a": (90.0, 1.25), "far": (50.0, None)})
    assert [line.split() for line in str(figure).splitlines()] == [
        ["variant", "paper", "here"],
        ["default", "81.0", "±1.4", "(2)"],
        ["a", "90.0", "±1.2", "81.0", "(1)"],
        ["far", "50.0", "41.0", "±1.4", "(2)"],
        ["mixed", "51.0", "±43.8", "(2)"],
        ["none", "not", "run"],
    ]
    paper, here = figure.axes
    rows = ["near", "default", "a", "rest", "far", "mixed", "none"]
    assert [text.get_text() for text in paper.get_yticklabels()] == rows
    band = here.patches[0]
    assert (band.get_x(), band.get_width()) == (79.5, 3.0)  # 81 ± 1.5
    assert [text.get_text() for text in here.texts] == ["◂ 41", "◂ 51"]  # both means lie beyond the edge of 66
    assert not paper.patches


def test_a_run_beyond_the_edge_is_marked_though_its_mean_is_inside():
    groups = {"all": {"default": {"here": [80.0]}, "mixed": {"here": [82.0, 81.0, 82.0, 60.0]}}}
    (axis,) = drawings.compared(groups, "default", {"here": 1.0}, "VeRA").axes
    assert [text.get_text() for text in axis.texts] == ["◂"]
    assert [list(line.get_xdata()) for line in axis.lines][2:] == [[82.0, 81.0, 82.0], [76.25, 76.25]]


def test_a_panel_without_runs_says_so():
    groups = {"all": {"default": {"here": [80.0], "there": []}}}
    here, there = drawings.compared(groups, "default", {"here": 1.0, "there": 1.0}, "VeRA").axes
    assert (here.get_xlabel(), there.get_xlabel()) == ("points", "not run")
    assert len(here.get_xticks()) and not len(there.get_xticks())


def test_bytes_are_drawn_on_one_line_a_choice():
    lines = {"k": [("1", 1000, [80.0]), ("2", 2000, [81.0, 83.0])], "length b": [("64", 1500, [79.0])]}
    figure = drawings.by_bytes({"bed": lines}, {"bed": 2.0})
    assert [line.split() for line in str(figure).splitlines()][1:] == [
        ["bed:", "k,", "1", "1,000", "80.0", "(1)"],
        ["bed:", "k,", "2", "2,000", "82.0", "±1.4", "(2)"],
        ["bed:", "length", "b,", "64", "1,500", "79.0", "(1)"],
    ]
    axis = figure.axes[0]
    k, lengths = axis.containers
    assert list(k[0].get_xdata()) == [1000, 2000] and list(k[0].get_ydata()) == [80.0, 82.0]
    assert list(lengths[0].get_ydata()) == [79.0]
    (whiskers,) = k[2]
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [[79.0, 81.0], [81.0, 83.0]]
    assert [text.get_text() for text in axis.texts] == ["1", "2", "64"]


def test_the_best_rate_of_each_row_is_framed():
    grid = {"u = 0": {0.01: [80.0, 82.0], 0.02: [85.0]}, "u = 1": {0.01: [70.0], 0.04: []}, "u = 2": {}}
    figure = drawings.rate_grid(grid, "PRoLoRA")
    assert [line.split() for line in str(figure).splitlines()] == [
        ["variant", "0.01", "0.02", "0.04"],
        ["u", "=", "0", "81.0", "±1.4", "(2)", "85.0", "(1)", "not", "run"],
        ["u", "=", "1", "70.0", "(1)", "not", "run", "not", "run"],
        ["u", "=", "2", "not", "run", "not", "run", "not", "run"],
    ]
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["81.0", "85.0", "70.0"]
    frames = [(line.get_xdata().mean().round(), line.get_ydata().mean().round()) for line in axis.lines]
    assert frames == [(1, 0), (0, 1)]
    strengths = [sum(collection.get_facecolor()[0][:3]) for collection in axis.collections]
    assert strengths[1] < strengths[0] < strengths[2]  # the best darkest


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: drawings.seeds({}, {}, "VeRA"), "nothing to draw"),
        (lambda: drawings.compared(GROUPS, "top-2", {"here": 1.0}, "VeRA"), "'top-2' is none of: default, a, far"),
        (lambda: drawings.by_bytes({"x": {}}, {}), "not 0"),
        (lambda: drawings.rate_grid({"a": {0.1: []}}, "VeRA"), "no runs"),
    ],
)
def test_nothing_to_draw_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
