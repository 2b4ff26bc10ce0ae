"""A paper's table of results as dots with their spread, the ledger's runs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vbank.figures.palette import METHOD_COLOURS, METHOD_MARKERS, new_figure

if TYPE_CHECKING:
    from vbank.tables import Cell

OTHERS = METHOD_COLOURS["full"]  # methods that the book does not treat share one grey
ROW, HEAD = 0.27, 0.85  # inches


def paper_table(cells: Sequence[Cell], across: int = 2) -> Figure:
    """One panel a column of the table, one line a row: the paper's score hollow, ours filled below it.

    Args:
        cells: of one table, as `vbank.tables.beside` gives them, or some of its columns or rows.
        across: panels side by side.

    Bars reach as far as the paper's ± and our sample deviation.

    Raises:
        ValueError: no cells.
    """
    if not cells:
        raise ValueError("no cells to draw; give at least one")
    columns = list(dict.fromkeys(cell.score.column for cell in cells))
    across = min(across, len(columns))
    down = -(-len(columns) // across)
    rows = max(len(_places([cell for cell in cells if cell.score.column == column])) for column in columns)
    figure, axes = new_figure(down * (ROW * rows + HEAD), nrows=down, ncols=across, squeeze=False, sharey=True)
    panels = axes.flatten()
    for axis, column in zip(panels, columns, strict=False):
        _panel(axis, [cell for cell in cells if cell.score.column == column])
        axis.set_title(column, loc="left")
    for axis in panels[len(columns) :]:
        axis.set_axis_off()
    paper = Line2D([], [], ls="", marker="o", mfc="white", color=OTHERS, label="paper")
    ours = Line2D([], [], ls="", marker="o", color=OTHERS, label="ledger")
    filled = any(cell.ours is not None for cell in cells)
    figure.legend(handles=[paper, ours] if filled else [paper], loc="outside upper center", ncols=2)
    return figure


def _places(cells: Sequence[Cell]) -> list[str | Cell]:
    """What stands on the lines of a panel, from top to bottom: its cells, of several blocks each below its name."""
    if len({cell.score.block for cell in cells}) < 2:
        return list(cells)
    places: list[str | Cell] = []
    for row, cell in enumerate(cells):
        if cell.score.block and (not row or cell.score.block != cells[row - 1].score.block):
            places.append(cell.score.block)
        places.append(cell)
    return places


def _panel(axis: Axes, cells: Sequence[Cell]) -> None:
    """One column of the table."""
    places, labels = _places(cells), []
    for row, cell in enumerate(places):
        if isinstance(cell, str):
            labels.append(cell)
            continue
        score = cell.score
        colour, marker = METHOD_COLOURS.get(score.colour, OTHERS), METHOD_MARKERS.get(score.colour) or "o"
        kind: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 7, "lw": 1.5, "capsize": 2}
        axis.errorbar(score.value, row - 0.18 * (cell.ours is not None), xerr=score.spread, mfc="white", **kind)
        if cell.ours is not None:
            axis.errorbar(cell.ours, row + 0.18, xerr=cell.deviation, zorder=4, **kind)
        labels.append(f"{score.label} ({score.params})" if _several(cells, cell) else score.label)
    axis.set_ylim(len(places) - 0.4, -0.6)
    axis.tick_params(labelsize=11)
    axis.locator_params(axis="x", nbins=4)
    shown = axis.set_yticks(range(len(places)), labels)
    for tick, place in zip(shown, places, strict=True):
        tick.label1.set_fontweight("bold" if isinstance(place, str) else "normal")


def _several(cells: Sequence[Cell], cell: Cell) -> bool:
    """Whether the table has rows of one name, which then differ in their size."""
    same = [c for c in cells if (c.score.block, c.score.label) == (cell.score.block, cell.score.label)]
    return len(same) > 1 and bool(cell.score.params)
