"""The audit: every parameter and byte count that the three papers print, beside its exact recomputation.

The figures lie in one file a paper as they are printed, each with the setting that it belongs to and a recipe
(`vbank.audits.recipes`) for the exact number; no computed number is stored. What counts as a figure: a number of
parameters, stored scalars, sub-vectors or bytes, and a ratio of such numbers, in tables, figures, captions and text.
What does not: formulas, ranks, sizes of layers, the sizes in models' names, times and scores. A figure that stands in
two places counts twice.

Bytes: all three papers write KB, MB, GB and TB. In tables where only powers of 1024 fit, the file says so (`binary`),
and a figure that fits then matches, with a note. VB-LoRA's stored parameters are those of its section 3.4, in float32
equivalents: an index takes one byte for a bank of at most 256 vectors, two above.

Status of a row:

- ``match (rounded)``, ``match (truncated)``: the exact number, rounded to the printed digits, or cut after them.
- ``match (as claimed)``: a claim in words, such as "over 10x", that the exact number bears out.
- ``mismatch, explained``: another count, named in the note and computed here too, gives the printed figure, or the
  figure that a misprint hides, and something beside this figure supports it. The note says how sure that is: certain
  (no other sensible count fits, or the paper itself has the right number elsewhere) or likely.
- ``mismatch, not explained``: no explanation found, or one that is no more than possible, as the note then says.
- ``not computable``: measured or otherwise an outcome of training, or the setting is not given.

Mismatches are fewer stories than figures: `CAUSES` names them, and figures that go back to the same one share it.
"""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict

from vbank.audits.printed import fits
from vbank.suggestions import unknown

FOLDER = Path(__file__).parent
PAPERS = {"vera": "VeRA", "vb-lora": "VB-LoRA", "prolora": "PRoLoRA"}
OUTCOMES = ("match", "mismatch, explained", "mismatch, not explained", "not computable")
DEFAULTS = ("on", "at", "of")  # of a group's recipes
CAUSES = {  # of the mismatches; "open" where no explanation holds
    "32-layers": "LoRA on Llama 2 13B and 70B counted with the 7B model's 32 layers, 70B with keys of full width too",
    "frozen-pair": "VeRA on GPT-3 counted with the frozen pair A, B, which a seed brings back",
    "gpt2-lora-tenth-percent": "LoRA on GPT-2 counted as 0.1% of the model instead of at its rank, and ratios to it",
    "index-as-scalar": "VB-LoRA's indices counted as a float32 each, three scalars a sub-vector, and ratios to it",
    "six-scalars": "VB-LoRA on Llama 2 counted with about six scalars a sub-vector, and ratios to it",
    "roberta-large-qv": "open: VB-LoRA's 0.024M on RoBERTa-large, query and value, and ratios to it",
    "sub-vectors-96": "open: the 96 sub-vectors in VB-LoRA's pictures",
    "adapter-h": "open: 11.09M for Adapter H on GPT-2 medium, the figure of Adapter L",
    "gpt2-medium-digit": "open: all parameters of GPT-2 medium, one digit off in the paper quoted",
    "misprint-49.5K": "misprint: 49.5K for 49.9K",
    "misprint-40.98M": "misprint: 40.98M for 39.98M",
    "thousand-for-1024": "MiB divided by 1,000 to give GB",
    "byte-a-parameter": "adapters that fit in 20 GB, at one byte a parameter instead of four",
    "rounded-cells": "a ratio of two cells, rounded before they were divided",
    "rounded-chunks": "PRoLoRA's chunks rounded up where the share does not divide a dimension",
}


class Row(TypedDict):
    """One printed figure.

    `paper`: vera, vb-lora or prolora. `table`: where it stands, as the paper names it. `row`: method and column.
    `setting`: what the count is of. `printed`: the string as printed. `computed`: the exact number, or None. `matches`:
    whether `computed` gives `printed`; False also where nothing can be computed. `note`: what to know, above all why
    the two differ. `unit`: of `computed`. `source` of the setting: stated in the paper, inferred by us, or from cited
    work. `status`: see `vbank.audits`.
    """

    paper: str
    table: str
    row: str
    setting: str
    printed: str
    computed: int | float | None
    matches: bool
    note: str
    unit: str
    source: str
    status: str


def audit(paper: str | None = None) -> list[Row]:
    """Every parameter and byte count that the papers print, beside the exact count from the architectures' shapes.

    Args:
        paper: one of vera, vb-lora, prolora; None for all three.

    Raises:
        ValueError: an unknown paper; close ones are suggested.

    Example:
        >>> import vbank
        >>> row = vbank.audit("vb-lora")[0]
        >>> row["table"], row["setting"]
        ('Table 1', 'RoBERTa-base, all parameters')
        >>> row["printed"], row["computed"], row["matches"]
        ('125M', 124645632, True)
    """
    return [_row(name, cell) for name in _papers(paper) for cell in cells(name)]


