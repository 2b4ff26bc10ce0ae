"""The visual language: colours that everybody can tell apart, reproducible files, honest axes."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest

from vbank import figures

# Linear RGB -> linear RGB, severity 1 (Machado, Oliveira and Fernandes 2009).
SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    xyz = RGB_TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_can_be_told_apart(sight):
    for (one, a), (two, b) in itertools.combinations(figures.METHOD_COLOURS.items(), 2):
        distance = np.linalg.norm(cielab(SIGHT[sight] @ linear(a)) - cielab(SIGHT[sight] @ linear(b)))
        assert distance > 10, f"{one} and {two} look alike under {sight}: CIELAB distance {distance:.1f}"


def test_colours_have_contrast_on_white():
    for method, colour in figures.METHOD_COLOURS.items():
        contrast = 1.05 / (RGB_TO_XYZ[1] @ linear(colour) + 0.05)
        assert contrast >= 3, f"{method}: contrast {contrast:.2f}"


def test_colour_is_never_the_only_sign():
    markers = [figures.METHOD_MARKERS[method] for method in figures.METHOD_COLOURS]
    assert len(set(markers)) == len(markers)


SHOOTOUT = [
    {
        "method": method,
        "trainable": 20 * rank,
        "stored": 10.5 * rank,
        "mse": [0.5 / rank, 0.4 / rank, 0.9 / rank],
    }
    for method in ("SVD", "LoRA", "VB-LoRA")
    for rank in (3, 1, 2)
]
CURVES = [
    {
        "method": "VeRA",
        "seed": seed,
        "curve": [{"epoch": e, "accuracy": 0.5 + 0.1 * e + 0.01 * seed} for e in (1, 2)],
    }
    for seed in (0, 1, 2)
]
SIZES = [
    {"method": method, "stored": stored, "accuracy": accuracy + 0.01 * seed}
    for method, stored, accuracy in (("full", 2.3e7, 0.9), ("LoRA", 3.3e5, 0.88), ("VB-LoRA", 1.4e4, 0.87))
    for seed in (0, 1, 2)
]
LINE = [1, 2, 4], [1.0, 2.0, 4.0]
DRAWINGS = {
    "shootout": lambda: figures.shootout(SHOOTOUT),
    "learning_curves": lambda: figures.learning_curves(CURVES),
    "accuracy_by_size": lambda: figures.accuracy_by_size(SIZES, error=0.012),
    "copy_cost": lambda: figures.copy_cost([("full", 7e11, "full"), ("LoRA", 3e8, "LoRA")]),
    "singular_values": lambda: figures.singular_values({"noise": [4.0, 2.0, 1.0]}),
    "heatmaps": lambda: figures.heatmaps({"a": np.eye(3), "b": -np.eye(3)}),
    "fit_curve": lambda: figures.fit_curve({"loss": [1.0, 0.1]}, floor=0.05),
    "rank_sweep": lambda: figures.rank_sweep([1, 2], {"LoRA": [0.2, 0.1], "SVD": [0.1, 0.05]}, true_rank=2),
    "storage_by_users": lambda: figures.storage_by_users([1, 1000], [("full", 0, 1e9, "full")]),
    "lines": lambda: figures.lines(
        {"LoRA": LINE, "shared": (*LINE, [0, 1, 1], [2, 3, 5])}, "x", "y", reference={"a": 1}
    ),
    "bars": lambda: figures.bars({"VeRA": 3.2, "only d": (2.5, 0.5)}, "points", reference={"SVD": 3}),
    "low_rank_factors": figures.low_rank_factors,
    "two_paths": figures.two_paths,
    "map_of_methods": figures.map_of_methods,
}


def svg(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=figures.SVG_METADATA)
    return file.getvalue()


@pytest.mark.parametrize("name", DRAWINGS)
def test_svg_is_the_same_byte_for_byte(name):
    first, second = svg(DRAWINGS[name]()), svg(DRAWINGS[name]())
    assert first == second
    assert len(first) < 200_000
    assert b"<dc:date>" not in first


@pytest.mark.parametrize("name", DRAWINGS)
def test_type_is_readable_on_a_phone(name):
    figure = DRAWINGS[name]()
    assert figure.get_figwidth() == figures.WIDTH
    sizes = [text.get_fontsize() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))]
    assert min(sizes) >= 11


def test_shootout_draws_the_records():
    figure = figures.shootout(SHOOTOUT)
    for axis, size in zip(figure.axes, ("trainable", "stored"), strict=True):
        assert axis.get_xscale() == axis.get_yscale() == "log"
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert set(lines) == {"SVD floor", "LoRA", "VB-LoRA"}
        for label, line in lines.items():
            rows = [r for r in SHOOTOUT if r["method"] == label.removesuffix(" floor")]
            rows.sort(key=lambda row: row[size])
            np.testing.assert_allclose(line.get_xdata(), [row[size] for row in rows])
            np.testing.assert_allclose(line.get_ydata(), [np.median(row["mse"]) for row in rows])


def test_learning_curves_draw_every_run_and_the_median():
    (axis,) = figures.learning_curves(CURVES).axes
    *runs, median = axis.get_lines()
    assert len(runs) == 3
    for run, record in zip(runs, CURVES, strict=True):
        np.testing.assert_allclose(run.get_ydata(), [point["accuracy"] for point in record["curve"]])
    np.testing.assert_allclose(median.get_ydata(), [0.61, 0.71])
    assert median.get_label() == "VeRA"


def test_copy_cost_draws_the_bytes():
    (axis,) = figures.copy_cost([("full", 7e11, "full"), ("LoRA", 3e8, "LoRA")]).axes
    assert [bar.get_width() for bar in axis.patches] == [7e11, 3e8]
    assert [text.get_text() for text in axis.texts] == ["700 GB", "300 MB"]


def test_storage_by_users_adds_what_is_kept_once():
    (axis,) = figures.storage_by_users([1, 10], [("LoRA", 100, 5, "LoRA")]).axes
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), [105, 150])


def test_heatmaps_share_one_scale():
    figure = figures.heatmaps({"a": np.eye(2), "b": -3 * np.eye(2)})
    images = [image for axis in figure.axes for image in axis.get_images()]
    np.testing.assert_array_equal(images[1].get_array(), -3 * np.eye(2))
    assert {image.get_clim() for image in images} == {(-3.0, 3.0)}


def test_lines_take_the_methods_colours_and_leave_them_to_no_other():
    figure = figures.lines({"LoRA": LINE, "mean": LINE, "SVD": LINE, "ours": LINE}, colours={"ours": "VeRA"}, logy=True)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["LoRA"].get_color() == figures.METHOD_COLOURS["LoRA"]
    assert lines["LoRA"].get_marker() == figures.METHOD_MARKERS["LoRA"]
    assert lines["ours"].get_color() == figures.METHOD_COLOURS["VeRA"]
    assert lines["SVD"].get_linestyle() == "--"
    assert len({line.get_color() for line in lines.values()}) == 4
    assert figure.axes[0].get_yscale() == "log"


def test_lines_draw_bands_and_levels():
    (axis,) = figures.lines({"VeRA": (*LINE, [0, 1, 3], [2, 3, 5])}, reference={"head-only": 2.5}, logx=True).axes
    np.testing.assert_allclose(axis.collections[0].get_datalim(axis.transData).extents[[1, 3]], [0, 5])
    assert [line.get_label() for line in axis.get_lines()] == ["VeRA", "head-only"]
    assert set(axis.get_lines()[1].get_ydata()) == {2.5}
    assert axis.get_xscale() == "log"


def test_bars_stand_from_top_to_bottom_with_their_values():
    (axis,) = figures.bars({"LoRA": 90.25, "only b": (-12, 3)}).axes
    assert [bar.get_width() for bar in axis.patches] == [90.25, -12]
    assert axis.patches[0].get_y() > axis.patches[1].get_y()
    assert [text.get_text() for text in axis.texts] == ["90.2", "-12"]
    np.testing.assert_allclose(axis.get_lines()[0].get_xdata(), [-15, -9])


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.lines({}), "no series"),
        (lambda: figures.bars({}), "no bars"),
        (lambda: figures.lines({"a": ([1, 2], [1])}), "series 'a'.*one length"),
        (lambda: figures.lines({"a": ([1], [1], [0])}), "series 'a'"),
        (lambda: figures.lines({"a": LINE}, colours={"b": "red"}), "'b', which is not drawn"),
        (lambda: figures.lines({str(i): LINE for i in range(9)}), "no colour left for '6'"),
    ],
)
def test_refusals(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.54 kB"), (302e6, "302 MB"), (999.7e6, "1 GB"), (275e12, "275 TB")],
)
def test_readable_bytes(size, text):
    assert figures.readable_bytes(size) == text


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="LoHa.*known: SVD"):
        figures.shootout([{"method": "LoHa", "trainable": 1, "stored": 1, "mse": [1.0]}])


def test_no_records():
    with pytest.raises(ValueError, match="no records"):
        figures.learning_curves([])


def test_importing_vbank_leaves_matplotlib_alone():
    code = "import sys, vbank; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
