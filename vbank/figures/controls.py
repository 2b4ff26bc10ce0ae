"""Controls: one figure with sliders, in a live notebook and in a page that no kernel serves."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any

from matplotlib.figure import Figure

from vbank.figures.palette import SVG_METADATA, WIDTH, style
from vbank.live import live

MOST_FRAMES = 24
MOST_BYTES = 400_000
HEIGHT = re.compile(r'<svg [^>]*?height="([\d.]+)pt"')


def explore(
    draw: Callable[..., Figure], *, alt: str, start: Mapping[str, Any] | None = None, **choices: Sequence[Any]
) -> Explore:
    """A figure with a slider for each choice; the last expression of a cell.

    Where a live front end serves widgets (JupyterLab, Notebook, Colab), sliders call `draw`. In a stored notebook and
    in the rendered book the same sliders choose among frames drawn beforehand, with no kernel and no network. Without
    scripts the first frame stands alone. VBANK_CONTROLS=frames or =widgets in the environment overrides the guess.

    Args:
        draw: takes one value of each choice by name and returns a figure; the message of a ValueError is shown in the
            figure's place.
        alt: what the figure shows, for readers who don't see it; the present values are added.
        start: values shown first; by default the first of each choice.
        choices: the values of each choice, in the order of the slider.

    Raises:
        ValueError: no choices, more than 24 combinations, a start that is no choice, alt text that is too short,
            or frames of more than 400 kB.
        TypeError: `draw` returns something else than a figure.
    """
    return Explore(draw, alt, dict(start or {}), {name: list(values) for name, values in choices.items()})


class Explore:
    """What `explore` returns; shows itself as HTML or as widgets."""

    def __init__(
        self, draw: Callable[..., Figure], alt: str, start: Mapping[str, Any], choices: Mapping[str, list[Any]]
    ) -> None:
        if not choices or not all(choices.values()):
            raise ValueError("explore: nothing to choose from; give each choice its values, such as rank=[2, 4]")
        self.combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        if len(self.combinations) > MOST_FRAMES:
            raise ValueError(
                f"explore: {len(self.combinations)} combinations of {', '.join(choices)}, and each is a frame that the"
                f" page must hold; give at most {MOST_FRAMES}"
            )
        for name, value in start.items():
            if value not in choices.get(name, []):
                raise ValueError(f"explore: start has {name}={value!r}, which is not among the choices of {name}")
        if len(alt) <= 20:
            raise ValueError(f"explore: alt is {alt!r}; say in a sentence what the figure shows")
        self.draw, self.alt, self.choices = draw, alt.rstrip(" .") + ".", dict(choices)
        self.start = {name: start.get(name, values[0]) for name, values in choices.items()}
        if not live():
            _ = self.html  # an error is the cell's error, not one of its display

    def frame(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The drawing for one value of each choice: {"svg": ...}, or {"refused": message}."""
        try:
            return {"svg": small_svg(self._figure(values))}
        except ValueError as refusal:
            return {"refused": str(refusal)}

    def _figure(self, values: Mapping[str, Any]) -> Figure:
        figure = self.draw(**values)
        if not isinstance(figure, Figure):
            raise TypeError(f"explore: draw returned {type(figure).__name__}; it must return a matplotlib Figure")
        return figure

    def _words(self, values: Mapping[str, Any]) -> str:
        return ", ".join(f"{_words(name)} {_words(value)}" for name, value in values.items())

    @cached_property
    def html(self) -> str:
        """The control for a page: sliders over frames that the page itself holds."""
        frames = [self.frame(values) for values in self.combinations]
        packed = base64.b64encode(zlib.compress(json.dumps(_share_lines(frames)).encode(), 9)).decode()
        first = frames[self.combinations.index(self.start)]
        refused = first.get("refused", "")
        image = "" if refused else f' src="data:image/png;base64,{png(self._figure(self.start))}"'
        alt = f"{self.alt} Now: {self._words(self.start)}."
        # room for the tallest frame, so that what follows the control stays in place
        heights = [float(found[1]) for found in map(HEIGHT.search, (frame.get("svg", "") for frame in frames)) if found]
        shape = f"aspect-ratio: {WIDTH * 72:g} / {max(heights, default=72):g}"
        sliders = []
        for name, values in self.choices.items():
            texts, shown = [_words(value) for value in values], values.index(self.start[name])
            sliders.append(
                f"<label><span>{html.escape(_words(name))}</span>"
                f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{shown}" '
                f'data-name="{html.escape(_words(name))}" data-choices="{html.escape(json.dumps(texts))}" '
                f'aria-valuetext="{html.escape(texts[shown])}"><output>{html.escape(texts[shown])}</output></label>'
            )
        parts = [
            f'<div class="vbank-control vbank-explore" data-alt="{html.escape(self.alt)}" data-frames="{packed}">',
            f"<style>{asset('explore.css')}</style>",
            f'<div class="vbank-sliders" hidden>{"".join(sliders)}</div>',
            f'<p class="vbank-said" aria-live="polite">Shown: {html.escape(self._words(self.start))}.</p>',
            f'<div class="vbank-frame" style="{shape}">',
            f'<img alt="{html.escape(alt)}"{image}{" hidden" if refused else ""}>',
            f'<p class="vbank-refused"{"" if refused else " hidden"}>{html.escape(refused)}</p></div>',
            f"<script>{asset('explore.js')}</script></div>",
        ]
        text = "\n".join(parts)
        if len(text) > MOST_BYTES:
            raise ValueError(
                f"explore: the {len(frames)} frames make {len(text):,} bytes of page; give fewer choices or draw less,"
                f" {MOST_BYTES:,} at most"
            )
        return text

    def widget(self) -> Any:
        """The control for a live notebook: ipywidgets sliders that call `draw`."""
        import ipywidgets

        sliders = {
            name: ipywidgets.SelectionSlider(
                options=[(_words(value), value) for value in values],
                value=self.start[name],
                description=_words(name),
                style={"description_width": "initial"},
            )
            for name, values in self.choices.items()
        }
        place = ipywidgets.HTML()

        def show(change: Any = None) -> None:
            values = {name: slider.value for name, slider in sliders.items()}
            frame = self.frame(values)
            if "refused" in frame:
                place.value = f"<p>{html.escape(frame['refused'])}</p>"
                return
            data = base64.b64encode(frame["svg"].encode()).decode()
            alt = html.escape(f"{self.alt} Now: {self._words(values)}.")
            style = "background:#fff;max-width:100%;height:auto"
            place.value = f'<img alt="{alt}" style="{style}" src="data:image/svg+xml;base64,{data}">'

        for slider in sliders.values():
            slider.observe(show, names="value")
        show()
        return ipywidgets.VBox([*sliders.values(), place])

    def __repr__(self) -> str:
        choices = "; ".join(f"{_words(n)}: {', '.join(map(_words, values))}" for n, values in self.choices.items())
        try:
            now = repr(self._figure(self.start))
        except ValueError as refusal:
            now = str(refusal)
        return f"control ({choices})\nNow: {self._words(self.start)}.\n{now}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if live():
            return self.widget()._repr_mimebundle_() | {"text/plain": repr(self)}
        return {"text/plain": repr(self), "text/html": self.html}


def asset(name: str) -> str:
    """A script or a style sheet that lies beside this file."""
    return files("vbank.figures").joinpath(name).read_text(encoding="utf-8").strip()


def small_svg(figure: Figure) -> str:
    """The figure as SVG with two decimals and no comments: a third smaller, the same to the eye."""
    style()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=SVG_METADATA)
    text = re.sub(r"(?s)<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", "", file.getvalue())
    text = re.sub(r'(?<= d=")[^"]+', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", d[0])), text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _share_lines(frames: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Frames as numbers of lines, so that a line which many frames have is held once."""
    number: dict[str, int] = {}
    short = [
        {"svg": [number.setdefault(line, len(number)) for line in frame["svg"].split("\n")]}
        if "svg" in frame
        else frame
        for frame in frames
    ]
    return {"lines": list(number), "frames": short}


def png(figure: Figure) -> str:
    """The figure for readers without scripts: at most 256 colours."""
    from PIL import Image

    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _words(value: Any) -> str:
    """A name or a value as a reader meets it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
