"""The serving benchmark at its smallest: every part runs, is written, and keeps what another run wrote."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "serving.py"
RECORDED = Path(__file__).parents[2] / "results" / "benchmarks" / "serving.json"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("serving_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_part_runs_and_is_written(benchmark, tmp_path, capsys):
    out, small = tmp_path / "found.json", ["--tiny", "--rounds", "1", "--adapters", "40", "--shape", "3x4"]
    assert benchmark.main([*small, "--method", *benchmark.METHODS, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == set(benchmark.PARTS) and all(part["tiny"] for part in report.values())
    (memory,) = report["memory"]["rows"]
    assert memory["adapters"] == 40 and memory["payload_bytes"] == 40 * memory["payload_bytes_each"]
    assert [row["method"] for row in report["time"]["rows"]] == list(benchmark.METHODS)
    for row in report["time"]["rows"]:
        assert row["largest_difference"] < 1e-5 < row["smallest_effect"]
        assert row["different_over_one"] == pytest.approx(
            row["seconds"]["different"]["cpu_seconds"] / row["seconds"]["one"]["cpu_seconds"]
        )
    (peft,) = report["peft"]["rows"]
    assert peft["largest_difference"] < 1e-5 and report["peft"]["versions"]["peft"]
    before = report["memory"]
    assert benchmark.main([*small[:-1], "2x4", "--part", "time", "--method", "lora", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["memory"] == before and len(report["time"]["rows"]) == 1 + len(benchmark.METHODS)
    assert "different over one" in capsys.readouterr().out


def test_the_recorded_run_is_of_this_benchmark_and_in_its_targets(benchmark):
    """Memory under 1.2 GB, a mixed batch at most 1.3 times one adapter, a switch at most 2 % of a forward."""
    report = json.loads(RECORDED.read_text())
    assert set(report) == set(benchmark.PARTS) and not any(part["tiny"] for part in report.values())
    (memory,) = report["memory"]["rows"]
    assert memory["adapters"] == 10_000 and memory["payload_bytes_each"] == 95_616
    assert memory["rss_growth_bytes"] < 1.2e9
    rows = {(row["method"], row["rows"], row["length"]): row for row in report["time"]["rows"]}
    main = rows["vb-lora", 32, 16]
    assert main["different_over_one"] <= 1.3 and main["switch_share"] <= 0.02
    assert {method for method, _, _ in rows} == set(benchmark.METHODS)
    assert all(row["largest_difference"] < 1e-5 < row["smallest_effect"] for row in rows.values())
    assert all(row["settings"] == benchmark.METHODS[row["method"]].settings() for row in rows.values())


def test_rows_of_another_run_keep_their_time_and_setting(benchmark, tmp_path, capsys, monkeypatch):
    """A row is never moved under another machine, other versions or another size."""
    out = tmp_path / "found.json"
    small = ["--tiny", "--rounds", "1", "--part", "time", "--shape", "2x4", "--out", str(out)]
    assert benchmark.main([*small, "--method", "lora"]) == 0
    report = json.loads(out.read_text())
    (row,) = report["time"]["rows"]
    row["time"] = "2001-01-01T00:00:00+00:00"
    out.write_text(json.dumps(report))
    assert benchmark.main([*small, "--method", "vera"]) == 0
    lora, vera = json.loads(out.read_text())["time"]["rows"]
    assert lora == row and vera["time"] > "2002"
    written = out.read_bytes()
    machine = benchmark.ledger.machine() | {"cpu": "another"}
    for change in (small[1:], small):
        if change is small:
            monkeypatch.setattr(benchmark.ledger, "machine", lambda: machine)
        with pytest.raises(SystemExit):
            benchmark.main([*change, "--method", "lora"])
        assert "from another machine, versions or size; give another --out" in capsys.readouterr().err
        assert out.read_bytes() == written


def test_the_documented_command_writes_the_recorded_file(benchmark):
    assert Path(__file__).parents[2] / benchmark.OUT == RECORDED


def test_refusals(benchmark, capsys):
    for wrong in (["--rounds", "0"], ["--shape", "32"], ["--shape", "0x4"], ["--adapters", "0"]):
        with pytest.raises(SystemExit):
            benchmark.main(["--tiny", *wrong])
        assert "at least 1" in capsys.readouterr().err
