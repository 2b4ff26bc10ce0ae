"""The book's style: a colour and a marker a method, and matplotlib's defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vbank.figures.spoken import Told

# Distinct for normal, red-blind and green-blind sight, and at least 3:1 on white (tests/figures/test_figures.py).
METHOD_COLOURS: dict[str, str] = {
    "SVD": "#000000",
    "full": "#5f5f5f",
    "head-only": "#949494",
    "BitFit": "#693cff",
    "LoRA": "#0072b2",
    "VeRA": "#d55e00",
    "Tied-LoRA": "#009e73",
    "PRoLoRA": "#c2569b",
    "VB-LoRA": "#7b1e00",
}
# Colour is never the only sign: each method also has its own marker.
METHOD_MARKERS: dict[str, str] = {
    "SVD": "",
    "full": "P",
    "head-only": "X",
    "BitFit": "v",
    "LoRA": "o",
    "VeRA": "^",
    "Tied-LoRA": "s",
    "PRoLoRA": "D",
    "VB-LoRA": "*",
}
FROZEN = "#c9c9c9"
WIDTH = 6.5  # inches; with 11-point type still readable on a phone
SVG_METADATA = {"Date": None, "Creator": None}


def style() -> None:
    """Sets matplotlib's defaults for the book; notebooks show SVG with no date and no random ids."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (WIDTH, 4.0),
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "font.family": "DejaVu Sans",
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "lines.markersize": 7,
            "svg.hashsalt": "vbank",
            "svg.fonttype": "path",
        }
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata=SVG_METADATA, bbox_inches=None)


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white: strength 1 is the colour itself, 0 is white."""
    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue


def new_figure(height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of the book's width, and its axes."""
    style()
    figure = Told(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def colour_of(method: str) -> str:
    """The method's colour; ValueError if it has none."""
    if method not in METHOD_COLOURS:
        raise ValueError(f"no colour for the method {method!r}; known: {', '.join(METHOD_COLOURS)}")
    return METHOD_COLOURS[method]


def label_rows(axis: Axes, rows: Sequence[tuple[str, str]], xlabel: str) -> list[int]:
    """Labels the vertical axis from top to bottom, rows in groups with a heading; returns the height of each row.

    Args:
        axis: whose rows, drawn at these heights, share one horizontal axis.
        rows: group and label.
        xlabel: of the horizontal axis.
    """
    names: list[str] = []
    headings, heights = [], []
    for place, (group, label) in enumerate(rows):
        if place == 0 or group != rows[place - 1][0]:
            headings.append(len(names))
            names.append(group)
        heights.append(len(names))
        names.append(label)
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlabel=xlabel)
    for heading in headings:
        axis.get_yticklabels()[heading].set_fontweight("bold")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    return heights


def new_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose coordinates count cells, so that sizes on the page are to scale."""
    style()
    figure = Told(figsize=(WIDTH, WIDTH * height / width))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axis.set_axis_off()
    return figure, axis
