"""The geometry of VB-LoRA's top-k admixture for sub-vectors of length two, to be taken in hand."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vbank.figures.blocks import bank_colours
from vbank.figures.controls import asset, png
from vbank.figures.palette import METHOD_COLOURS, new_figure
from vbank.figures.spoken import table

BANK = ((-0.85, -0.55), (-0.55, 0.75), (0.05, 0.95), (0.8, 0.6), (0.9, -0.35), (0.25, -0.9), (-0.2, 0.1))
LOGITS = (0.4, 1.6, -0.6, 1.1, 0.0, 0.7, -1.2)
ALT = (
    "Bank vectors as numbered points in the plane and the sub-vector u as a diamond. With k = 1 it lies on a point,"
    " with k = 2 on the line between two, with k = 3 in the triangle of three. Points, sub-vector and logits move."
)


def simplex(
    bank: Sequence[tuple[float, float]] = BANK,
    logits: Sequence[float] = LOGITS,
    top_k: int = 2,
    alt: str = ALT,
) -> Simplex:
    """The sub-vector u = sum_s w_s alpha_s, w = softmax(top-k of the logits), in the plane (Li et al. 2024, eq. 3.3).

    The reader drags the bank vectors, the logits and the sub-vector itself, with mouse, finger or arrow keys; the
    sub-vector goes to the reachable point nearest to the hand: a vertex for k = 1, an edge for k = 2, a face for
    k = 3. For k = 1 each bank vector's region is coloured: the choice jumps where a border is crossed. Needs no kernel
    and no network; without scripts a still picture stands in its place.

    Args:
        bank: (h, 2), the bank vectors, each entry within [-1, 1]; 3 to 12 of them.
        logits: (h,), one logit a bank vector, within [-3, 3].
        top_k: k at the start: 1, 2 or 3.
        alt: what to see, for readers who don't.

    Raises:
        ValueError: sizes or values outside these ranges.
    """
    points, values = np.asarray(bank, dtype=float), np.asarray(logits, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or not 3 <= len(points) <= 12:
        raise ValueError(f"simplex: the bank has the shape {points.shape}; give 3 to 12 vectors of length 2")
    if values.shape != (len(points),):
        raise ValueError(f"simplex: {values.size} logits for {len(points)} bank vectors; give one a vector")
    if np.abs(points).max() > 1 or np.abs(values).max() > 3:
        raise ValueError("simplex: a bank entry lies outside [-1, 1] or a logit outside [-3, 3]; scale them")
    if top_k not in (1, 2, 3):
        raise ValueError(f"simplex: top_k is {top_k!r}; the picture shows 1, 2 or 3")
    return Simplex(points, values, top_k, alt)


class Simplex:
    """What `simplex` returns; shows itself as HTML."""

    def __init__(self, bank: Any, logits: Any, top_k: int, alt: str) -> None:
        self.bank, self.logits, self.top_k, self.alt = bank, logits, top_k, alt

    def mix(self) -> tuple[Any, Any, Any]:
        """Indices and weights (k,) of the chosen vectors, in descending order, and the sub-vector (2,)."""
        chosen = np.argsort(-self.logits, kind="stable")[: self.top_k]
        weights = np.exp(self.logits[chosen] - self.logits[chosen[0]])
        weights /= weights.sum()
        return chosen, weights, weights @ self.bank[chosen]

    def still(self) -> Figure:
        """The picture at the start, for a reader without scripts."""
        figure, axis = new_figure(5.0)
        colour, (chosen, weights, u) = METHOD_COLOURS["VB-LoRA"], self.mix()
        if self.top_k > 1:
            for one, two in itertools.combinations(self.bank, 2):
                axis.plot(*zip(one, two, strict=True), color="#b08f84", lw=0.8, zorder=1)
        axis.fill(*self.bank[chosen].T, fc=(*_rgb(colour), 0.28), ec=colour, lw=4, zorder=2)
        fills, inks = vector_colours(len(self.bank))
        for s, (point, fill, ink) in enumerate(zip(self.bank, fills, inks, strict=True)):
            axis.plot(*point, "o", ms=22, mfc=fill, mec=colour if s in chosen else "black", mew=3 if s in chosen else 1)
            axis.text(*point, str(s + 1), color=ink, ha="center", va="center", fontsize=12)
        for s, weight in zip(chosen, weights, strict=True):
            axis.annotate(f"{weight:.2f}", self.bank[s], (20, 0), textcoords="offset points", va="center")
        axis.plot(*u, "D", ms=16, mfc="black", mec="white", zorder=4)
        axis.text(*u, "u", color="white", ha="center", va="center", fontsize=12, zorder=5)
        axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xlabel="first entry", ylabel="second entry")
        return figure

    @property
    def html(self) -> str:
        """The picture for a page, with its script."""
        fills, inks = vector_colours(len(self.bank))
        state = {
            "bank": self.bank.tolist(),
            "logits": self.logits.tolist(),
            "k": self.top_k,
            "colours": fills,
            "inks": inks,
            "alt": self.alt,
        }
        still = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{png(self.still())}">'
        return "\n".join(
            [
                f'<div class="vbank-control vbank-simplex" data-state="{html.escape(json.dumps(state))}">',
                f"<style>{asset('explore.css')}\n{asset('simplex.css')}</style>",
                f'{still}<div class="vbank-live" hidden></div>',
                f"<script>{asset('simplex.js')}</script></div>",
            ]
        )

    def __repr__(self) -> str:
        chosen, weights, u = self.mix()
        shares = dict(zip(np.asarray(chosen).tolist(), np.asarray(weights).tolist(), strict=True))
        rows = [
            [str(s + 1), *(f"{entry:.2f}" for entry in point), f"{self.logits[s]:.2f}", f"{shares.get(s, 0):.2f}"]
            for s, point in enumerate(self.bank)
        ]
        rows.append(["u", *(f"{entry:.2f}" for entry in u), "", ""])
        head = ["vector", "first entry", "second entry", "logit", "weight"]
        return f"simplex of {len(self.bank)} bank vectors, k = {self.top_k}\n{table(head, rows)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self.html}


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def vector_colours(h: int) -> tuple[list[str], list[str]]:
    """A fill for each bank vector, as in `composition`, and black or white for the number on it."""
    fills = bank_colours(h)
    inks = []
    for fill in fills:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(fill)]
        inks.append("#ffffff" if np.dot((0.2126, 0.7152, 0.0722), linear) < 0.18 else "#000000")
    return fills, inks