def totals(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """For each paper the number of cells and how many of them have each of `OUTCOMES`."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        outcome = row["status"].partition(" (")[0]
        found.setdefault(row["paper"], Counter())[outcome] += 1
    return {name: {"cells": of.total(), **{outcome: of[outcome] for outcome in OUTCOMES}} for name, of in found.items()}


def grounds(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """For each paper what its matches rest on.

    `match`: all of them. `stated`, `inferred`, `cited`: by the source of the setting; together they are all. `claimed`:
    the printed figure is words, such as "half". `truncated`: it comes out cut and not rounded.
    """
    found: dict[str, Counter[str]] = {}
    for row in rows:
        of = found.setdefault(row["paper"], Counter())
        if row["matches"]:
            of.update(("match", row["source"]))
            of["claimed"] += row["status"] == "match (as claimed)"
            of["truncated"] += row["status"] == "match (truncated)"
    keys = ("match", "stated", "inferred", "cited", "claimed", "truncated")
    return {name: {key: of[key] for key in keys} for name, of in found.items()}


def causes(paper: str | None = None) -> dict[str, int]:
    """How many mismatches go back to each of `CAUSES`, the largest number first.

    Args:
        paper: as for `audit`.
    """
    found = Counter(cell["cause"] for name in _papers(paper) for cell in cells(name) if "cause" in cell)
    return dict(found.most_common())


def _papers(paper: str | None) -> Iterable[str]:
    if paper is not None and paper not in PAPERS:
        raise ValueError(unknown("paper", paper, PAPERS))
    return PAPERS if paper is None else (paper,)


@functools.cache
def _file(paper: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{paper}.toml").read_text(encoding="utf-8"))


def cells(paper: str) -> list[dict[str, Any]]:
    """The paper's figures as its file has them, each complete with what its group says."""
    return [
        {**{key: value for key, value in group.items() if key != "cells"}, **cell}
        for group in _file(paper)["group"]
        for cell in group["cells"]
    ]


def defaults(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the cell's recipes take where they do not say."""
    return {key: cell[key] for key in DEFAULTS if key in cell}


def _row(paper: str, cell: Mapping[str, Any]) -> Row:
    from vbank.audits.recipes import evaluate  # after torch; `import vbank` stays light

    printed, note = cell["printed"], _text(cell, "note")
    value, status = None, "not computable"
    if "count" in cell:
        value = evaluate(cell["count"], defaults(cell))
        how = fits(value, printed, cell.get("binary", False), cell.get("claim"))
        status = f"match ({how})" if how else _mismatch(cell)
        if not how:
            note = " ".join([_text(cell, "because"), cell.get("sure", "Not explained") + ".", note]).strip()
        elif cell.get("binary") and not fits(value, printed):
            note = f"{note} In powers of 1024 only.".strip()
    return Row(
        paper=paper,
        table=cell["table"],
        row=cell["row"],
        setting=cell["setting"],
        printed=printed,
        computed=None if value is None else plain(value),
        matches=status.startswith("match"),
        note=note,
        unit=cell.get("unit", "parameters"),
        source=cell["source"],
        status=status,
    )


def _text(cell: Mapping[str, Any], key: str) -> str:
    """A note of the cell, with the values of the recipes in `also` where it has {0}, {1}, ..."""
    from vbank.audits.recipes import evaluate

    return cell.get(key, "").format(*(shown(plain(evaluate(also, defaults(cell)))) for also in cell.get("also", ())))


def _mismatch(cell: Mapping[str, Any]) -> str:
    explained = cell.get("sure") in ("Certain", "Likely") and explains(cell)
    return "mismatch, explained" if explained else "mismatch, not explained"


def explains(cell: Mapping[str, Any]) -> bool:
    """Whether the cell's explanation, computed, gives the printed string, or what should stand in its place."""
    from vbank.audits.recipes import evaluate

    binary = cell.get("binary", False)
    if "instead" in cell:  # a misprint: the exact number gives this string, which stands elsewhere
        return fits(evaluate(cell["count"], defaults(cell)), cell["instead"], binary) is not None
    if "explained" not in cell:
        return False
    value = evaluate(cell["explained"], defaults(cell))
    return fits(value, cell["printed"], binary, cell.get("claim")) is not None


def plain(value: Fraction) -> int | float:
    """An integer where the value is one."""
    return int(value) if value.denominator == 1 else float(value)


def shown(value: int | float) -> str:
    """An integer whole, a ratio with four decimals, which tell 1.0005 from 1."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}".rstrip("0").rstrip(".")
