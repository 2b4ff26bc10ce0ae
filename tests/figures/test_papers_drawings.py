"""A paper's table as dots: a panel a column, a line a row, the paper hollow and the ledger filled."""

import io
from dataclasses import replace

import pytest

from vbank import figures, tables


@pytest.mark.parametrize("name", tables.names())
def test_a_panel_a_column_and_a_line_a_row(name: str) -> None:
    cells = tables.beside(name, []).cells
    columns = list(dict.fromkeys(cell.score.column for cell in cells))
    figure = figures.paper_table(cells)
    titled = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert [axis.get_title(loc="left") for axis in titled] == columns
    labels = [tick.label1 for tick in titled[0].yaxis.get_major_ticks()]
    rows = [label for label in labels if label.get_fontweight() != "bold"]
    assert len(rows) == len(cells) // len(columns)
    assert len({label.get_text() for label in labels if label.get_text()}) >= len(set(columns)) // len(columns)
    assert all(
        label.get_fontsize() >= 11 for axis in titled for label in axis.get_xticklabels() + axis.get_yticklabels()
    )
    assert figure.get_size_inches()[0] == figures.WIDTH
    assert not any(line.get_markerfacecolor() not in ("white", "none") for axis in titled for line in marks(axis))


def marks(axis) -> list:
    return [line for line in axis.lines if line.get_marker() in figures.METHOD_MARKERS.values() and line.get_marker()]


def test_ours_is_filled_in_the_method_s_colour() -> None:
    cells = tables.beside("vb-lora-6", []).cells
    drawn = [replace(cells[0], ours=66.0, deviation=0.5, seeds=(0, 1)), *cells[1:]]
    figure = figures.paper_table(drawn)
    filled = [line for line in marks(figure.axes[0]) if line.get_markerfacecolor() == figures.METHOD_COLOURS["VB-LoRA"]]
    assert [line.get_xdata()[0] for line in filled] == [66.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["paper", "ledger"]


def test_one_block_of_a_table_fits_into_the_book() -> None:
    cells = [cell for cell in tables.beside("vb-lora-1", []).cells if cell.score.block == "BASE"]
    file = io.StringIO()
    figures.paper_table(cells).savefig(file, format="svg", metadata=figures.SVG_METADATA)
    assert len(file.getvalue()) < 200_000


def test_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="no cells to draw"):
        figures.paper_table([])
