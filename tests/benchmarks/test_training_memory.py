"""The benchmark of training memory at its smallest: what it counts, and that SelectedAdamW changes no number."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_memory", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_bytes_are_counted_and_parts_are_kept(benchmark, tmp_path, capsys):
    out = tmp_path / "found.json"
    out.write_text('{"quality-90": {"rows": []}}')
    assert benchmark.main(["--tiny", "--part", "memory", "--steps", "2", "--rounds", "1", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["quality-90"] == {"rows": []}
    made = report["memory"]
    assert made["tiny"] and made["machine"]["cpu"] and made["versions"]["torch"] and made["finished"]
    rows = {(row["shape"], row["optimizer"]): row for row in made["rows"]}
    assert list(rows) == [(s, o) for s in ("roberta-base", "llama2-7b") for o in ("AdamW", "SelectedAdamW")]
    for shape, h, subs in (("roberta-base", 90, 216), ("llama2-7b", 2048, 1220)):
        plain, ours = rows[shape, "AdamW"], rows[shape, "SelectedAdamW"]
        bank, logits = 4 * h * 256, 4 * h * subs
        assert plain["sub_vectors"] == ours["sub_vectors"] == subs
        assert plain["weights_bytes"] == plain["gradient_bytes"] == ours["weights_bytes"] == bank + logits
        assert plain["state_bytes"] == 2 * (bank + logits) + 8  # and two counts of steps
        assert ours["gradient_bytes"] == bank + 4 * 2 * subs
        pairs = ours["state_bytes"] - 2 * bank - 8
        assert 12 * ours["pairs"] <= pairs <= 12 * ours["pairs"] * 9 / 8 and 2 * subs <= ours["pairs"] <= 4 * subs
        assert plain["peak_bytes"] > sum(plain[f"{kind}_bytes"] for kind in ("weights", "gradient", "state"))
        assert ours["peak_bytes"] < plain["peak_bytes"]
    assert [time["ratio"] > 0 for time in made["times"]] == [True, True]
    assert "llama2-7b    SelectedAdamW" in capsys.readouterr().out


def test_ways_of_training_the_digits(benchmark):
    config = benchmark.vbank.VBLoRA(2, 12, 8, 2)
    found = {way: benchmark.train_digits(way, config, benchmark.FAST_RATES, 0, 1) for way in benchmark.WAYS}
    plain, ours = found[benchmark.PLAIN], found[benchmark.SELECTED]
    for key in ("loss", "accuracy", "sum_of_logits", "chosen_mean", "chosen_quantiles"):
        assert ours[key] == plain[key]
    subs = plain["sub_vectors"]
    assert plain["logits_state_bytes"] == 8 * 12 * subs + 4
    assert found["AdamW, logits in bfloat16"]["logits_state_bytes"] == 4 * 12 * subs + 4
    assert found["Adafactor for the logits"]["logits_state_bytes"] == 4 * (12 + subs) + 4  # and a mean
    assert 0 < found["AdamW, 8-bit moments of the logits"]["logits_state_bytes"] < 0.7 * plain["logits_state_bytes"]
    assert len({row["sum_of_logits"] for row in found.values()}) == 4  # all ways but one change the numbers
    assert torch.tensor([row["loss"] for row in found.values()]).isfinite().all()
