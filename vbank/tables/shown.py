"""The ledger and the papers' tables beside it as text: HTML for notebooks, through rich for the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vbank import ledger
from vbank.tables import AVERAGE, Apart, Beside, Cell, beside

PLOTS = (".svg", ".png", ".pdf")

NOT_RUN, NO_RECIPE = "·", ""
WIDEST = 200  # characters of a line of plain text


def html(table: Beside) -> str:
    """The paper's line of each method, ours below it, and at the end what stands apart; a wide table scrolls."""
    heads = heading(table)
    lines = [f"<p><strong>{escape(table.paper)}: {escape(table.title)}</strong></p>", '<div style="overflow-x:auto">']
    lines += ['<table class="dataframe" style="font-size:0.85em">', f"<thead>{_line(heads, 'th')}</thead>", "<tbody>"]
    for block, rows in groupby(grouped(table), key=lambda row: row[0].score.block):
        if block:
            lines.append(f'<tr><th colspan="{len(heads)}">{escape(block)}</th></tr>')
        for row in rows:
            lines += [_line(line) for line in both(row, table)]
    told = [escape(note) for note in notes(table)]
    told[-1] += "".join(f"<br><code>{escape(command)}</code>" for command in table.commands)
    lines += ["</tbody>", "</table>", "</div>", _listed(told)]
    if table.apart:
        lines.append("<p>Apart, because model, settings or data are not the paper's:</p>")
        lines.append(_listed([_said(*map(escape, apart(each))) for each in table.apart]))
    return "\n".join(lines)


def _line(cells: Sequence[str], tag: str = "td") -> str:
    """One row, nothing in it broken; the numbers at the right."""
    kept = "padding:0 0.5em;white-space:nowrap"
    left, right = (f'<{tag} style="{kept};text-align:{side}">' for side in ("left", "right"))
    return "<tr>" + "".join(f"{right if i > 1 else left}{escape(c)}</{tag}>" for i, c in enumerate(cells)) + "</tr>"


