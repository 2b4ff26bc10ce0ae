"""Runs whose score comes from generating: killed anywhere they end in the same numbers; steps, accumulation, report."""

import json
import os
from pathlib import Path

import pytest
import torch
from killing import killed_at
from local_data import silent

from vbank import callbacks, tasks
from vbank.batches import LengthBuckets, Share
from vbank.recipes import load
from vbank.run import epochs, run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_while_and_after_generating_it_ends_in_the_same_numbers(recipe_file: str, tmp_path: Path) -> None:
    # 6 steps an epoch; accumulated batches, and an end within an epoch, where the Trainer alone would train on
    recipe = load(f"{recipe_file}/lora", ["train.batch_size=4", "train.accumulation=2", "train.max_steps=9"])
    whole = run(recipe, 0, tmp_path / "whole", announce=silent)
    assert [row["epoch"] for row in whole["curve"]] == [1, 2]
    out = tmp_path / "killed"
    points = (("step", 7), ("save", 2), ("measure", 1), ("answers", 1), ("adapter", 1), ("record", 1))
    reached = []
    for point, times in points:
        killed_at(point, times, recipe, out, silent)
        assert not list(out.glob("*/*/*.json"))
        reached.append(max([int(path.name[11:]) for path in out.glob(".work/*/checkpoint-*")], default=0))
    assert reached[0] == 2 and reached[2:] == [9] * 4
    resumed = run(recipe, 0, out, announce=silent)
    assert resumed["resumed"]
    assert (resumed["metrics"], resumed["curve"]) == (whole["metrics"], whole["curve"])
    written = [next(tmp_path.glob(f"{name}/.work/*/predictions.jsonl")).read_text() for name in ("whole", "killed")]
    assert written[0] == written[1] and len(written[0].splitlines()) == 4
    trained = [next(tmp_path.glob(f"{name}/.work/*/adapter")) for name in ("whole", "killed")]
    for file in trained[0].iterdir():
        assert (trained[1] / file.name).read_bytes() == file.read_bytes()


def test_the_record_of_a_generating_task(recipe_file: str, tmp_path: Path) -> None:
    record = run(load(f"{recipe_file}/lora"), 0, tmp_path, announce=silent)
    assert record["metric"] == "exact" and set(record["metrics"]) == {"train_loss", "validation_loss", "exact"}
    assert all(set(row) == {"epoch", "train_loss", "validation_loss"} for row in record["curve"])
    assert record["seconds"]["measure"] > 0 and record["parameters"]["head"] == 0
    (predictions,) = tmp_path.glob(".work/*/predictions.jsonl")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 4 and set(rows[0]) == {"prompt", "answer", "generated"}
    assert record["metrics"]["exact"] == sum(row["answer"] == row["generated"] for row in rows) / 4


def test_full_fine_tuning_of_a_model_without_a_head(recipe_file: str, tmp_path: Path) -> None:
    record = run(load(f"{recipe_file}/full"), 0, tmp_path, announce=silent)
    assert record["parameters"]["head"] == 0 and record["parameters"]["bytes"] == 4 * record["parameters"]["trainable"]
    assert record["curve"][1]["validation_loss"] < record["curve"][0]["validation_loss"]


