"""The benchmark of training memory at its smallest: what it counts, and that SelectedAdamW changes no number."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vbank import tasks

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


def test_vectors_tried_are_those_of_the_choices_before_each_step(benchmark):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    benchmark.vbank.attach(model, benchmark.vbank.VBLoRA(2, 90, 2, 3), ["0"])
    optimizer = benchmark.vbank.SelectedAdamW(model, 0.05)
    tried, seen = benchmark.Tried(), []
    hook = register_optimizer_step_pre_hook(tried)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for _ in range(52):
        chosen = optimizer.method.logits.topk(3).indices
        seen.append([set(row) for row in chosen.tolist()])
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        other.step()
        optimizer.zero_grad()
    hook.remove()
    assert tried.steps == 52 and [point["step"] for point in tried.curve] == [1, 2, 5, 10, 20, 50]
    for point in [*tried.curve, tried.now()]:
        counts = sorted(len(set.union(*before)) for before in zip(*seen[: point["step"]], strict=True))
        assert len(counts) == 16
        assert point["mean"] == sum(counts) / 16 and point["max"] == counts[-1]
        assert point["median"] == (counts[7] + counts[8]) / 2
        assert point["90%"] == pytest.approx(counts[13] + (counts[14] - counts[13]) / 2)
        assert point["share"] == pytest.approx(sum(counts) / 16 / 90)
    assert tried.ever.sum() == optimizer.length.most > 16 * 6


def test_generated_sentences_are_not_taken_for_real_ones(benchmark, no_folder, tmp_path):
    with pytest.raises(SystemExit, match="the part tried counts on real sentences; set VBANK_DATA"):
        benchmark.main(["--part", "tried", "--out", str(tmp_path / "found.json")])
    assert not (tmp_path / "found.json").exists()


def test_runs_of_recipes_are_counted_and_a_stopped_part_goes_on(benchmark, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TABLE, "backwards", "tiny_task:BACKWARDS")
    name, rates = f"{tiny_recipe}/vb-lora", {"bank": 1e-3, "logits": 1e-2}
    monkeypatch.setattr(benchmark, "TRIED", ((name, None), (name, rates)))
    count, runs = benchmark.count_tried, []

    def stopped_once(recipe, seed):
        runs.append((recipe.method.lr["logits"], recipe.method.settings["num_vectors"]))
        if len(runs) == 3:
            raise KeyboardInterrupt
        return count(recipe, seed)

    monkeypatch.setattr(benchmark, "count_tried", stopped_once)
    out = tmp_path / "found.json"
    out.write_text('{"memory": {"rows": []}}')
    command = ["--tiny", "--part", "tried", "--vectors", "6", "12", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(command)
    assert len(json.loads(out.read_text())["tried"]["rows"]) == 2
    assert benchmark.main(command) == 0
    report = json.loads(out.read_text())
    assert report["memory"] == {"rows": []} and report["tried"]["tiny"] and "seconds" not in report["tried"]
    assert runs == [(0.1, 6), (0.1, 12), (0.01, 6), (0.01, 6), (0.01, 12)]
    rows = report["tried"]["rows"]
    assert [(row["lr"]["logits"], row["num_vectors"]) for row in rows] == runs[:3] + runs[4:]
    assert [row["lr"]["bank"] for row in rows] == [1e-2, 1e-2, 1e-3, 1e-3]
    for row in rows:
        assert row["recipe"] == "tiny/vb-lora" and row["seed"] == 0 and row["steps"] == 4
        assert [point["step"] for point in row["curve"]] == [1, 2, 4]
        assert row["curve"][0] == {"step": 1, "mean": 2, "median": 2, "90%": 2, "max": 2} | {
            "share": pytest.approx(2 / row["num_vectors"])
        }
        assert 2 < row["curve"][-1]["mean"] < row["curve"][-1]["max"] <= row["num_vectors"]
        assert row["metrics"]["exact"] >= 0 and row["cpu_seconds"] > 0
    benchmark.main(command)
    assert len(runs) == 5
