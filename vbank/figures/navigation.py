"""The map of the five methods as the way to their chapters: a drawing whose parts are links."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex

from vbank.figures.controls import asset
from vbank.figures.drawings import pick, prolora_colours, rolled
from vbank.figures.palette import METHOD_COLOURS, tint

ROWS, RANK = 6, 4  # of the toy: B is 6 x 4 and A is 4 x 6 cells, as in `map_of_methods`
GAP = 0.6  # between B and A
TIED = "#2c6e58"  # Tied-LoRA's pair, as in `map_of_methods`
LABEL = (
    "Five methods, each with the factors B and A of two layers; equal colour means the same parameter, hatched means"
    " frozen and random."
)


@dataclass(frozen=True)
class Stop:
    """One method on the map: the chapter that it links to, its answer, and the question that it leaves open."""

    method: str
    chapter: str
    answer: str
    question: str


STOPS = (
    Stop("LoRA", "derivations/lora", "each layer its own pair", "Must every number be trained?"),
    Stop("VeRA", "derivations/vera", "one frozen pair, random, scaled in each layer", "What if the pair could learn?"),
    Stop(
        "Tied-LoRA", "derivations/tied_lora", "one trained pair, scaled in each layer", "Can a layer share with itself?"
    ),
    Stop(
        "PRoLoRA", "derivations/prolora", "a small chunk a layer, repeated and rotated", "Can all share small pieces?"
    ),
    Stop(
        "VB-LoRA",
        "derivations/vb_lora_divide",
        "all pieces mixed from one bank of vectors",
        "What does the bank learn?",
    ),
)

Cell = tuple[float, float, float, float, Any]  # x, y, width, height in cells, and the colour; None is hatched


def navigation() -> Navigation:
    """The five methods in the order of the questions that lead from one to the next; each is a link to its chapter.

    Side by side where there is room, one below the other on a phone. The drawing stands on white in either theme, and
    the keyboard reaches its links. The links lead to notebooks; in the rendered book they lead to pages.
    """
    return Navigation()


class Navigation:
    """What `navigation` returns; shows itself as HTML, and as text where there is none."""

    @property
    def html(self) -> str:
        return "\n".join(
            [
                '<nav class="vbank-map" aria-label="Map of the five methods">',
                f"<style>{asset('navigation.css')}</style>",
                wide(),
                narrow(),
                "</nav>",
            ]
        )

    def __repr__(self) -> str:
        lines = [LABEL]
        for stop in STOPS:
            lines += [f"{stop.method} ({stop.chapter}): {stop.answer}.", f"    {stop.question}"]
        return "\n".join(lines[:-1])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html}


def wide() -> str:
    """Five tiles side by side, the open questions below them."""
    width, pitch, tile = 760, 154, 144
    parts = []
    for place, stop in enumerate(STOPS):
        x = place * pitch
        inside = [_tile(stop, x, tile, 228), _text(stop.method, x + 12, 34, "name")]
        for layer in range(2):
            inside += _drawn(layer_cells(stop.method, layer), x + 12, 48 + 60 * layer, 9)
        inside += _lines(stop.answer, 16, x + 12, 184, 17)
        parts.append(_link(stop, inside))
        if place < len(STOPS) - 1:
            parts += _lines(f"{stop.question} →", 17, x + 12, 252, 17, "question")
    return _svg("wide", width, 274, parts)


def narrow() -> str:
    """Five tiles one below the other, the open questions between them."""
    width, pitch, tile = 358, 126, 96
    parts = []
    for place, stop in enumerate(STOPS):
        y = place * pitch
        inside = [_tile(stop, 0, width, tile, y), _text(stop.method, 190, y + 30, "name")]
        for layer in range(2):
            inside += _drawn(layer_cells(stop.method, layer), 12 + 86 * layer, y + 34, 6.2)
        inside += _lines(stop.answer, 19, 190, y + 51, 18)
        parts.append(_link(stop, inside))
        if place < len(STOPS) - 1:
            parts.append(_text(f"↓ {stop.question}", 12, y + tile + 20, "question"))
    return _svg("narrow", width, pitch * len(STOPS) - (pitch - tile), parts)


def layer_cells(method: str, layer: int) -> Iterator[Cell]:
    """B and A of one layer of the toy."""
    right = RANK + GAP
    strength = (0.95, 0.4)[layer]
    if method == "LoRA":
        colour = tint(METHOD_COLOURS[method], strength)
        yield from _block(0, 0, ROWS, RANK, colour)
        yield from _block(right, 1, RANK, ROWS, colour)
    elif method in ("VeRA", "Tied-LoRA"):
        own = tint(METHOD_COLOURS[method], strength)
        pair = None if method == "VeRA" else TIED
        yield from _block(0, 0, ROWS, 1, own)
        yield from _block(1.2, 0, ROWS, RANK, pair)
        yield from _block(right + 1, 1, RANK, 1, own)
        yield from _block(right + 2.2, 1, RANK, ROWS, pair)
    elif method == "PRoLoRA":
        unshared, *ranks = prolora_colours(((0.98, 0.62, 0.34), (0.8, 0.48, 0.2))[layer], layer)
        for copy in range(3):
            for rank, colour in enumerate([unshared, *rolled(ranks, copy)]):
                yield from _block(rank, 2 * copy, 2, 1, colour)
                yield from _block(right + 2 * copy, 1 + rank, 1, 2, colour)
    else:
        bank = [METHOD_COLOURS["VB-LoRA"], "#c65a2e", "#e8a66f", "#f6dcc5", "#4d4d4d"]
        for rank in range(RANK):
            for part in range(3):
                left, lower = (bank[i] for i in pick(rank, part, 0, layer, len(bank)))
                yield rank, 2 * part, 0.5, 2, left
                yield rank + 0.5, 2 * part, 0.5, 2, lower
                upper, lower = (bank[i] for i in pick(rank, part, 1, layer, len(bank)))
                yield right + 2 * part, 1 + rank, 2, 0.5, upper
                yield right + 2 * part, 1.5 + rank, 2, 0.5, lower


def _block(x: float, y: float, rows: int, columns: int, colour: Any) -> Iterator[Cell]:
    if colour is None:
        yield x, y, columns, rows, None
        return
    for row in range(rows):
        for column in range(columns):
            yield x + column, y + row, 1, 1, colour


def _drawn(cells: Iterator[Cell], x: float, y: float, size: float) -> list[str]:
    """Rectangles, those of one colour as one path, with white lines between cells."""
    paths: dict[str, list[str]] = {}
    for left, top, width, height, colour in cells:
        fill = "url(#vbank-hatch)" if colour is None else to_hex(colour)
        place = f"M{x + size * left:g} {y + size * top:g}"
        paths.setdefault(fill, []).append(f"{place}h{size * width:g}v{size * height:g}h{-size * width:g}z")
    return [f'<path d="{"".join(shapes)}" fill="{fill}"/>' for fill, shapes in paths.items()]


def _svg(kind: str, width: int, height: int, parts: list[str]) -> str:
    hatch = (
        '<defs><pattern id="vbank-hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
        '<path d="M-1 1L1 -1M0 5L5 0M4 6L6 4" stroke="#6f6f6f" stroke-width="0.8"/></pattern></defs>'
    ).replace("vbank-hatch", f"vbank-hatch-{kind}")
    inside = "\n".join(parts).replace("vbank-hatch", f"vbank-hatch-{kind}")
    return (
        f'<svg class="vbank-{kind}" viewBox="-2 -2 {width + 4} {height + 4}" role="group" aria-label="{LABEL}">'
        f"{hatch}\n{inside}</svg>"
    )


def _link(stop: Stop, inside: list[str]) -> str:
    label = html.escape(f"{stop.method}: {stop.answer}")
    return f'<a href="{stop.chapter}.ipynb" aria-label="{label}">{"".join(inside)}</a>'


def _tile(stop: Stop, x: float, width: float, height: float, y: float = 0) -> str:
    colour = METHOD_COLOURS[stop.method]
    return (
        f'<rect class="vbank-tile" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<rect x="{x}" y="{y}" width="{width}" height="7" rx="3" fill="{colour}"/>'
    )


def _lines(text: str, columns: int, x: float, y: float, step: float, kind: str = "answer") -> list[str]:
    lines = textwrap.wrap(text, columns)
    return [_text(line, x, y + step * number, kind) for number, line in enumerate(lines)]


def _text(text: str, x: float, y: float, kind: str) -> str:
    return f'<text class="vbank-{kind}" x="{x}" y="{y}">{html.escape(text)}</text>'
