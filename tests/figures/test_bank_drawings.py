"""Weights by layer and module, usage and the plane, from a log made by hand and from a reader's own adapter."""

import numpy as np
import pytest
import tiny_models
import torch
from IPython.core.formatters import PlainTextFormatter
from recorded import BANK, by_hand
from test_figures import svg

import vbank
from vbank import figures

LOG = by_hand()  # last choices: (0, 2), (1, 3), (3, 2), (1, 2), each with the weights 3/4 and 1/4
CONFIG = vbank.VBLoRA(2, num_vectors=9, vector_length=8, top_k=2, logits_std=1.0)
SHORTEST_FIRST = [2, 1, 0, 4, 3]  # by the norms 3, 2, 1, sqrt 50, 4


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(3)
    model = tiny_models.bert()
    vbank.attach(model, CONFIG, targets="all-linear")
    return model


def bars(axis):
    return axis.patches[0].get_data().values


def test_weights_by_layer_by_hand():
    figure = figures.weights_by_layer(LOG, groups=2)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["block 0", "block 1"]
    sums = np.array([[0.75, 0.75, 0.25, 0.25, 0.0], [0.0, 0.75, 0.5, 0.75, 0.0]])
    for axis, row in zip(figure.axes, sums, strict=True):
        np.testing.assert_allclose(bars(axis), row[SHORTEST_FIRST])
        assert set(axis.lines[0].get_ydata()) == {2 / 5}  # n / h
    numbered = figures.weights_by_layer(LOG, groups=2, order="number", vectors=slice(1, 4))
    np.testing.assert_allclose(bars(numbered.axes[1]), [0.75, 0.5, 0.75])
    assert numbered.axes[1].xaxis.get_major_formatter()(0, None) == "1"
    lines = str(figure).split("\n")
    assert lines[1].split()[:5] == ["block", "0", "2", "0.40", "0.30"]
    assert lines[2].endswith("  1: 0.75, 3: 0.75, 2: 0.50")
    # E[x^2] of a sub-vector is (9 + 1) / 16 / 5 = 1/8, and a group has two: 2 (1/8 - 1/25)
    assert [line.split()[5] for line in lines[1:]] == [f"{0.17**0.5:.2f}"] * 2
    assert axis.patches[1].get_y() == 0.0 and axis.patches[1].get_height() == pytest.approx(2 / 5 + 2 * 0.17**0.5)


def test_weights_by_module_by_hand():
    figure = figures.weights_by_module(LOG, order="number")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["query, A", "query, B"]
    np.testing.assert_allclose(bars(figure.axes[0]), [0.75, 0, 0.5, 0.75, 0])
    np.testing.assert_allclose(bars(figure.axes[1]), [0, 1.5, 0.25, 0.25, 0])


def test_groups_cover_a_model_s_layers_and_modules(bert):
    by_layer, by_module = figures.weights_by_layer(bert, groups=2), figures.weights_by_module(bert)
    titles = [axis.get_title(loc="left") for axis in by_module.axes]
    kinds = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert titles == [f"{kind}, {matrix}" for kind in kinds for matrix in "AB"]
    count = 2 * 2 * (4 * 32 + 2 * 48) // 8  # layers x rank x (in + out) / b
    for figure in (by_layer, by_module):
        assert sum(bars(axis).sum() for axis in figure.axes) == pytest.approx(count)


def test_usage_by_hand():
    figure = figures.bank_usage(LOG)
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [1, 1, 2, 1, 0]  # vectors with usage 0, 1, 2, 3, 4
    p = 2 / 5
    binomial = [5 * ways * p**m * (1 - p) ** (4 - m) for m, ways in enumerate((1, 4, 6, 4, 1))]
    np.testing.assert_allclose(axis.lines[0].get_xdata(), range(5))
    np.testing.assert_allclose(axis.lines[0].get_ydata(), binomial)
    rows = {line[:12].strip(): line[12:].split() for line in str(figure).split("\n")}
    assert rows["mean"] == ["1.60", "1.60"]
    assert rows["deviation"] == ["1.02", "0.98"]  # sqrt(1.04), sqrt(4 p (1 - p))
    assert rows["never used"] == ["1", "0.65"]
    assert (rows["fewest"], rows["most"]) == (["0"], ["3"])


