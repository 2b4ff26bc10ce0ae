"""The QLoRA benchmark at its smallest: every case runs, the weights are NF4, and without a GPU it says what to do."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from vbank import account, architectures
from vbank.layers import is_quantised

PATH = Path(__file__).parents[2] / "benchmarks" / "qlora_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("qlora_memory", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_case_runs_and_is_written(benchmark, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert benchmark.main(["--tiny", "--length", "8", "--steps", "1", "--warm-up", "1", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["tiny"] and report["machine"]["cpu"] and report["versions"]["bitsandbytes"]
    rows = report["rows"]
    assert [(row["shape"], row["recipe"]) for row in rows] == [(c.shape, c.recipe) for c in benchmark.CASES]
    assert {row["method"] for row in rows} == {"lora", "vera", "prolora", "vb-lora"}
    assert all(row["peak_bytes"] > 0 and row["seconds_a_step"] > 0 and 5.0 < row["loss"] < 7.0 for row in rows)
    assert all(row["optimizer"] == "adamw" and row["length"] == 8 and "paper_mib" not in row for row in rows)
    printed = capsys.readouterr().out
    assert printed.count(" s a step") == len(rows) and "paper" not in printed


def test_the_model_is_nf4_and_never_dense(benchmark):
    configuration = architectures.build("llama2-7b", language_model=True, **benchmark.TINY).config
    model = benchmark.random_llama(configuration, torch.device("cpu"))
    inside = [m for name, m in model.named_modules() if name.startswith("model.layers") and hasattr(m, "in_features")]
    assert len(inside) == 14 and all(is_quantised(layer) for layer in inside)
    assert all(layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested for layer in inside)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight.dtype == torch.bfloat16 and not is_quantised(model.lm_head)
    weights = account.memory(configuration, "head", quantise="nf4", compute="bf16").held
    packed = sum(layer.weight.numel() for layer in inside)
    assert packed / weights["linear layers in blocks"] == pytest.approx(4 / 4.127, rel=1e-3)


def test_the_settings_are_those_of_the_papers(benchmark):
    configs = {case.recipe: benchmark.settings_of(case, tiny=False)[1] for case in benchmark.CASES}
    assert configs["vb-lora-alpaca/lora-7b"].rank == 64
    assert configs["vera-alpaca/vera-13b"].rank == 1024
    assert configs["prolora-instruct/prolora-r8-7b"].unshared_rank == 1
    bank = configs["vb-lora-alpaca/vb-lora-13b"]
    assert (bank.rank, bank.num_vectors, bank.vector_length, bank.top_k) == (6, 2048, 256, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_how_to_run_it(benchmark, capsys):
    assert benchmark.main([]) == 2
    said = capsys.readouterr().err
    assert "no CUDA device" in said and "python benchmarks/qlora_memory.py --tiny" in said


def test_running_out_of_memory_is_a_row(benchmark, monkeypatch):
    def burst(*arguments):
        raise torch.cuda.OutOfMemoryError("too much")

    monkeypatch.setattr(benchmark, "measure", burst)
    (row,) = benchmark.run(benchmark.CASES[:1], [8], 1, 1, tiny=True)
    assert row["error"] == "out of memory" and "shorter --length" in benchmark.line(row)


def test_refusals(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--tiny", "--steps", "0"])
    assert "at least 1" in capsys.readouterr().err
