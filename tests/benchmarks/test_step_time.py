"""The step-time benchmark at its smallest: every contestant steps, ratios are those of the same round."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("step_time", FOLDER / "step_time.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def base(benchmark):
    return benchmark.model_of("roberta-base", True, torch.device("cpu"))


def test_every_contestant_runs_and_is_written(benchmark, tmp_path, capsys):
    out, threads = tmp_path / "found.json", torch.get_num_threads()
    arguments = ["--tiny", "--rounds", "2", "--out", str(out), "--profile", str(tmp_path)]
    try:
        assert benchmark.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert report["tiny"] and report["machine"]["cpu"] and report["versions"]["peft"] and report["clock"] == "cpu"
    assert [row["targets"] for row in report["rows"]] == ["qv", "all-linear"]
    names = {f"vbank {key}" for key in benchmark.configs(32)} | {f"peft {key}" for key in ("lora", "vera", "vb-lora")}
    for row in report["rows"]:
        assert set(row["steps"]) == names
        assert all(min(found.values()) > 0 for found in row["steps"].values())
        assert set(row["ratios"]) == {f"{above} / {below}" for above, below in benchmark.RATIOS}
    assert len(list(tmp_path.glob("*.txt"))) == 2 * len(names)
    assert "vbank vb-lora / vbank lora" in capsys.readouterr().out


def test_a_ratio_compares_steps_of_the_same_round(benchmark):
    assert benchmark.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0  # the ratio of the medians would be 1
    assert benchmark.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_twins_share_frozen_weights_and_nothing_else(benchmark, base):
    found = list(benchmark.contestants(base, "qv", 32, ["vbank lora", "peft lora", "vbank vb-lora"]))
    assert [one.name for one in found] == ["vbank lora", "vbank vb-lora", "peft lora"]
    weights = {p.data_ptr() for p in base.parameters()}
    for one in found:
        trained = [p for p in one.model.parameters() if p.requires_grad]
        assert weights <= {p.data_ptr() for p in one.model.parameters()}
        assert trained and weights.isdisjoint(p.data_ptr() for p in trained)
    per_layer = 2 * 2 * 64 * benchmark.RANK  # query and value, A and B
    ours, vb, theirs = (sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in found)
    assert ours == theirs == 2 * per_layer
    assert vb == 90 * 32 + 2 * per_layer // 32 * 90
    assert not any(hasattr(m, "vbank") for m in base.modules())


def test_wrong_settings_are_refused(benchmark, capsys):
    for arguments in (["--setting", "8"], ["--setting", "0x8"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            benchmark.main(["--tiny", *arguments])
    assert "8x64" in capsys.readouterr().err
