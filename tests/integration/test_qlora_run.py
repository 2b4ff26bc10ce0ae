"""QLoRA through the runner: a tiny Llama in NF4 on the CPU, every method, from the recipe to merged weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_data import silent

import vbank
from vbank import ledger, tasks, training
from vbank.layers import DequantisedLinear
from vbank.recipes import Recipe, load
from vbank.run import run
from vbank.tasks.base import Task

METHODS = ["lora", "vera", "tied-lora", "prolora", "vb-lora"]


def four_bit(recipe_file: str, method: str, *more: str) -> Recipe:
    settings = ("model.quantise=nf4", "model.checkpointing=true", "train.accumulation=2", "train.batch_size=4", *more)
    return load(f"{recipe_file}/{method}", settings)


def validation_loss(model: Any, task: Task, recipe: Recipe, processor: Any) -> float:
    rows = task.load(announce=None).validation
    batch = task.collator(processor)(task.encode(rows, processor, recipe.task))
    labels = batch.pop("labels")
    with torch.no_grad():
        return (training.summed_loss(model(**batch).logits, labels) / training.items(labels)).item()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_resumes_and_merges_on_nf4_weights(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    recipe = four_bit(recipe_file, method)
    whole = run(recipe, 0, tmp_path / "whole", announce=silent)
    losses = [row["validation_loss"] for row in whole["curve"]]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert set(whole["metrics"]) == {"train_loss", "validation_loss", "exact"} and whole["metric"] == "exact"

    steps, real = [], training.AdapterTrainer.training_step

    def stopped(*args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 15:  # two of an optimizer step; the last checkpoint is at its sixth, the epoch's last
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.AdapterTrainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, 0, tmp_path / "stopped", announce=silent)
    (checkpoint,) = tmp_path.glob("stopped/.work/*/checkpoint-*")
    assert checkpoint.name == "checkpoint-6"
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 200_000  # no base weights
    resumed = run(recipe, 0, tmp_path / "stopped", announce=silent)
    assert resumed["resumed"] and resumed["curve"] == whole["curve"] and resumed["metrics"] == whole["metrics"]

    task = tasks.find("backwards")
    model, processor = task.model(recipe.model)
    assert sum(type(m).__name__ == "Linear4bit" for m in model.modules()) == 2 * 7
    vbank.load(model.eval(), tmp_path / "whole" / ledger.WORK / whole["run"] / "adapter")
    trained = validation_loss(model, task, recipe, processor)
    with vbank.enabled(model, False):
        base = validation_loss(model, task, recipe, processor)
    assert trained == pytest.approx(losses[-1], rel=1e-5) and trained < base
    vbank.merge(model)
    merged = [m for m in model.modules() if isinstance(m, DequantisedLinear)]
    assert len(merged) == 2 * 7  # seven maps a block, dequantised
    assert validation_loss(model, task, recipe, processor) == pytest.approx(trained, rel=1e-5)


def test_checkpointing_double_quantisation_and_accumulation_are_what_they_are_called(
    recipe_file: str, tmp_path: Path
) -> None:
    """Checkpointing changes no number, nor does half the batch accumulated twice."""
    plain = run(four_bit(recipe_file, "vb-lora"), 0, tmp_path, announce=silent)
    kept = run(four_bit(recipe_file, "vb-lora", "model.checkpointing=false"), 0, tmp_path, announce=silent)
    at_once = four_bit(recipe_file, "vb-lora", "train.accumulation=1", "train.batch_size=8")
    one = run(at_once, 0, tmp_path, announce=silent)
    assert len({plain["run"], kept["run"], one["run"]}) == 3
    for other in (kept, one):
        for a, b in zip(plain["curve"], other["curve"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
    for double in (True, False):
        model, _ = tasks.find("backwards").model(replace(at_once.model, double_quantise=double))
        state = model.model.layers[0].self_attn.q_proj.weight.quant_state
        assert state.quant_type == "nf4" and state.nested is double


def test_half_precision_compute_with_and_without_autocast(recipe_file: str, tmp_path: Path) -> None:
    exact = run(four_bit(recipe_file, "lora", "train.epochs=1"), 0, tmp_path, announce=silent)
    for compute, precision in (("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp32")):
        types = (f"model.compute={compute}", f"train.precision={precision}")
        record = run(four_bit(recipe_file, "lora", "train.epochs=1", *types), 0, tmp_path, announce=silent)
        for key in ("train_loss", "validation_loss"):
            assert record["metrics"][key] == pytest.approx(exact["metrics"][key], rel=0.02)


def test_int8_weights_and_an_8_bit_optimizer(recipe_file: str, tmp_path: Path) -> None:
    recipe = load(f"{recipe_file}/lora", ["model.quantise=int8", "train.optimizer=adamw_8bit", "train.epochs=1"])
    record = run(recipe, 0, tmp_path, announce=silent)
    assert record["metrics"]["validation_loss"] < 2.6


def test_norms_are_in_float32_under_autocast_alone(recipe_file: str) -> None:
    from vbank.trainable import prepare

    task = tasks.find("backwards")
    for precision, kind in (("bf16", torch.float32), ("fp32", torch.bfloat16)):
        recipe = four_bit(recipe_file, "lora", "model.compute=bf16", f"train.precision={precision}")
        model: Any = prepare(task.model(recipe.model)[0], recipe).model
        assert model.model.norm.weight.dtype == kind
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained and all(name.startswith("vbank.") for name in trained)
