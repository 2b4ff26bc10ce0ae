"""Figures in words: what is drawn is said, with the numbers that were given."""

import numpy as np
import pytest

import vbank
from vbank import figures
from vbank.figures.palette import new_figure
from vbank.figures.spoken import MOST_LINES, MOST_POINTS


def test_bars_say_label_and_value() -> None:
    said = repr(figures.bars({"VeRA": (41.2, 1.3), "LoRA": 1234567.0}, xlabel="accuracy in %", reference={"guess": 10}))
    assert said.split("\n") == [
        "Figure: across: accuracy in %",
        "",
        "VeRA       41.2",
        "LoRA  1,234,567",
        "(39.9, VeRA) (42.5, VeRA)",  # the whisker
        "guess: 10",
    ]


def test_lines_over_the_same_places_share_a_table() -> None:
    series = {"LoRA": ([1, 2], [0.5, 0.25]), "VeRA": ([1, 2], [3, 0.001]), "full": ([1, 4], [7, 8])}
    said = repr(figures.lines(series, "rank", "error", logy=True, reference={"floor": 0.125})).split("\n")
    assert said == [
        "Figure: across: rank; up: error, logarithmic",
        "rank  LoRA   VeRA",
        "1      0.5      3",
        "2     0.25  0.001",
        "rank  full",
        "1        7",
        "4        8",
        "floor: 0.125",
    ]


def test_a_long_line_is_said_by_some_of_its_points_both_ends_among_them() -> None:
    said = repr(figures.fit_curve({"a": np.arange(1, 301)})).split("\n")[2:]
    assert len(said) == MOST_POINTS
    assert said[0].split() == ["0", "1"] and said[-1].split() == ["299", "300"]


def test_matrices_say_their_entries_or_their_range() -> None:
    said = repr(figures.heatmaps({"small": [[1, -2], [0, 3]], "large": np.arange(400).reshape(20, 20)}))
    assert [line.split() for line in said.split("\n")[1:3]] == [["1", "-2"], ["0", "3"]]
    assert said.endswith("large\n20 x 20 values from 0 to 399")


def test_axes_with_names_say_them() -> None:
    figure, axis = new_figure(3.0)
    axis.plot([0.1, 0.2], [0, 1], "o", label="_none")
    axis.set(yticks=[0, 1], yticklabels=["SST-2", "CoLA"], xlabel=r"$\Delta W_{1}$")
    assert repr(figure) == "Figure: across: ΔW_1\n(0.1, SST-2) (0.2, CoLA)"


def test_what_has_no_name_is_cut_and_counted() -> None:
    figure, axis = new_figure(3.0)
    for i in range(MOST_LINES + 3):
        axis.plot([i], [i], label="_run")
    assert repr(figure).endswith(f"({MOST_LINES - 1}, {MOST_LINES - 1})\nand 3 more")


def test_a_drawing_says_its_words_once() -> None:
    said = repr(figures.composition(vbank.LoRA(2), {"query": (8, 8), "up": (16, 8)}))
    assert said.startswith("Figure: query; A 2 × 8; B 8 × 2; ΔW 8 × 8; up; B 16 × 2; ΔW 16 × 8; Equal colour")


def test_an_empty_figure_says_what_matplotlib_says() -> None:
    assert repr(new_figure(3.0)[0]).startswith("<Told size")


@pytest.mark.parametrize(("rank", "now"), [(2, "A 2 × 8; B 8 × 2"), (16, "refused: too large")])
def test_a_control_says_what_it_shows_at_first(rank: int, now: str) -> None:
    def draw(rank: int) -> object:
        if rank > 8:
            raise ValueError("refused: too large")
        return figures.composition(vbank.LoRA(rank), {"query": (8, 8)})

    said = repr(figures.explore(draw, alt="A, B and the update of one layer", start={"rank": rank}, rank=[2, 16]))
    head, shown, rest = said.split("\n", 2)
    assert head == "control (rank: 2, 16)" and shown == f"Now: rank {rank}."
    assert now in rest


def test_the_simplex_says_what_it_mixes() -> None:
    control = figures.simplex([[1, 0], [0, 1], [-1, 0]], [0.0, 0.0, -3.0], top_k=2, alt="three vectors of a bank")
    head, _, *vectors, u = repr(control).split("\n")
    assert head == "simplex of 3 bank vectors, k = 2"
    assert [line.split()[-1] for line in vectors] == ["0.50", "0.50", "0.00"]
    assert u.split() == ["u", "0.50", "0.50"]