def test_half_a_batch_accumulated_twice_is_the_whole_batch(recipe_file: str, tmp_path: Path) -> None:
    smooth = "train.label_smoothing=0.1"
    at_once = run(load(f"{recipe_file}/vb-lora", [smooth]), 0, tmp_path, announce=silent)
    halves = load(f"{recipe_file}/vb-lora", [smooth, "train.batch_size=4", "train.accumulation=2"])
    accumulated = run(halves, 0, tmp_path, announce=silent)
    assert accumulated["run"] != at_once["run"]
    for one, other in zip(at_once["curve"], accumulated["curve"], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    plain = run(load(f"{recipe_file}/vb-lora"), 0, tmp_path, announce=silent)
    assert plain["curve"][0]["train_loss"] < at_once["curve"][0]["train_loss"]  # smoothing costs, and is in no
    assert plain["curve"][0]["validation_loss"] == pytest.approx(at_once["curve"][0]["validation_loss"], rel=0.02)


@pytest.mark.parametrize(("settings", "steps"), [(["train.warmup_steps=5"], 5), (["train.warmup=0.25"], 3)])
def test_warm_up_in_steps_or_as_a_share(recipe_file: str, settings: list[str], steps: int, tmp_path: Path) -> None:
    from vbank.run import arguments

    recipe = load(f"{recipe_file}/lora", settings)
    assert arguments(recipe, 0, 43, tmp_path).warmup_steps == steps  # of 12
    few = load(f"{recipe_file}/lora", ["train.warmup=0.25", "train.max_steps=8", "train.accumulation=2"])
    assert (arguments(few, 0, 43, tmp_path).warmup_steps, arguments(few, 0, 43, tmp_path).max_steps) == (2, 8)


def test_a_long_epoch_says_how_far_it_is(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if half a minute passed between two looks at the clock."""

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            Clock.now += 30.0
            return Clock.now

    monkeypatch.setattr(callbacks, "time", Clock())
    run(load(f"{recipe_file}/lora"), 0, tmp_path, announce=silent)
    said = [line for line in capsys.readouterr().out.splitlines() if "  step " in line]
    assert said and said[0].startswith("tiny/lora seed 0  step ") and said[0].endswith(" s left")


def test_a_notebook_gets_our_lines_and_no_table_of_the_trainers(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if transformers had found a notebook when it was imported."""
    from transformers.utils.notebook import NotebookProgressCallback

    shown: list[object] = []
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: shown.append(what))
    run(load(f"{recipe_file}/lora"), 0, tmp_path, announce=silent)
    assert shown == []
    said = [line for line in capsys.readouterr().out.splitlines() if "  epoch " in line]
    assert [line.split("  ")[1] for line in said] == ["epoch 1/2", "epoch 2/2"]


def test_a_loss_that_is_no_number_is_noticed_within_a_long_epoch(recipe_file: str, tmp_path: Path) -> None:
    recipe = load(f"{recipe_file}/full", ["method.lr=1e30", "train.batch_size=1", "train.epochs=2"])
    with pytest.raises(FloatingPointError, match=r"loss became nan by step (43|50); lower method\.lr"):
        run(recipe, 0, tmp_path, announce=silent)


def test_dropout_is_set_where_the_recipe_sets_it(recipe_file: str) -> None:
    from dataclasses import replace

    task, settings = tasks.find("backwards"), load(f"{recipe_file}/lora").model
    assert task.model(settings)[0].config.attention_dropout == 0.0
    assert task.model(replace(settings, dropout=0.3))[0].config.attention_dropout == 0.3


@pytest.mark.parametrize(("rows", "batch", "accumulation"), [(43, 7, 3), (40, 8, 1), (5, 8, 2), (64, 4, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_of_a_batch_cover_it_once(rows: int, batch: int, accumulation: int, processes: int) -> None:
    lengths = [1 + row % 9 for row in range(rows)]
    whole = list(LengthBuckets(lengths, batch, 0, accumulation))
    assert sorted(row for part in whole for row in part) == list(range(rows))
    assert len(LengthBuckets(lengths, batch, 0, accumulation)) == len(whole)
    shares = [Share(LengthBuckets(lengths, batch, 0, accumulation), rank, processes) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(whole)}
    for part, mine in zip(whole, zip(*shares, strict=True), strict=True):
        if len(part) < processes:
            assert all(share == part for share in mine)  # each weighs the same, so the mean is that of the batch
        else:
            assert sorted(row for share in mine for row in share) == sorted(part) and all(mine)


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut() -> None:
    lengths = [1 + row % 9 for row in range(43)]
    steps = list(LengthBuckets(lengths, 6, 0))
    cut = list(LengthBuckets(lengths, 2, 0, accumulation=3))
    assert [sum(cut[i : i + 3], []) for i in range(0, len(cut), 3)] == steps


def test_the_log_becomes_one_row_an_epoch_with_every_metric() -> None:
    history = [
        {"loss": 2.0, "grad_norm": 1.0, "epoch": 1.0},
        {"eval_loss": 1.5, "eval_accuracy": 0.5, "eval_f1": 0.4, "eval_runtime": 3.0, "epoch": 1.0},
        {"loss": 1.0, "epoch": 1.4},
        {"eval_loss": 1.2, "eval_accuracy": 0.6, "eval_f1": 0.5, "epoch": 1.4},
        {"train_runtime": 9.0, "epoch": 1.4},
    ]
    assert epochs(history) == [
        {"epoch": 1, "train_loss": 2.0, "validation_loss": 1.5, "accuracy": 0.5, "f1": 0.4},
        {"epoch": 2, "train_loss": 1.0, "validation_loss": 1.2, "accuracy": 0.6, "f1": 0.5},
    ]


def test_the_loss_is_the_mean_that_torch_gives() -> None:
    from torch.nn import functional as F

    from vbank.training import items, summed_loss

    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 6, 9, generator=draw), torch.randint(9, (4, 6), generator=draw)
    labels[:, :3] = -100
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=smoothing)
        torch.testing.assert_close(summed_loss(logits, labels, smoothing) / items(labels), expected)
    classes = torch.tensor([0, 2, 1, 8])
    torch.testing.assert_close(
        summed_loss(logits[:, 0], classes) / items(classes), F.cross_entropy(logits[:, 0], classes)
    )
    scores = torch.randn(4, generator=draw)
    torch.testing.assert_close(summed_loss(logits[:, 0, :1], scores) / 4, F.mse_loss(logits[:, 0, 0], scores))
