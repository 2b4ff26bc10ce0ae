"""The recipes beside the papers' hyperparameter tables, cell by cell and both ways.

`tables_as_printed.toml` is typed from the papers. Every cell of it must be in the recipes, and every setting of a
recipe whose comment names that table must have a row there.
"""

import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vbank.recipes import FOLDER, Recipe, available, load

VARIANTS = available()
PRINTED = tomllib.loads((Path(__file__).parent / "tables_as_printed.toml").read_text(encoding="utf-8"))

# Row of a table -> setting of a recipe; None: no setting (measured, or covered elsewhere).
ROWS: dict[str, str | None] = {
    "# GPUs": None,  # in the batch size, see `test_the_batch_is_that_of_all_gpus`
    "Training Time": None,
    "GPU Memory": None,
    "Optimizer": "train.optimizer",
    "Warmup Ratio": "train.warmup",
    "Warmup Steps": "train.warmup_steps",
    "LR Schedule": "train.schedule",
    "Learning Rate Schedule": "train.schedule",
    "Weight Decay": "train.weight_decay",
    "Label Smooth": "train.label_smoothing",
    "Batch Size": "train.batch_size",
    "Batch Size Per GPU": "train.batch_size",
    "Accumulation Steps": "train.accumulation",
    "Epochs": "train.epochs",
    "Max Seq. Len.": "task.max_length",
    "Rank": "method.rank",
    "VeRA Rank": "method.rank",
    "LoRA Rank": "method.rank",
    "Vector Length": "method.vector_length",
    "Vector Bank Size": "method.num_vectors",
    "Init. of the Vector Bank": "method.bank_bound",
    "Init. of the Logits": "method.logits_std",
    "Init. of Shared Matrices": "method.init",
    "Initial Value of d": "method.d_init",
    "Learning Rate": "method.lr.default",
    "Learning Rate (Head)": "method.lr.head",
    "Learning Rate (Logits)": "method.lr.logits",
    "Learning Rate (Vector Bank)": "method.lr.bank",
    "Learning Rate (Vector bank)": "method.lr.bank",
    "Learning Rate (LoRA)": "method.lr.default",
    "Learning Rate (VeRA)": "method.lr.default",
    **{f"LR ({which})": "method.lr.default" for which in ("Full", "VeRA", "LoRA")},
    **{f"LR-Head ({which})": "method.lr.head" for which in ("Head", "Full", "VeRA", "LoRA")},
    # VB-LoRA, Table 4, caption
    "vector bank size": "method.num_vectors",
    "b": "method.vector_length",
    "rank": "method.rank",
    "epochs": "train.epochs",
    "warm-up ratio": "train.warmup",
    "initial learning rate for the vector bank": "method.lr.bank",
    "initial learning rate for the logits": "method.lr.logits",
    # PRoLoRA, A.2
    "scaling factor": "method.alpha",
    "dropout rate": "method.dropout",
    "maximum sequence length": "task.max_length",
    "weight decay": "train.weight_decay",
    "maximum gradient norm": "train.max_grad_norm",
    "steps": "train.max_steps",
    "learning rate scheduler": "train.schedule",
    "warmup ratio": "train.warmup",
    "optimizer": "train.optimizer",
    "foundation models": "model.name",
    "pretrained models": "model.quantise",
    "linear layers": "method.targets",
    "random seeds": "train.seeds",
    "learning rate": "method.lr.default",
    "maximum length of decoding": "task.max_new_tokens",
    "decoding": "task.num_beams",
    "LoRA rank of the search": "method.rank",
    "searched": "search.lr",
    "searched for VeRA and Tied LoRA": "search.lr",
}
# Rows of which a table of one name means another setting: accumulation makes up VB-LoRA's batch of 128.
ROWS_OF = {
    "vb-lora-math": {"batch size": "train.accumulation"},
    "prolora-instruct": {"batch size": "train.batch_size"},
}
WORDS: dict[str, Any] = {
    "AdamW": ("adamw", "paged_adamw_32bit"),
    "Paged AdamW Optimizer": ("paged_adamw_32bit",),
    "Linear": ("linear",),
    "linear": ("linear",),
    "Cosine": ("cosine",),
    "cosine": ("cosine",),
    "Kaiming Uniform": ("kaiming_uniform",),
    "U(-0.02, 0.02)": (0.02,),
    "N(0, 0.01)": (0.01,),
    "disable": (0.0,),
    "10k": (10_000,),
    "3%": (0.03,),
    "4-bit NormalFloat": ("nf4",),
    "all": ("all-linear",),
    "greedy": (1,),
    "LLaMA2-7B": ("meta-llama/Llama-2-7b-hf",),
    "LLaMA2-13B": ("meta-llama/Llama-2-13b-hf",),
    "1, 2, and 3": (3,),
}
TASKS = {"SST-2": "sst2", "MRPC": "mrpc", "CoLA": "cola", "QNLI": "qnli", "RTE": "rte", "STS-B": "stsb"}
LLAMAS = ("7b", "13b", "llama1-7b", "llama1-13b")