def test_usage_of_many_is_gathered_in_bars_and_loses_none():
    draw = torch.Generator().manual_seed(0)
    indices = torch.rand(1, 4000, 50, generator=draw).topk(2).indices
    log = by_hand(indices, (0,), bank_after=torch.zeros(50, 2), spans=((0, 2000, 4000),), sites=("0",))
    (axis,) = figures.bank_usage(log).axes
    assert len(axis.patches) <= 28
    assert sum(bar.get_height() for bar in axis.patches) == 50
    assert axis.lines[0].get_ydata().sum() == pytest.approx(50, abs=0.1)
    assert sum(bar.get_height() * x for bar, x in zip(axis.patches, axis.lines[0].get_xdata(), strict=True)) == (
        pytest.approx(50 * 160, rel=0.01)
    )


@pytest.mark.parametrize("projection", ["t-sne", "pca"])
def test_plane_joins_who_was_chosen_together(projection):
    figure = figures.bank_plane(LOG, projection=projection)
    (axis,) = figure.axes
    points, bank = (np.transpose(line.get_data()) for line in axis.lines)
    assert (len(points), len(bank)) == (4, 5)
    drawn = {tuple(map(tuple, segment.tolist())) for segment in axis.collections[0].get_segments()}
    assert drawn == {tuple(map(tuple, bank[list(pair)].tolist())) for pair in ((0, 2), (1, 3), (2, 3), (1, 2))}
    assert [text.get_text() for text in axis.texts] == list("01234")
    if projection == "pca":  # linear: a sub-vector divides its edge in the picture as it does in its own space
        chosen = [(0, 2), (1, 3), (3, 2), (1, 2)]
        np.testing.assert_allclose(points, [0.75 * bank[s] + 0.25 * bank[t] for s, t in chosen])
    words = str(figure).split("\n")
    assert (
        words[1].split()[-3:] == ["5", "of", "5"]
        and words[2].split()[-3:] == ["4", "of", "4"]
        and words[3].split()[-1] == "4"
    )
    assert words[4].split()[-1] == "0.000"
    assert (words[5].split()[-1] == "0.000") == (projection == "pca")


def test_another_start_gives_another_t_sne():
    log = many(12, b=6)

    def placed(**start):
        return figures.bank_plane(log, **start).axes[0].lines[0].get_xydata()

    np.testing.assert_array_equal(placed(seed=1), placed(seed=1))
    assert not np.allclose(placed(seed=1), placed(seed=2), atol=1e-3)
    assert not np.allclose(placed(seed=1), placed(), atol=1e-3)


def test_plane_of_one_choice_has_no_edges_and_of_three_has_triangles():
    one = by_hand([[[0], [2], [3], [2]]], (0,))
    assert len(figures.bank_plane(one, projection="pca").axes[0].collections[0].get_segments()) == 0
    three = by_hand([[[0, 1, 2]] * 4], (0,))
    assert len(figures.bank_plane(three, projection="pca").axes[0].collections[0].get_segments()) == 3


def test_a_large_bank_is_drawn_in_one_call():
    log = many(300)  # sub-vector n chooses n and n + 1
    (axis,) = figures.weights_by_layer(log, groups=1, order="number").axes
    assert axis.get_xlabel() == "bank vector (256 of 300)" and len(bars(axis)) == 256
    assert axis.xaxis.get_major_formatter()(255, None) == "299"
    figure = figures.bank_plane(log, projection="pca")
    words = [line.split() for line in str(figure).split("\n")[1:]]
    points, bank = (np.transpose(line.get_data()) for line in figure.axes[0].lines)
    assert words[1] == ["sub-vectors", "128", "of", "300"] and len(points) == 128  # 256 / k of them
    chosen = sorted({(n + j) % 300 for n in np.linspace(0, 299, 128).round().astype(int) for j in (0, 1)})
    assert words[0] == ["bank", "vectors", str(len(chosen)), "of", "300"] and len(bank) == len(chosen)
    assert words[3][-1] == words[4][-1] == "0.000"  # each on the edge of its own two
    assert words[5][-1] == words[6][-1] == "0.75"  # the larger weight, read off a linear picture
    assert words[7][-1] == "100.0%"  # the bank lies in a plane


