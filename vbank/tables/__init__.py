"""The papers' tables of results as data, and what the ledger has beside them.

One file a paper holds its tables as printed. A table has a `name`, a `title`, a list of `columns` and of `rows`; a row
has a `method`, perhaps a `block`, a `rank` and the `params` as printed, and one string a column in `cells`, such as
"94.4 ±0.2". What links a row to a run:

- `recipe`: the variant that would reproduce it, where {task} stands for the column's entry of `tasks`; `set` changes
  settings. A row without one has no settings in the paper, or data that are no task here.
- `metrics`: the ledger's key of each column; "average" is the mean of the row's other columns.
- `unit`: the papers print a correlation of 0.633 as 63.3; what the ledger has is multiplied by it. 1 if absent.
- `train_rows`: how many rows the column's training set has, so that a run on a stand-in is not taken for the real one.
- `statistic`: how the paper sums up its runs; the ledger's are summed up in the same way.
- `then`: what is to be done after the run.

A run belongs into a cell if its settings are those of the linked recipe at scale gpu, and its data too. All others
stand apart, with their model and their data.
"""

from __future__ import annotations

import functools
import statistics
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vbank import recipes
from vbank.audits import PAPERS
from vbank.ledger import Record
from vbank.suggestions import unknown

FOLDER = Path(__file__).parent
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"median": statistics.median, "mean": statistics.fmean}
AVERAGE = "average"
TOLERANCE = 0.05  # of the number of training rows: versions of a data set differ by a few


@dataclass(frozen=True)
class Score:
    """One cell of a paper's table.

    Args:
        table: such as "vb-lora-1", VB-LoRA's Table 1.
        block, method, rank, params, column: where it stands, as printed; "" where the table has no such thing.
        printed: the cell, such as "94.4 ±0.2".
        value: the number in it.
        spread: the number after ±; None where there is none. The papers do not say which measure it is.
        metric: the ledger's key; "" if no task here measures it.
        unit: what the ledger's number is multiplied by.
        recipe: the variant that would reproduce the cell, None if there is none.
        overrides: settings to change in it.
        train_rows: rows of the training set, 0 if not known.
        colour: the method's key in `vbank.figures.METHOD_COLOURS`, "" if it is none of the book's.
    """

    table: str
    block: str
    method: str
    rank: str
    params: str
    column: str
    printed: str
    value: float
    spread: float | None
    metric: str
    unit: int
    recipe: str | None
    overrides: tuple[str, ...]
    train_rows: int
    colour: str

    @property
    def label(self) -> str:
        """Method, with the rank where rows of one method differ in it."""
        return f"{self.method}, rank {self.rank}" if self.rank not in ("", "-") else self.method

    @property
    def command(self) -> str | None:
        """What makes the run for this cell."""
        if self.recipe is None:
            return None
        return " ".join(["VBANK_SCALE=gpu vbank run", self.recipe, *(f"--set {each}" for each in self.overrides)])

    def shown(self, value: float) -> str:
        """A number with as many decimals as the paper prints."""
        decimals = len(self.printed.partition("±")[0].strip().partition(".")[2])
        return f"{value:.{decimals}f}"


