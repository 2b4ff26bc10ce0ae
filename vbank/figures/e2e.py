"""Drawings of the chapter *E2E with GPT-2*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.palette import FROZEN, METHOD_COLOURS, METHOD_MARKERS, new_figure

FULL = METHOD_COLOURS["full"]


def subsequence(output: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int]]:
    """Positions (in output, in reference) of one longest common subsequence, from left to right."""
    best = np.zeros((len(output) + 1, len(reference) + 1), dtype=int)  # of the words from (i, j) on
    for i in reversed(range(len(output))):
        for j in reversed(range(len(reference))):
            same = output[i] == reference[j]
            best[i, j] = 1 + best[i + 1, j + 1] if same else max(best[i + 1, j], best[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(output) and j < len(reference):
        if output[i] == reference[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1, j] >= best[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def word_matches(output: Sequence[str], reference: Sequence[str]) -> Figure:
    """Two sentences as columns of words; lines join the words of their longest common subsequence.

    Raises:
        ValueError: a sentence without words.
    """
    if not output or not reference:
        raise ValueError("a sentence has no words; give at least one each")
    pairs = subsequence(output, reference)
    figure, axis = new_figure(0.9 + 0.34 * max(len(output), len(reference)))
    for side, words in enumerate((output, reference)):
        joined = {pair[side] for pair in pairs}
        for row, word in enumerate(words):
            looks = {"color": "black", "weight": "bold"} if row in joined else {"color": FULL, "style": "italic"}
            axis.text(side, -row, word, ha="right" if side == 0 else "left", va="center", **looks)
    for i, j in pairs:
        axis.plot([0.03, 0.97], [-i, -j], "-o", color=METHOD_COLOURS["LoRA"], lw=1.6, markersize=3)
    axis.text(0, 1.2, "output", ha="right", color=FULL)
    axis.text(1, 1.2, "reference", ha="left", color=FULL)
    axis.set(xlim=(-0.9, 1.9), ylim=(-max(len(output), len(reference)) + 0.4, 1.8))
    axis.set_axis_off()
    return figure


def five_scores(scores: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> Figure:
    """One panel a score, one row a system, each panel on a scale of its own.

    Args:
        scores: system -> key -> value; a system that is a method's name takes its colour. A missing value is left out.
        titles: key -> title of its panel; gives the order of the panels.

    Raises:
        ValueError: no system, or no panel.
    """
    if not scores or not titles:
        raise ValueError("nothing to draw; give at least one system and one score")
    names = list(scores)
    figure, axes = new_figure(0.9 + len(titles) * (0.62 + 0.27 * len(names)), nrows=len(titles), squeeze=False)
    for axis, (key, title) in zip(axes.flat, titles.items(), strict=True):
        most = max((each[key] for each in scores.values() if key in each), default=1.0)
        for row, name in enumerate(reversed(names)):
            value = scores[name].get(key)
            if value is None:
                continue
            colour, marker = METHOD_COLOURS.get(name, "black"), METHOD_MARKERS.get(name) or "|"
            axis.plot([0, value], [row, row], "-", color=FROZEN, lw=2)
            axis.plot([value], [row], marker, color=colour, markersize=9, mew=2)
            axis.annotate(f"{value:.3g}", (value, row), (8, 0), textcoords="offset points", va="center", fontsize=11)
        axis.set(yticks=range(len(names)), yticklabels=names[::-1], xlim=(0, 1.15 * most or 1.0))
        axis.set_title(title, loc="left", pad=8)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(axis="y", visible=False)
    return figure