def _listed(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _said(name: str, model: str, data: str, values: str, seeds: str, why: str) -> str:
    return f"<code>{name}</code>: {model} on {data}: {values} ({seeds}); {why}"


def rich_tables(table: Beside) -> Iterator[Table]:
    """The same for a terminal; the runs that stand apart are a table of their own."""
    shown = Table(title=f"{table.paper}: {table.title}", pad_edge=False)
    for index, head in enumerate(heading(table)):
        shown.add_column(head, justify="right" if index > 1 else "left", no_wrap=index != 1)
    block = None
    for row in grouped(table):
        if row[0].score.block != block:
            block = row[0].score.block
            shown.add_section()
            if block:
                shown.add_row(block)
        for line in both(row, table):
            shown.add_row(*line)
    yield shown
    if table.apart:
        rest = Table(title="Apart: runs that belong into no cell", pad_edge=False)
        for head in ("recipe", "model", "data", "score", "seeds", "in what it differs"):
            rest.add_column(head, overflow="fold")
        for each in table.apart:
            rest.add_row(*apart(each))
        yield rest


def text(table: Beside) -> str:
    """The same as plain text, for readers without pictures."""
    written = io.StringIO()
    console = Console(file=written, width=WIDEST, color_system=None, force_jupyter=False)
    for part in rich_tables(table):
        console.print(part.title)  # in a table's own width it would be broken
        part.box = part.title = None
        console.print(part)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    return "\n".join([*lines, *notes(table), *table.commands])


def sized(table: Beside) -> bool:
    """Whether the paper prints the number of parameters in this table."""
    return any(cell.score.params for cell in table.cells)


def heading(table: Beside) -> list[str]:
    """Method, whose number, parameters where the paper has them, and the table's columns."""
    columns = dict.fromkeys(cell.score.column for cell in table.cells)
    return ["method", "", *(["params"] if sized(table) else []), *columns]


def grouped(table: Beside) -> Iterator[list[Cell]]:
    """The cells row by row."""
    width = len({cell.score.column for cell in table.cells})
    for start in range(0, len(table.cells), width):
        yield table.cells[start : start + width]


def both(row: list[Cell], table: Beside) -> Iterator[list[str]]:
    """The paper's line of a method and, where there is a recipe, ours below it."""
    size = [row[0].score.params] if sized(table) else []
    yield [row[0].score.label, "paper", *size, *(cell.score.printed for cell in row)]
    if any(cell.score.recipe for cell in row):
        yield ["", "here", *[""] * len(size), *map(of_ours, row)]


def of_ours(cell: Cell) -> str:
    """Our number beside one cell."""
    if cell.ours is None:
        return NOT_RUN if cell.score.recipe and cell.score.metric else NO_RECIPE
    spread = "" if cell.deviation is None else f" ±{cell.score.shown(cell.deviation)}"
    seeds = "" if cell.score.metric == AVERAGE else f" ({len(cell.seeds)})"
    return f"{cell.score.shown(cell.ours)}{spread}{seeds}"


def apart(each: Apart) -> list[str]:
    """One line about runs that stand apart."""
    values = [
        f"{key} {value:.4g}" + ("" if deviation is None else f" ±{deviation:.2g}")
        for key, (value, deviation) in each.values.items()
    ]
    data = f"{each.data}, {each.train_rows:,} rows"
    return [each.name, each.model, data, ", ".join(values), str(len(each.seeds)), "; ".join(each.why)]


def notes(table: Beside) -> list[str]:
    """What a reader of the numbers must know, a sentence a line."""
    waiting = sum(of_ours(cell) == NOT_RUN for cell in table.cells)
    without = sum(cell.score.recipe is None and cell.score.metric != AVERAGE for cell in table.cells)
    lines = [f"Paper: {table.runs}."]
    lines.append(
        f"Here: {table.statistic} of the ledger's runs, ± their sample deviation, (number of seeds);"
        f" {table.found} of {len(table.cells)} cells are filled."
    )
    converted = [key for key, unit in table.units.items() if unit != 1 and key not in ("", AVERAGE)]
    if converted:
        lines.append(f"The papers print {' and '.join(converted)} times 100, and so does this table.")
    if without:
        have, their = ("cell has", "its") if without == 1 else ("cells have", "their")
        lines.append(f"{without} {have} no recipe: {their} settings or {their} data are not to be had.")
    if waiting:
        lines.append(f"{NOT_RUN} marks {waiting} cells that the ledger has no run for; {table.then}what makes them:")
    return lines


def report(name: str, out: Path, plot: Path | None, as_json: bool, console: Console) -> None:
    """What `vbank results --table NAME` prints and draws.

    Raises:
        ValueError: an unknown table, a file of the ledger that is none, or a plot that cannot be written.
    """
    if plot is not None and plot.suffix not in PLOTS:
        raise ValueError(f"--plot {plot}: the file's ending says what to draw; give one of {', '.join(PLOTS)}")
    if plot is not None and not plot.parent.is_dir():
        raise ValueError(f"--plot {plot}: there is no folder {plot.parent}")
    table = beside(name, ledger.read(out))
    if plot is not None:
        from vbank.figures import SVG_METADATA
        from vbank.figures.papers import paper_table

        paper_table(table.cells).savefig(plot, metadata=SVG_METADATA if plot.suffix == ".svg" else None)
    if as_json:
        print(json.dumps(table.to_json()))
        return
    for part in rich_tables(table):
        console.print(part)
    print(*notes(table), *table.commands, sep="\n")


def of_ledger(rows: Sequence[ledger.Record], title: str) -> Table:
    """The ledger's summary (`vbank.ledger.summarise`) as a table."""
    table = Table(
        title=title,
        caption="deviation: sample standard deviation over seeds; head counted apart; s: median seconds of training",
    )
    table.add_column("recipe", no_wrap=True)
    table.add_column("learning rates", no_wrap=True)
    columns = "metric|runs|median|mean|deviation|trained|stored|bytes|on disk|head|s|CPU s"
    for column in columns.split("|"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['experiment']}/{row['variant']}",
            " ".join(f"{key} {rate:g}" for key, rate in row["lr"].items()),
            row["metric"],
            str(len(row["seeds"])),
            f"{row['median']:.4f}",
            f"{row['mean']:.4f}",
            "" if row["deviation"] is None else f"{row['deviation']:.4f}",
            f"{row['trainable']:,}",
            f"{row['stored']:,}".removesuffix(".0"),
            f"{row['bytes']:,}",
            f"{row['bytes_on_disk']:,}",
            f"{row['head']:,}",
            f"{row['train_seconds']:.0f}",
            f"{row['train_cpu_seconds']:.0f}",
        )
    return table