@dataclass(frozen=True)
class Cell:
    """One cell of a printed table."""

    recipe: str
    block: str
    row: str
    column: str
    text: str

    @property
    def setting(self) -> str | None:
        return ROWS_OF.get(self.recipe, {}).get(self.row, ROWS.get(self.row))


@functools.cache
def at_gpu(name: str) -> Recipe:
    return load(name, scale="gpu")


def cells(recipe: str) -> Iterator[Cell]:
    table = PRINTED[recipe]
    for block, rows in {"": table["rows"], **table.get("blocks", {})}.items():
        for row, value in rows.items():
            texts = value if isinstance(value, list) else [value] * len(table["columns"])
            assert len(texts) == len(table["columns"]), f"{recipe}, {block} {row}: a value for each column, or one"
            for column, text in zip(table["columns"], texts, strict=True):
                yield Cell(recipe, block, row, column, text)


def variants_of(cell: Cell) -> list[str]:
    """The variants that a cell is about, by their names."""
    sizes = [cell.block.lower()] if cell.block else ["base", "large"]
    match cell.recipe:
        case "vb-lora-glue":
            return [f"{TASKS[cell.column]}-{size}-{layers}" for size in sizes for layers in ("qv", "all")]
        case "vera-glue":
            return [f"{TASKS[cell.column]}-{size}" for size in sizes]
        case "vb-lora-e2e" | "vera-e2e":
            return [cell.column.lower()]
        case "vb-lora-alpaca":
            method, size = cell.column.lower().split(", ")
            return [f"{method}-{size}"]
        case "vb-lora-math":
            return [cell.column.lower().removesuffix("-7b")]
        case "vera-alpaca":
            return [f"{cell.column.lower()}-{model}" for model in LLAMAS]
        case "vera-images":
            named = re.search(r"\((\w+)\)$", cell.row)
            kind = {"VeRA Rank": "vera", "LoRA Rank": "lora"}.get(cell.row) or (named[1].lower() if named else None)
            kinds = [kind] if kind else ["head", "full", "vera", "lora"]
            return [f"{cell.column.lower()}-{size}-{each}" for size in sizes for each in kinds]
        case "prolora-instruct":
            size = cell.column.lower().removeprefix("llama2")
            names = [name for name in VARIANTS["prolora-instruct"] if f"{size}" in name]
            others = [name for name in names if name.startswith(("vera", "tied-lora"))]
            match cell.row:
                case "searched" | "LoRA rank of the search":
                    return [name for name in names if name == "lora-r64-7b"]
                case "searched for VeRA and Tied LoRA":
                    return others
                case "scaling factor" | "learning rate":
                    return [name for name in names if name not in others]
                case "linear layers":
                    return [name for name in names if not name.startswith("tied-lora")]
            return names
    raise AssertionError(f"no variants for {cell}")


def value_of(recipe: Recipe, setting: str) -> Any:
    """The recipe's value of a setting such as "method.lr.head"; None where it has none."""
    section, key, *rest = setting.split(".")
    part = getattr(recipe, section)
    value = part.settings.get(key) if section == "method" and not hasattr(part, key) else getattr(part, key)
    return value.get(rest[0]) if rest else value


def agrees(cell: Cell, value: Any) -> bool:
    """Whether the recipe's value is what the cell prints."""
    if cell.text == "N/A":
        return value is None
    if cell.row.startswith("searched"):
        rates = [float(text) for text in re.findall(r"\d+e-\d", cell.text)]
        found = [rate["default"] for rate in value]
        return found == rates if cell.row == "searched" else found[-len(rates) :] == rates
    if cell.text in WORDS:
        return value in WORDS[cell.text]
    return value == pytest.approx(float(cell.text.replace(",", "")), rel=1e-12)


