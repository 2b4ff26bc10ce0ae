"""The papers' tables of results as typed, their links to recipes, and what of a ledger belongs beside them."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from vbank import cli, ledger, recipes, tables
from vbank.figures import METHOD_COLOURS
from vbank.tables import AVERAGE, shown

CELLS = {
    "vb-lora-1": 15 * 7,
    "vb-lora-2": 8 * 5,
    "vb-lora-3": 10,
    "vb-lora-4": 8 * 2,
    "vb-lora-5": 11,
    "vb-lora-6": 4,
    "vera-2": 13 * 7,
    "vera-3": 13 * 5,
    "vera-4": 9,
    "vera-5": 8 * 4,
    "vera-6": 9 * 2,
    "vera-7": 2 * 4,
    "prolora-2": 12 * 7,
    "prolora-3": 4 * 4,
    "prolora-4": 4,
}


def record(name: str, seed: int = 0, scale: str = "gpu", sets: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """A run of the ledger as `vbank run` would leave it."""
    recipe = recipes.load(name, sets, scale)
    data = {"source": "Hugging Face Hub", "train": 8551, "validation": 1043, "fingerprint": "0"} | changes.pop(
        "data", {}
    )
    made = {
        "format": ledger.FORMAT,
        "experiment": recipe.experiment,
        "variant": recipe.variant,
        "run": f"{scale}-{'-'.join(sets)}-{data['train']}-seed{seed}",
        "kind": "final",
        "seed": seed,
        "recipe": recipe.resolved(),
        "data": data,
        "metric": "matthews",
        "metrics": {"matthews": 0.64},
        "parameters": {"trainable": 1000, "stored": 13464.5, "bytes": 53858, "head": 770},
        "bytes_on_disk": 60236,
        "seconds": {"train": 12.0, "train_cpu": 9.0},
        "peak_memory_bytes": 1,
    }
    return made | changes


def cola(table: tables.Beside, method: str, block: str = "BASE") -> tables.Cell:
    (found,) = [
        cell
        for cell in table.cells
        if (cell.score.column, cell.score.method, cell.score.block) == ("CoLA", method, block)
    ]
    return found


def test_every_table_has_all_its_cells() -> None:
    assert {name: len(tables.scores(table=name)) for name in tables.names()} == CELLS
    assert len(tables.scores()) == sum(CELLS.values())
    assert {score.table.rpartition("-")[0] for score in tables.scores("vera")} == {"vera"}
    (score,) = [
        s
        for s in tables.scores("vb-lora", "vb-lora-1")
        if (s.method, s.column, s.block) == ("VB-LoRA all", "CoLA", "LARGE")
    ]
    assert (score.printed, score.value, score.spread, score.params) == ("69.3 ±1.5", 69.3, 1.5, "0.033M")
    assert tables.scores("vera", "vb-lora-1") == []


def test_printed_averages_are_those_of_their_rows() -> None:
    """A slip of the pen in a row would show here."""
    for name in CELLS:
        columns = len({score.column for score in tables.scores(table=name)})
        scores = tables.scores(table=name)
        for start in range(0, len(scores), columns):
            *row, last = scores[start : start + columns]
            if last.metric == AVERAGE:
                step = (
                    0.1
                    if last.unit == 100 and last.printed.count(".") and len(last.printed.split(".")[1]) == 1
                    else 0.01
                )
                assert abs(statistics.fmean(score.value for score in row) - last.value) <= 0.51 * step, last


def test_what_two_papers_print_is_the_same() -> None:
    """VB-LoRA takes VeRA's rows from VeRA's paper."""
    for ours, theirs in (("vb-lora-1", "vera-2"), ("vb-lora-2", "vera-3")):
        for block in ("BASE", "LARGE", "MEDIUM"):
            rows = [
                [s.printed for s in tables.scores(table=name) if s.block == block and s.method in methods]
                for name, methods in ((ours, ("VeRA qv", "VeRA")), (theirs, ("VeRA",)))
            ]
            assert rows[0] == rows[1]


def test_links_lead_to_recipes_that_measure_the_column() -> None:
    for score in tables.scores():
        assert score.colour in (*METHOD_COLOURS, "")
        if score.recipe is None:
            assert score.command is None
            continue
        recipe = recipes.load(score.recipe, score.overrides, "gpu")
        task = score.column.lower().replace("-", "")
        expected = {"BLEU": "e2e", "NIST": "e2e", "METEOR": "e2e", "ROUGE-L": "e2e", "CIDEr": "e2e"} | {
            "Score": "alpaca",
            "GSM8K": "metamath",
            "MATH": "metamath",
        }
        assert recipe.task.name == expected.get(score.column, task), score
        assert score.metric and score.metric != AVERAGE
        title = {"head": "head-only", "full": "full"}.get(recipe.method.name) or recipe.method.config().title
        assert title == score.colour, score


def test_rows_that_differ_have_runs_that_differ() -> None:
    """But for a row that stands twice: VeRA's default in the three parts of its Table 6, and two papers' LoRA."""
    for name in CELLS:
        linked = [s for s in tables.scores(table=name) if s.recipe]
        by_run: dict[str, set[str]] = {}
        for score in linked:
            by_run.setdefault(f"{score.command} {score.column}", set()).add(score.printed)
        assert all(len(printed) == 1 for printed in by_run.values()), name


def test_runs_of_the_recipe_stand_in_their_cell_in_the_paper_s_unit() -> None:
    name = "vb-lora-glue/cola-base-all"
    runs = [record(name, seed, metrics={"matthews": value}) for seed, value in enumerate((0.60, 0.64, 0.71))]
    table = tables.beside("vb-lora-1", runs)
    cell = cola(table, "VB-LoRA all")
    assert cell.ours == pytest.approx(64.0) and cell.seeds == (0, 1, 2)
    assert cell.deviation == pytest.approx(100 * statistics.stdev((0.60, 0.64, 0.71)))
    assert cell.score.printed == "64.3 ±1.4" and table.found == 1 and not table.apart
    assert shown.of_ours(cell) == "64.0 ±5.6 (3)"
    assert cola(table, "VB-LoRA qv").ours is None and cola(table, "VB-LoRA all", "LARGE").ours is None


def test_the_paper_s_mean_is_met_by_a_mean() -> None:
    metrics = [{"bleu": bleu, "nist": 8.8, "cider": 2.5} for bleu in (60.0, 61.0, 68.0)]
    rows = {"train": 42061}
    runs = [record("vb-lora-e2e/medium", seed, metrics=each, data=rows) for seed, each in enumerate(metrics)]
    cells = {
        c.score.column: c for c in tables.beside("vb-lora-2", runs).cells if c.score.recipe == "vb-lora-e2e/medium"
    }
    assert cells["BLEU"].ours == pytest.approx(63.0) and cells["NIST"].ours == pytest.approx(8.8)
    assert cells["METEOR"].ours is None  # measured without Java
    assert "mean of the ledger's runs" in "\n".join(shown.notes(tables.beside("vb-lora-2", runs)))


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (record("vb-lora-glue/cola-base-all", scale="cpu", data={"train": 300}), "scale cpu"),
        (record("vb-lora-glue/cola-base-all", scale="cpu", sets=("train.epochs=9",)), "train.epochs 9, not 3"),
        (record("vb-lora-glue/cola-base-all", sets=("train.epochs=2",)), "train.epochs 2, not 80"),
        (record("vb-lora-glue/cola-base-all", sets=("method.top_k=3",)), "method.top_k 3, not 2"),
        (record("vb-lora-glue/cola-base-all", data={"source": "generated sentences (a stand-in)"}), "generated data"),
        (record("vb-lora-glue/cola-base-all", data={"train": 2000}), "2,000 training rows, not 8,551"),
    ],
)
def test_a_run_with_another_model_or_other_data_never_stands_in_a_cell(run: dict[str, Any], why: str) -> None:
    table = tables.beside("vb-lora-1", [run])
    assert table.found == 0
    (apart,) = table.apart
    assert (apart.name, apart.model) == ("vb-lora-glue/cola-base-all", run["recipe"]["model"]["name"])
    assert apart.data == run["data"]["source"] and any(why in each for each in apart.why), apart.why
    text = table._repr_html_()
    assert apart.model in text and apart.data in text and "Apart" in text and "matthews 64 " in text
    assert "64.0" not in text.partition("Apart")[0]


def test_differences_stand_in_the_order_of_the_sections() -> None:
    sets = ("train.epochs=2", "model.dropout=0.2", "method.top_k=3", "task.max_length=64")
    (apart,) = tables.beside("vb-lora-1", [record("vb-lora-glue/cola-base-all", sets=sets)]).apart
    assert apart.why == (
        "task.max_length 64, not 512",
        "model.dropout 0.2, not None",
        "method.top_k 3, not 2",
        "train.epochs 2, not 80",
    )


def test_an_answer_that_no_judge_has_scored_fills_no_cell() -> None:
    alpaca = {"train": 50700}
    run = record("vb-lora-alpaca/vb-lora-7b", metric="validation_loss", metrics={"validation_loss": 1.0}, data=alpaca)
    table = tables.beside("vb-lora-3", [run])
    assert table.found == 0 and not table.apart and "vbank judge" in "\n".join(shown.notes(table))
    judged = run | {"metrics": {"validation_loss": 1.0, "mt_bench": 5.5}}
    (cell,) = [cell for cell in tables.beside("vb-lora-3", [judged]).cells if cell.ours is not None]
    assert (cell.ours, cell.score.method, cell.score.block) == (5.5, "VB-LoRA", "LLAMA 2 7B")


def test_runs_on_other_data_stand_apart_from_prolora_s_tables() -> None:
    run = record("prolora-instruct/prolora-r8-7b", metric="validation_loss", metrics={"validation_loss": 1.25})
    (apart,) = tables.beside("prolora-2", [run]).apart
    assert apart.values == {"validation_loss": (1.25, None)} and apart.why == ("no cell of this table",)
    assert "validation_loss 1.25" in tables.beside("prolora-2", [run])._repr_html_()


def test_a_setting_that_the_recipe_gained_later_is_taken_at_its_default() -> None:
    run = record("vb-lora-glue/cola-base-all")
    del run["recipe"]["train"]["accumulation"], run["recipe"]["task"]["prompt"]
    assert tables.beside("vb-lora-1", [run]).found == 1


def test_searches_and_other_experiments_are_left_out() -> None:
    runs = [record("vb-lora-glue/cola-base-all", kind="search"), record("first-finetune/lora")]
    table = tables.beside("vb-lora-1", runs)
    assert (table.found, table.apart) == (0, [])


def test_an_ablation_takes_the_run_with_its_settings_alone() -> None:
    name = "vb-lora-glue/cola-large-qv"
    runs = [record(name), record(name, sets=("method.top_k=3",), metrics={"matthews": 0.5})]
    ours = {cell.score.method: cell.ours for cell in tables.beside("vb-lora-5", runs).cells}
    assert ours["Top 2"] == pytest.approx(64.0) and ours["Top 3"] == pytest.approx(50.0) and ours["Top 6"] is None
    assert not tables.beside("vb-lora-5", runs).apart and len(tables.beside("vb-lora-6", runs).apart) == 2


def test_an_average_needs_all_its_columns() -> None:
    scores = [s for s in tables.scores(table="vb-lora-1") if (s.block, s.method) == ("BASE", "VB-LoRA qv")]
    runs = [
        record(str(s.recipe), metric=s.metric, metrics={s.metric: s.value / 100}, data={"train": s.train_rows})
        for s in scores
        if s.recipe
    ]

    def average(chosen: list[dict[str, Any]]) -> float | None:
        cells = tables.beside("vb-lora-1", chosen).cells
        return next(c.ours for c in cells if c.score.metric == AVERAGE and c.score.method == "VB-LoRA qv")

    assert average(runs) == pytest.approx(85.4, abs=0.05) and average(runs[1:]) is None


def test_commands_name_what_is_missing() -> None:
    empty = tables.beside("vb-lora-1", [])
    assert empty.commands == ["VBANK_SCALE=gpu vbank run vera-glue", "VBANK_SCALE=gpu vbank run vb-lora-glue"]
    one = tables.beside("vb-lora-1", [record("vb-lora-glue/cola-base-all")])
    assert one.commands == empty.commands  # the run that is there is kept
    ablation = tables.beside("vera-7", [])
    assert "VBANK_SCALE=gpu vbank run vera-glue/cola-large --set method.shared=false" in ablation.commands
    assert tables.beside("prolora-2", []).commands == []


def test_a_notebook_shows_a_table_that_scrolls_and_a_plain_one() -> None:
    table = tables.beside("vera-6", [])
    text = table._repr_html_()
    assert text.count("<tr>") == 1 + 3 + 2 * 9 and text.count("<th colspan") == 3  # head, blocks, two lines a method
    assert 'style="overflow-x:auto"' in text and "Uniform [0.0, 0.1]" in text and "<code>VBANK_SCALE=gpu" in text
    lines = repr(table).splitlines()
    assert lines[0] == "VeRA, Table 6: Without one of the vectors, and other initial values: RoBERTa-large"
    assert lines[1].split() == ["method", "MRPC", "RTE"]
    row = next(at for at, line in enumerate(lines) if line.startswith("only d"))
    assert lines[row].split()[-4:] == ["89.7", "±0.0", "67.0", "±13.9"] and lines[row + 1].split() == ["here", "·", "·"]
    assert "0 of 18 cells are filled" in repr(table) and lines[-1] in table.commands


def test_an_unknown_name_suggests_the_close_one() -> None:
    with pytest.raises(ValueError, match="unknown table 'vblora-1'; did you mean 'vb-lora-1'"):
        tables.beside("vblora-1", [])
    with pytest.raises(ValueError, match="unknown paper 'prolroa'; did you mean 'prolora'"):
        tables.scores("prolroa")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_the_command_prints_the_table_beside_the_ledger(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for run in (record("vb-lora-glue/cola-base-all"), record("vb-lora-glue/cola-base-all", scale="cpu")):
        ledger.write(tmp_path, run)
    code, out, _ = call(capsys, "results", "--table", "vb-lora-1", "--out", str(tmp_path))
    assert code == 0 and "64.3 ±1.4" in out and "64.0 (1)" in out
    assert "Apart" in out and "minilm" in out and "scale cpu" in out
    assert "VBANK_SCALE=gpu vbank run vb-lora-glue\n" in out


def test_json_and_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ledger.write(tmp_path / "ledger", record("vb-lora-glue/cola-base-all"))
    plot = tmp_path / "table.svg"
    arguments = ["results", "--table", "vb-lora-1", "--out", str(tmp_path / "ledger"), "--json", "--plot", str(plot)]
    code, out, _ = call(capsys, *arguments)
    found = json.loads(out)
    assert code == 0 and found["table"] == "vb-lora-1" and len(found["cells"]) == CELLS["vb-lora-1"]
    (cell,) = [cell for cell in found["cells"] if cell["ours"] is not None]
    assert (cell["column"], cell["printed"], cell["metric"], cell["unit"]) == ("CoLA", "64.3 ±1.4", "matthews", 100)
    assert cell["ours"] == pytest.approx(64.0) and cell["command"].endswith("vbank run vb-lora-glue/cola-base-all")
    assert plot.read_text().startswith("<?xml") and "<dc:date>" not in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("results --table vb-lora-7", "'vb-lora-6'"),
        ("results first-finetune --table vb-lora-1", "leave out EXPERIMENT"),
        ("results --search --table vb-lora-1", "leave out EXPERIMENT"),
        ("results --plot a.svg", "name it with --table"),
        ("results --table vb-lora-1 --plot a.txt", ".svg, .png, .pdf"),
        ("results --table vb-lora-1 --plot nowhere/a.svg", "there is no folder nowhere"),
    ],
)
def test_a_mistake_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments.split())
    assert code == 2 and not out and err.startswith("vbank: ") and err.count("\n") == 1 and said in err
    assert not list(tmp_path.iterdir())