@dataclass(frozen=True)
class Cell:
    """A paper's cell and the ledger's runs of its recipe: their median or mean, sample deviation and seeds."""

    score: Score
    ours: float | None = None
    deviation: float | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Apart:
    """Runs of a table's recipes that are no reproduction of any cell: another scale, other settings or other data.

    Args:
        name: experiment/variant.
        model, data: what was trained on what.
        train_rows: how many rows of it.
        values: metric -> median and sample deviation (None for one run), in the table's unit.
        seeds: of the runs.
        why: in what they differ from the paper's, in words.
    """

    name: str
    model: str
    data: str
    train_rows: int
    values: dict[str, tuple[float, float | None]]
    seeds: tuple[int, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Beside:
    """A paper's table beside the ledger; shows itself as a table in a notebook."""

    name: str
    title: str
    paper: str
    runs: str
    then: str
    statistic: str
    units: dict[str, int]
    cells: list[Cell]
    apart: list[Apart]

    @property
    def found(self) -> int:
        """Cells that the ledger has runs for."""
        return sum(cell.ours is not None for cell in self.cells)

    @property
    def commands(self) -> list[str]:
        """What makes the runs that the ledger lacks; it keeps what is there, so one command does for an experiment."""
        wanted = {cell.score.recipe for cell in self.cells if not cell.score.overrides}
        commands: dict[str, None] = {}
        for score in (cell.score for cell in self.cells if cell.ours is None):
            if score.recipe and score.metric:
                experiment = score.recipe.partition("/")[0]
                everything = not score.overrides and wanted >= set(_variants(experiment))
                commands[f"VBANK_SCALE=gpu vbank run {experiment}" if everything else str(score.command)] = None
        return list(commands)

    def __repr__(self) -> str:
        from vbank.tables.shown import text

        return text(self)

    def _repr_html_(self) -> str:
        from vbank.tables.shown import html

        return html(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `vbank results --json`."""
        cells = [asdict(cell.score) | asdict(cell) | {"command": cell.score.command} for cell in self.cells]
        for cell in cells:
            del cell["score"]
        return {
            "table": self.name,
            "title": self.title,
            "paper": self.paper,
            "runs": self.runs,
            "statistic": self.statistic,
            "cells": cells,
            "apart": [asdict(each) for each in self.apart],
            "commands": self.commands,
        }


def names() -> list[str]:
    """All tables: vb-lora-1 is VB-LoRA's Table 1."""
    return list(_tables())


def scores(paper: str | None = None, table: str | None = None) -> list[Score]:
    """The cells of the papers' tables of results, as printed.

    Args:
        paper: vera, vb-lora or prolora; None for all.
        table: one of `names`; None for all.

    Raises:
        ValueError: an unknown paper or table; close ones are suggested.
    """
    if paper is not None and paper not in PAPERS:
        raise ValueError(unknown("paper", paper, PAPERS))
    if table is not None:
        _table(table)
    chosen = [name for name in _tables() if table in (None, name) and (paper is None or name.startswith(f"{paper}-"))]
    return [score for name in chosen for score in _scores(name)]


def beside(table: str, records: Iterable[Record]) -> Beside:
    """A paper's table beside the ledger's runs.

    Args:
        table: one of `names`.
        records: the ledger, as `vbank.ledger.read` gives it; search runs are left out.

    Raises:
        ValueError: an unknown table.
    """
    about, name = _table(table), f"{PAPERS[table.rpartition('-')[0]]}, {_table(table)['name']}"
    linked = _scores(table)
    experiments = {score.recipe.partition("/")[0] for score in linked if score.recipe} | set(about.get("apart", ()))
    final = [each for each in records if each["kind"] == "final" and each["experiment"] in experiments]
    taken: set[int] = set()
    cells = []
    for score in linked:
        mine = [(i, each) for i, each in enumerate(final) if score.recipe and not differences(each, score)]
        taken |= {i for i, _ in mine}
        cells.append(_cell(score, [each for _, each in mine], about["statistic"]))
    cells = [_averaged(cell, cells) for cell in cells]
    units = dict(zip(about["metrics"], [about.get("unit", 1)] * len(about["metrics"]), strict=True))
    rest = _apart([each for i, each in enumerate(final) if i not in taken], linked, units)
    return Beside(
        table, about["title"], name, about["runs"], about.get("then", ""), about["statistic"], units, cells, rest
    )


def differences(record: Record, score: Score) -> list[str]:
    """In what a run differs from the run that a cell asks for; nothing if it reproduces it.

    A run at another scale is compared with the recipe at that scale.
    """
    made = record["recipe"]
    recipe = _recipe(str(score.recipe), score.overrides, made["scale"])
    found = [] if (record["experiment"], record["variant"]) == (recipe.experiment, recipe.variant) else ["variant"]
    found += [] if made["scale"] == "gpu" else [f"scale {made['scale']}"]
    asked = recipe.resolved()
    for section in recipes.SECTIONS:  # a record leaves out those that it has no use for
        if section not in asked:
            continue
        ours, theirs = flat(section, made.get(section, {})), flat(section, asked[section])
        for key in sorted(ours.keys() | theirs.keys()):
            is_, wanted = ours.get(key), theirs.get(key)
            if is_ != wanted:
                found.append(f"{key} {is_}, not {wanted}")
    data = record["data"]
    if data["source"].startswith("generated"):
        found.append("generated data")
    elif (
        made["scale"] == "gpu"
        and score.train_rows
        and abs(data["train"] - score.train_rows) > TOLERANCE * score.train_rows
    ):
        found.append(f"{data['train']:,} training rows, not {score.train_rows:,}")
    return found


@functools.cache
def _variants(experiment: str) -> list[str]:
    return recipes.variants(experiment)


@functools.cache
def _recipe(name: str, overrides: tuple[str, ...], scale: str) -> recipes.Recipe:
    return recipes.load(name, overrides, scale)


def flat(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's settings as "method.lr.head" and the like; what a record lacks is taken at its default."""
    defaults: dict[str, Any] = {
        f"{section}.{f.name}": f.default_factory() if f.default_factory is not MISSING else f.default
        for f in fields(recipes.SECTIONS[section])
        if f.name not in recipes.NOT_RECORDED
    }
    found = defaults | {f"{section}.{key}": value for key, value in values.items()}
    for key, value in list(found.items()):
        if isinstance(value, dict):
            inner = section if key.endswith(".settings") else key
            found |= {f"{inner}.{name}": each for name, each in found.pop(key).items()}
    return found


def _cell(score: Score, runs: Sequence[Record], statistic: str) -> Cell:
    values = [score.unit * run["metrics"][score.metric] for run in runs if score.metric in run["metrics"]]
    if not values:
        return Cell(score)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell(score, STATISTICS[statistic](values), deviation, tuple(run["seed"] for run in runs))


def _averaged(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """The mean of the row's other columns, where the ledger has all of them."""
    if cell.score.metric != AVERAGE:
        return cell
    where = (cell.score.block, cell.score.label, cell.score.params)
    row = [c for c in cells if (c.score.block, c.score.label, c.score.params) == where and c.score.metric != AVERAGE]
    ours = [c.ours for c in row if c.ours is not None]
    return Cell(cell.score, statistics.fmean(ours)) if row and len(ours) == len(row) else cell


def _apart(records: Sequence[Record], linked: Sequence[Score], units: Mapping[str, int]) -> list[Apart]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        settings = record["run"].partition("-seed")[0]  # the same for all seeds
        groups.setdefault(f"{record['experiment']}/{record['variant']} {settings}", []).append(record)
    found = []
    for runs in groups.values():
        first = runs[0]
        name = f"{first['experiment']}/{first['variant']}"
        measured = [key for key in units if key in first["metrics"]] or [first["metric"]]
        scores = {key: [run["metrics"][key] for run in runs if key in run["metrics"]] for key in measured}
        values = {key: [units.get(key, 1) * each for each in made] for key, made in scores.items() if made}
        reasons: list[list[str]] = [differences(first, score) for score in linked if score.recipe == name]
        fewest = min(reasons, key=len, default=["no cell of this table"])
        found.append(
            Apart(
                name,
                first["recipe"]["model"]["name"],
                first["data"]["source"],
                first["data"]["train"],
                {key: (statistics.median(v), statistics.stdev(v) if len(v) > 1 else None) for key, v in values.items()},
                tuple(run["seed"] for run in runs),
                tuple(fewest),
            )
        )
    return found


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    """All tables by name."""
    found: dict[str, dict[str, Any]] = {}
    for paper in ("vb-lora", "vera", "prolora"):
        content = tomllib.loads((FOLDER / f"{paper}.toml").read_text(encoding="utf-8"))
        found |= {f"{paper}-{table['name'].rpartition(' ')[2]}": table for table in content["table"]}
    return found


def _table(name: str) -> dict[str, Any]:
    if name not in _tables():
        raise ValueError(unknown("table", name, _tables()))
    return _tables()[name]


@functools.cache
def _scores(name: str) -> tuple[Score, ...]:
    table = _tables()[name]
    columns, none = table["columns"], [""] * len(table["columns"])
    per_column = (columns, table["metrics"], table.get("tasks", none), table.get("train_rows", [0] * len(columns)))
    made = []
    for row in table["rows"]:
        row = {"recipe": table.get("recipe"), "colour": table.get("colour", "")} | row
        for text, column, metric, task, rows in zip(row["cells"], *per_column, strict=True):
            value, _, spread = text.partition("±")
            linked = row["recipe"] and row["recipe"].format(task=task) if metric != AVERAGE else None
            made.append(
                Score(
                    table=name,
                    block=row.get("block", ""),
                    method=row["method"],
                    rank=row.get("rank", ""),
                    params=row.get("params", ""),
                    column=column,
                    printed=text,
                    value=float(value),
                    spread=float(spread) if spread else None,
                    metric=metric,
                    unit=table.get("unit", 1),
                    recipe=linked,
                    overrides=tuple(row.get("set", ())),
                    train_rows=rows,
                    colour=row["colour"],
                )
            )
    return tuple(made)
