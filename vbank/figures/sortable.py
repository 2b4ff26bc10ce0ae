"""Long tables: sorted by any column and searched on the page itself, and as lines of text elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vbank.figures.controls import asset

WIDE = 8  # columns; a page with a table of more is printed across the sheet
ACROSS = "\n@page { size: A4 landscape; }"

Cell = str | int | float | None


def sortable(rows: Sequence[Mapping[str, Cell]], caption: str, formats: Mapping[str, str] | None = None) -> Sortable:
    """A table whose columns a reader sorts by a click or by Enter, and whose rows can be searched.

    Works in a stored notebook and in the rendered book with no kernel and no network. Without scripts the whole table
    stands there in its first order. ``print(table)`` gives it as text.

    Args:
        rows: column -> value, the same columns in each row; the first column names the row. None leaves a cell empty.
        caption: what the table is, in a sentence.
        formats: column -> format specification of its numbers, such as {"score": ".3f"}; by default integers have
            commas between thousands, other numbers four significant digits.

    Raises:
        ValueError: no rows, rows of different columns, a number that is not finite, or a format of no column.

    Example:
        >>> from vbank import figures
        >>> runs = [{"run": "a", "score": 0.51, "bytes": 1200}, {"run": "b", "score": None, "bytes": 900}]
        >>> print(figures.sortable(runs, "Two runs.", {"score": ".3f"}))
        Two runs.
        run  score  bytes
        a    0.510  1,200
        b             900
    """
    return Sortable(rows, caption, dict(formats or {}))


class Sortable:
    """What `sortable` returns; shows itself as HTML, and as text where there is none."""

    def __init__(self, rows: Sequence[Mapping[str, Cell]], caption: str, formats: Mapping[str, str]) -> None:
        if not rows:
            raise ValueError("sortable: no rows; give at least one")
        self.caption, self.columns = caption, list(rows[0])
        for number, row in enumerate(rows):
            if list(row) != self.columns:
                raise ValueError(f"sortable: row {number} has the columns {list(row)}, not {self.columns}")
            for column, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"sortable: row {number} has {column} = {value}; give a finite number, or None")
        if strange := [column for column in formats if column not in self.columns]:
            raise ValueError(f"sortable: formats has {strange[0]!r}, but the columns are {', '.join(self.columns)}")
        self.numeric = [all(not isinstance(row[column], str) for row in rows) for column in self.columns]
        self.cells = [[_shown(row[column], formats.get(column)) for column in self.columns] for row in rows]

    @property
    def html(self) -> str:
        """The table for a page; the script makes its heads buttons and brings the search field."""
        heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        lines = []
        for first, *rest in self.cells:
            cells = "".join(
                f"<td{' class=n' if numeric else ''}>{html.escape(cell)}</td>"
                for cell, numeric in zip(rest, self.numeric[1:], strict=True)
            )
            lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
        caption, wide = html.escape(self.caption), len(self.columns) > WIDE
        return "\n".join(
            [
                f'<div class="vbank-sortable{" vbank-wide" if wide else ""}">',
                f"<style>{asset('sortable.css')}{ACROSS if wide else ''}</style>",
                "<p class=vbank-search hidden>",
                "<label>Rows that contain <input type=search></label> <output></output></p>",
                f"<p class=vbank-caption>{caption}</p>",
                f'<div role="region" tabindex="0" aria-label="{caption}">',
                "<table>",
                f"<thead><tr>{heads}</tr></thead>",
                "<tbody>",
                *lines,
                "</tbody></table></div>",
                f"<script>{asset('sortable.js')}</script></div>",
            ]
        )

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.cells, strict=True)]
        lines = []
        for line in (self.columns, *self.cells):
            places = zip(line, widths, self.numeric, strict=True)
            lines.append("  ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in places).rstrip())
        return "\n".join([self.caption, *lines])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html}


def _shown(value: Cell, specification: str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return format(value, specification or ("," if isinstance(value, int) else ",.4g"))
