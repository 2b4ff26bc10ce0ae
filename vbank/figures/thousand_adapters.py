"""The drawing of the chapter *A thousand adapters on one model*: one pass, and where each row's factors come from."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from vbank.figures.palette import FROZEN, METHOD_COLOURS, new_canvas, tint

USERS = {"a": 1.0, "b": 0.62, "c": 0.3}  # letter -> strength of the colour
ROWS: tuple[str | None, ...] = ("a", "b", None, "c", "a", "b")
STORE, COLUMNS = 39, 13  # adapters drawn below, most of which nobody names
ROW = 1.5  # height of a row of the batch
TOP = 2.6


def one_pass() -> Figure:
    """A batch of six rows, three users and the base model; beneath it the cache and the store.

    All rows go through the frozen weight together. Each then gets the product with the factors of its own user.
    """
    figure, axis = new_canvas(26, 22)
    for place, user in enumerate(ROWS):
        top = TOP + ROW * place
        _box(axis, 3.4, top, 4.2, ROW - 0.3, user)
        axis.text(3.0, top + 0.6, "base" if user is None else f"user {user}", ha="right", va="center", fontsize=11)
        if user is not None:
            _factors(axis, 15.7, top, user)
            axis.text(15.0, top + 0.6, "+", ha="center", va="center", fontsize=12)
        axis.text(20.9, top + 0.6, "=", ha="center", va="center", fontsize=12)
        _box(axis, 21.6, top, 4.0, ROW - 0.3, user)
    height = ROW * len(ROWS) - 0.3
    axis.add_patch(Rectangle((9.4, TOP), 4.9, height, fc=FROZEN, ec="none"))
    axis.text(11.85, TOP + height / 2, "$W$\nfrozen,\nall rows\nat once", ha="center", va="center", fontsize=12)
    middle = TOP + height / 2
    _arrow(axis, (7.8, middle), (9.3, middle))
    for x, label in ((5.5, "rows $x$"), (11.85, "$Wx$"), (17.6, "own $B(Ax)$"), (23.6, "rows $y$")):
        axis.text(x, TOP - 0.5, label, ha="center", va="bottom", fontsize=12)
    _cache(axis, TOP + height + 2.4)
    _store(axis, TOP + height + 7.0)
    return figure


def _cache(axis: Axes, top: float) -> None:
    axis.add_patch(Rectangle((12.9, top), 12.7, 2.0, fc="none", ec="#444444", lw=1.2))
    for place, user in enumerate(USERS):
        left = 13.3 + 4.1 * place
        axis.text(left + 0.3, top + 1.0, user, ha="center", va="center", fontsize=11)
        _factors(axis, left + 0.8, top + 0.4, user, width=2.9)
    axis.text(12.4, top + 1.0, "cache: factors of recent\nbatches, limited in bytes", ha="right", va="center")
    _arrow(axis, (17.6, top - 0.1), (17.6, top - 2.0))


def _store(axis: Axes, top: float) -> None:
    named = dict(zip((4, 20, 36), USERS, strict=True))
    for number in range(STORE):
        row, column = divmod(number, COLUMNS)
        user = named.get(number)
        x, y = 12.9 + 0.98 * column, top + 0.98 * row
        colour = tint(METHOD_COLOURS["VB-LoRA"], USERS[user]) if user else "white"
        axis.add_patch(Rectangle((x, y), 0.78, 0.78, fc=colour, ec="#888888", lw=0.8))
        if user:
            ink = "white" if USERS[user] > 0.8 else "black"
            axis.text(x + 0.39, y + 0.39, user, ha="center", va="center_baseline", fontsize=11, color=ink)
    axis.text(12.4, top + 1.4, "all adapters, compact:\nbank, indices, weights", ha="right", va="center")
    _arrow(axis, (20.6, top - 0.2), (20.6, top - 2.4))
    axis.text(21.0, top - 1.35, "composed", ha="left", va="center")


def _box(axis: Axes, x: float, y: float, width: float, height: float, user: str | None) -> None:
    colour = FROZEN if user is None else tint(METHOD_COLOURS["VB-LoRA"], USERS[user])
    axis.add_patch(Rectangle((x, y), width, height, fc=colour, ec="#888888", lw=0.8))


def _factors(axis: Axes, x: float, y: float, user: str, width: float = 3.8) -> None:
    """B, tall and narrow, and A, low and wide, in the user's colour."""
    colour = tint(METHOD_COLOURS["VB-LoRA"], USERS[user])
    for left, top, wide, high in ((x, y, 0.4, 1.2), (x + 0.6, y, width - 0.6, 0.4)):
        axis.add_patch(Rectangle((left, top), wide, high, fc=colour, ec="#888888", lw=0.6))


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color="#404040", lw=1.4)
    axis.add_patch(arrow)
