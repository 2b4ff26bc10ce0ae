"""The command line: the papers' counts, help with an example, and mistakes that end in one line."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from vbank import cli, ledger


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # VB-LoRA, Table 1: 0.023M stored on RoBERTa-base, query and value
        ("--model roberta-base --method vb-lora --targets qv", {"stored": 23904, "bytes": 95616, "trainable": 74880}),
        # VB-LoRA, Table 4's model: bank of 2,048 vectors, so indices take two bytes
        (
            "--model llama2-7b --method vb-lora --targets all-linear --num-vectors 2048 --vector-length 256 --top-k=2",
            {"bytes": 2_409_472},
        ),
        # VeRA, Table 2: 0.043M, LoRA 0.3M
        ("--model roberta-base --method vera --targets qv", {"trainable": 24 * (1024 + 768)}),
        ("--model roberta-base --method lora --targets qv --alpha 16", {"trainable": 24 * 8 * 2 * 768}),
        ("--model minilm --method lora --targets query,value", {"sites": 12}),
        ("--model minilm --method lora --targets query", {"sites": 6, "targets": ["query"]}),
        ("--model minilm --method lora --targets layer.0.attention.self.query", {"sites": 1}),
        (r"--model minilm --method lora --targets .*\.[0-3]{1,2}\..*(query|value)", {"sites": 8}),
        ("--model minilm --method lora --targets all-linear", {"targets": "all-linear"}),
    ],
)
def test_counts(capsys: pytest.CaptureFixture[str], arguments: str, expected: dict[str, int]) -> None:
    code, out, _ = call(capsys, "count", *arguments.split(), "--json")
    found = json.loads(out)
    assert code == 0 and {key: found[key] for key in expected} == expected


def test_the_table_says_the_same_as_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "count", "--model", "roberta-base", "--method", "vb-lora")
    assert code == 0 and "23,904" in out and "95,616" in out and "74,880" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("cuont", "'count'"),
        ("count --model roberta-bas --method lora", "'roberta-base'"),
        ("count --model roberta-base --method vblora", "'vb-lora'"),
        ("count --model roberta-base --method lora --rnk 4", "'--rank'"),
        ("count --model roberta-base --method lora --rank", "--rank lacks a value"),
        ("count --model roberta-base --method lora --rank four", "rank is 'four'"),
        ("count --model roberta-base --method vb-lora --vector-length 100", "lengths that divide all layers"),
        ("count --model roberta-base --method lora --targets quer,value", "'query'"),
        ("count --model roberta-base --method lora --targets quer", "unknown --targets 'quer'; did you mean 'query'?"),
        ("count --model roberta-base --method lora --targets all-linaer", "did you mean 'all-linear'?"),
        ("count --model roberta-base --method lora --targets quer.*", "separated by commas, such as query,key,value"),
        ("count --model roberta-base --method lora --targets quer(", "--targets 'quer(' is no regular expression: "),
        ("count --method lora", "--model"),
        ("audit --paper prolra", "'prolora'"),
        ("audit --papre vera", "--paper"),
        ("audit --live --json", "leave out --live or --json"),
        ("run first-finetune/lroa", "'lora'"),
        ("run first-finetune/lora --set train.epcohs=1", "'epochs'"),
        ("run first-finetune/lora --seeds 0", "--seeds"),
        ("run first-finetune/lora --out setup.cfg.file", "is a file"),
        ("run first-finetune/lora --search --seeds 2", "leave out --seeds"),
        ("run first-finetune/lora --set train.epochs=0", "train.epochs is 0"),
        ("results first-finetune --out empty", "unknown experiment"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg.file").write_text("")
    code, out, err = call(capsys, *arguments.split())
    assert code == 2 and not out
    assert err.startswith("vbank: ") and err.count("\n") == 1 and said in err
    assert "['" not in err, "a list as Python writes it"


def test_a_path_that_cannot_be_written_is_a_mistake_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "ledger"
    code, _, err = call(capsys, "run", "first-finetune/head", "--set", "task.source=generated", "--out", str(out))
    assert code == 2
    assert err.startswith(f"vbank: {out}") and "Not a directory; choose a path" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left: make room; or not", "adapter"), "adapter: No space left: make room; or not"),
        (ConnectionError("no answer"), "no answer"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_that_says_what_to_do_or_names_no_path_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    from vbank import audits

    def fails(paper: str | None) -> None:
        raise error

    monkeypatch.setattr(audits, "audit", fails)
    assert call(capsys, "audit") == (2, "", f"vbank: {said}\n")


@pytest.mark.parametrize("command", ["count", "audit", "run", "results"])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and "Example:" in out and f"vbank {command}" in out.partition("Example:")[2]


def test_help_names_the_settings_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "count", "--help")
    assert "--vector-length" in out and "--unshared-rank" in out and "--d-init" in out


@pytest.mark.parametrize("search", [False, True])
def test_run_and_results_print_the_ledger(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: bool
) -> None:
    """The training itself is tested in test_run; here it is put aside."""
    import vbank.run

    made = []

    def record(recipe, seed, out, kind):
        made.append((recipe.variant, seed, kind))
        done = {
            "format": 1,
            "experiment": recipe.experiment,
            "variant": recipe.variant,
            "run": vbank.run.run_id(recipe, SimpleNamespace(fingerprint=""), seed),
            "kind": kind,
            "seed": seed,
            "recipe": recipe.resolved(),
            "data": {"source": "generated sentences"},
            "metric": "accuracy",
            "metrics": {"accuracy": 0.8 + 0.01 * seed},
            "parameters": {"trainable": 1000, "stored": 13464.5, "bytes": 53858, "head": 770},
            "bytes_on_disk": 60236,
            "seconds": {"train": 12.0, "train_cpu": 9.0},
            "peak_memory_bytes": 1,
        }
        ledger.write(out, done)
        return done

    monkeypatch.setattr(vbank.run, "run", record)
    extra = ["--search"] if search else ["--seeds", "2"]
    code, out, _ = call(capsys, "run", "first-finetune", "--out", str(tmp_path), *extra)
    variants = ["head", "full", "lora", "vera", "tied-lora", "prolora", "vb-lora"]
    if search:
        assert made == [(name, 0, "search") for name in variants for _ in range(6)]
    else:
        assert made == [(name, seed, "final") for seed in range(2) for name in variants]
    assert code == 0 and "first-finetune/vb-lora" in out and "13,464.5" in out and "generated sentences" in out
    assert ("vb-lora: accuracy 0.8050, the median of seeds 0, 1\n" in out) is not search
    code, out, _ = call(capsys, "results", "--out", str(tmp_path), "--json", *extra[:1] * search)
    rows = json.loads(out)
    assert len(rows) == (42 if search else 7) and rows[0]["bytes_on_disk"] == 60236
    if not search:
        assert rows[0]["mean"] == pytest.approx(0.805) and rows[0]["seeds"] == [0, 1]
        assert rows[0]["deviation"] == pytest.approx(0.01 / 2**0.5)


def test_audit_prints_every_figure_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "audit", "--paper", "prolora")
    assert code == 0 and "7,823,360" in out and "mismatch, explained" in out
    totals = next(line for line in out.splitlines() if line.startswith("│ prolora"))
    assert [cell.strip() for cell in totals.split("│")[2:-1]] == ["50", "31", "19", "0", "0"]
    assert "of the 31 matches 15 rest on a setting that we inferred" in " ".join(out.split())


def test_audit_can_be_narrowed_to_what_does_not_reproduce(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "audit", "--paper", "prolora", "--mismatches", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 19 and not any(row["matches"] for row in rows)
    keys = "paper table row setting printed computed matches note unit source status"
    assert all(" ".join(row) == keys for row in rows)
    code, out, _ = call(capsys, "audit", "--paper", "prolora", "--mismatches")
    assert "8 key-value heads" in " ".join(out.split()) and "159.91M" not in out
    assert "19 mismatches, 4 causes" in out and "rounded up where the share" in out
    assert " 1.0005 " in out, "not rounded to 1"


@pytest.mark.parametrize("width", [80, 190])
def test_audit_breaks_no_word_of_a_row_s_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(cli, "console", lambda: Console(width=width))
    _, out, _ = call(capsys, "audit", "--paper", "vb-lora", "--mismatches")
    lines = [line for line in out.partition("Totals")[0].splitlines() if line.startswith("│")]
    names = " ".join(line.split("│")[2] for line in lines).split()
    code, out, _ = call(capsys, "audit", "--paper", "vb-lora", "--mismatches", "--json")
    assert code == 0 and names == " ".join(row["row"] for row in json.loads(out)).split()


def test_audit_can_count_live_models(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "audit", "--paper", "vb-lora", "--mismatches", "--live")
    found, of = out.splitlines()[-1].removeprefix("live models: ").split()[:3:2]
    assert code == 0 and found == of and int(of) > 10


def test_an_empty_ledger_says_how_to_fill_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "results", "--out", str(tmp_path))
    assert code == 0 and "vbank run" in out


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`vbank count` on the base install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, out, err = call(capsys, "count", "--model", "roberta-base", "--method", "lora")
    assert code == 2 and not out
    assert err == "vbank: transformers is missing; pip install 'vbank[run]'\n"


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("math_verify.parser", "math"),
        ("openai", "judge"),
        ("sacrebleu", "nlg"),
        ("nltk", "nlg"),
        ("pycocoevalcap", "nlg"),
        ("bitsandbytes", "qlora"),
        ("matplotlib", "book"),
        ("datasets", "run"),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    from vbank import audits

    def absent(paper: str | None) -> None:
        raise ModuleNotFoundError(package, name=package)

    monkeypatch.setattr(audits, "audit", absent)
    code, _, err = call(capsys, "audit")
    assert code == 2 and err == f"vbank: {package.partition('.')[0]} is missing; pip install 'vbank[{extra}]'\n"
    if extra not in ("run", "book"):
        wanted = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        listed = " ".join(wanted["project"]["optional-dependencies"][extra])
        assert package.partition(".")[0].replace("_", "-") in listed


def test_a_missing_module_of_vbank_itself_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vbank.counting", None)
    with pytest.raises(ModuleNotFoundError, match=r"vbank\.counting"):
        cli.main(["count", "--model", "roberta-base", "--method", "lora"])


def test_python_m_vbank_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vbank", "run", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "unknown recipe" in done.stderr