DRAWINGS = {
    "weights_by_layer": lambda source: figures.weights_by_layer(source, groups=2),
    "weights_by_module": figures.weights_by_module,
    "bank_usage": figures.bank_usage,
    "bank_plane": figures.bank_plane,
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_the_same_byte_for_byte_small_and_legible(name, bert, tmp_path):
    first = svg(DRAWINGS[name](bert))
    vbank.save(bert, tmp_path, form="resumable")
    figure = DRAWINGS[name](tmp_path)
    assert svg(figure) == first  # the folder draws as the model does
    assert len(first) < 200_000
    assert figure.get_figwidth() == figures.WIDTH
    sizes = [text.get_fontsize() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))]
    assert min(sizes) * 360 / (72 * figures.WIDTH) >= 9  # pixels on a phone


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_notebook_holds_the_numbers_beside_the_picture(name, bert):
    figure = DRAWINGS[name](bert)
    assert PlainTextFormatter()(figure) == str(figure)
    head, *rows = str(figure).split("\n")
    assert len(rows) >= 2 and max(map(len, (head, *rows))) <= 110


def many(h, k=2, b=2):
    """A log of one recording in which sub-vector n chooses k vectors from n on, and a bank of h."""
    indices = torch.stack([(torch.arange(k) + n) % h for n in range(h)])[None]
    return by_hand(indices, (0,), bank_after=torch.rand(h, b), spans=((0, 0, h),), sites=("0",))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.weights_by_layer(LOG), "groups is 3 and the adapter is on 2 blocks; give 1 to 2"),
        (lambda: figures.weights_by_layer(LOG, groups=0), "groups is 0"),
        (lambda: figures.weights_by_module(LOG, order="size"), "order is 'size'; choose norm or number"),
        (
            lambda: figures.weights_by_module(many(300), vectors=range(300)),
            "300 vectors do not fit a picture, 256 do; .* with vectors=",
        ),
        (
            lambda: figures.weights_by_module(
                by_hand(sites=[f"m{i}" for i in range(9)], spans=[(0, 1, 1)] * 8 + [(1, 2, 4)])
            ),
            "18 groups do not fit a picture, 16 do: m0, A, m0, B",
        ),
        (lambda: figures.bank_usage(many(4, k=4)), "each sub-vector selects all 4 vectors, so each has the usage 4"),
        (lambda: figures.bank_plane(LOG, projection="umap"), "projection is 'umap'; choose t-sne or pca"),
        (lambda: figures.bank_plane(many(5, b=1)), "vectors of length 1 lie on a line"),
        (
            lambda: figures.bank_plane(many(300), rows=range(0, 300, 2)),
            "300 vectors do not fit a picture, 256 do; give fewer rows",
        ),
        (lambda: figures.bank_plane(many(200, k=20)), "edges do not fit a picture, 1,500 do; give fewer rows"),
    ],
)
def test_refusals(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


@pytest.mark.parametrize("name", DRAWINGS)
def test_another_method_is_refused_by_the_drawing_s_name(name):
    model = tiny_models.bert()
    vbank.attach(model, vbank.VeRA(rank=2), targets="qv")
    drawing = name
    with pytest.raises(ValueError, match=f"{drawing}: adapter 'default' is VeRA, which has no bank"):
        DRAWINGS[name](model)


def test_the_bank_by_hand_is_as_the_tests_say():
    np.testing.assert_array_equal(np.argsort(np.linalg.norm(BANK, axis=1)), SHORTEST_FIRST)