@pytest.mark.parametrize("recipe", PRINTED)
def test_every_cell_of_the_table_is_in_the_recipe(recipe: str) -> None:
    wrong = []
    for cell in cells(recipe):
        assert cell.setting or ROWS.get(cell.row, "") is None, f"{cell} has no setting"
        if cell.setting is None or cell.row == "Batch Size Per GPU":
            continue
        named = variants_of(cell)
        assert set(named) <= set(VARIANTS[recipe]), f"{cell}: {named}"
        for name in named:
            value = value_of(at_gpu(f"{recipe}/{name}"), cell.setting)
            if not agrees(cell, value):
                wrong.append(f"{name}: {cell.setting} is {value!r}, {PRINTED[recipe]['source']} prints {cell}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("recipe", ["vb-lora-glue", "vera-glue"])
def test_the_batch_is_that_of_all_gpus(recipe: str) -> None:
    for block, rows in PRINTED[recipe]["blocks"].items():
        for task in TASKS.values():
            layers = ("-qv", "-all") if recipe == "vb-lora-glue" else ("",)
            for name in (f"{task}-{block.lower()}{each}" for each in layers):
                batch = int(rows["# GPUs"]) * int(rows["Batch Size Per GPU"])
                assert at_gpu(f"{recipe}/{name}").train.batch_size == batch, name


def test_every_variant_belongs_to_a_column() -> None:
    beside = {"vera-e2e": {"lora-medium", "lora-large"}}  # from Hu et al. (2022), not in VeRA's Table 10
    for recipe in PRINTED:
        columns = {name for cell in cells(recipe) if cell.setting for name in variants_of(cell)}
        assert columns | beside.get(recipe, set()) == set(VARIANTS[recipe]), recipe


@dataclass(frozen=True)
class Claim:
    """One value of a recipe's file and the comment that names its source."""

    setting: str
    value: Any
    scale: str
    comment: str

    def tables(self) -> set[str]:
        """Tables of the recipe's own paper that the comment gives as the source, and "A.2"."""
        if self.comment.startswith("own"):
            return set()
        others = re.compile(r"\(20\d\d\)|VeRA,|VB-LoRA,")
        clauses = [text for text in re.split(r"[;:]", self.comment) if not others.search(text)]
        return set(re.findall(r"Table \d+|A\.2", " ".join(clauses)))


def claims(recipe: str) -> Iterator[Claim]:
    """Every value of a recipe's file with its comment; a row of [variants] has that of the line above the rows."""
    header = above = ""
    for line in (FOLDER / f"{recipe}.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            above = line
        elif found := re.match(r"\[([\w.-]+)\]", line):
            header = found[1]
        elif header and re.match(r"[\w.-]+\s*=", line):
            found = re.search(r"\s#\s(.*)$", line)
            comment = above if header == "variants" else found[1] if found else ""
            opened = re.search(r"=\s*\[\s*(#|$)", line)  # a list of several lines: the search's rates
            text = f"[{header}]\n" + (line.replace("[", "[]", 1) if opened else line)
            for path, value in flat(tomllib.loads(text)):
                kept = [part for part in path if part not in ("gpu", "cpu")]
                kept = kept[2:] if kept[0] in ("parts", "variants") else kept
                if kept[0] != "from":
                    yield Claim(".".join(kept), value, "cpu" if "cpu" in path else "gpu", comment)


def flat(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, (*above, key))
        else:
            yield (*above, key), value


# Tables of results that a recipe's comments may name: numbers of runs, and the ranks of PRoLoRA's rows.
RESULTS = {
    "vb-lora-glue": {"Table 1"},
    "vb-lora-e2e": {"Table 2"},
    "vb-lora-math": set(),
    "prolora-instruct": {"Table 2", "Table 3"},
}


@pytest.mark.parametrize("recipe", PRINTED)
def test_no_value_claims_a_cell_that_the_table_lacks(recipe: str) -> None:
    table = re.search(r"Table \d+|A\.2", PRINTED[recipe]["source"])[0]
    printed: dict[str, list[Cell]] = {}
    for cell in cells(recipe):
        if cell.setting:
            printed.setdefault(cell.setting, []).append(cell)
    claimed = set()
    for claim in claims(recipe):
        others = claim.tables() - {table, "A.2"}
        assert others <= RESULTS.get(recipe, set()), f"{claim} names {others}"
        if table not in claim.tables():
            continue
        setting = "method.lr.default" if claim.setting == "method.lr" else claim.setting
        assert claim.scale == "gpu", f"a value of scale cpu claims {table}: {claim}"
        assert setting in printed, f"{table} has no row for {claim}"
        claimed.add(setting)
        if setting not in ("search.lr", "train.batch_size"):  # the cells of these are checked above
            assert any(agrees(cell, claim.value) for cell in printed[setting]), f"{table} has no such cell: {claim}"
    assert claimed == set(printed), f"values without their source: {set(printed) ^ claimed}"


@pytest.mark.parametrize("recipe", PRINTED)
def test_what_changes_every_number_is_written_down(recipe: str) -> None:
    """A default that acts in silence has no source."""
    stated = {claim.setting: claim.comment for claim in claims(recipe) if claim.scale == "gpu"}
    for setting in ("train.max_grad_norm", "train.weight_decay", "train.precision"):
        assert stated.get(setting), f"{setting} of {recipe} lacks a value or its source"
