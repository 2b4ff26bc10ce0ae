"""The runner: one record a run, finished runs kept, stopped ones resumed to the same numbers."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from killing import killed_at
from local_data import silent

import vbank
from vbank import ledger, tasks
from vbank.recipes import Recipe, load
from vbank.run import candidates, load_data, run, run_id
from vbank.trainable import prepare


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 2 layers and a word tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    from vbank.tasks.generated import generate

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = sorted({word for row in generate("sentiment")["train"] for word in str(row["sentence"]).split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=len(words) + 5, **shape)).save_pretrained(folder)
    return folder


def settings(tiny: Path, *more: str) -> list[str]:
    return [
        f"model.name={tiny}",
        "task.source=generated",
        "task.train_size=200",
        "train.epochs=3",
        "train.save_steps=4",
        *more,
    ]


VECTORS = ("method.vector_length=16", "method.num_vectors=12")


def numbers(record: dict) -> tuple:
    return record["metrics"], record["curve"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_point_resumes_to_the_same_numbers(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/vb-lora", settings(tiny, *VECTORS))
    whole = run(recipe, 0, tmp_path / "whole", announce=silent)
    out = tmp_path / "killed"
    # 13 steps an epoch, a checkpoint every 4 and at its end. Killed before the first checkpoint, within an epoch, in an
    # evaluation, while a checkpoint is written, before it is in place, before the older one is gone, before the record.
    points = (("step", 3), ("step", 7), ("evaluation", 1), ("save", 2), ("rename", 2), ("removal", 4), ("record", 1))
    reached = []
    for point, times in points:
        killed_at(point, times, recipe, out, silent)
        assert not list(out.glob("*/*/*.json"))
        reached.append(max([int(path.name[11:]) for path in out.glob(".work/*/checkpoint-*")], default=0))
    assert reached == sorted(reached) and reached[0] == 0 and len(set(reached)) > 4
    resumed = run(recipe, 0, out, announce=silent)
    assert resumed["resumed"] and resumed["run"] == whole["run"]
    assert numbers(resumed) == numbers(whole)
    assert not list(out.glob(".work/*/checkpoint-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_checkpoints_of_a_run_killed_after_its_record_go_at_the_next_call(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/lora", settings(tiny, "task.train_size=64", "train.epochs=1"))
    killed_at("cleanup", 1, recipe, tmp_path, silent)
    (written,) = tmp_path.glob("*/*/*.json")
    (left,) = tmp_path.glob(".work/*/checkpoint-*")
    unfinished = left.with_name("unfinished")
    unfinished.mkdir(exist_ok=True)
    with ledger.claim(left.parent):  # by a process that has written the record and is about to remove them
        assert run(recipe, 0, tmp_path, announce=silent) == ledger.load(written)
        assert left.is_dir() and unfinished.is_dir()
    assert run(recipe, 0, tmp_path, announce=silent) == ledger.load(written)
    assert not left.exists() and not unfinished.exists()
    assert (left.parent / "adapter").is_dir(), "which is kept"


def test_a_failed_save_leaves_the_last_checkpoint_whole(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbank import training

    recipe = load("first-finetune/lora", settings(tiny))
    saved = training.save_file
    calls = []

    def full_disk(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        saved(*args, **kwargs)

    monkeypatch.setattr(training, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(recipe, 0, tmp_path, announce=silent)
    (left,) = tmp_path.glob(".work/*/checkpoint-*")
    assert left.name == "checkpoint-8"
    assert {"trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {p.name for p in left.iterdir()}
    monkeypatch.setattr(training, "save_file", saved)
    resumed = run(recipe, 0, tmp_path, announce=silent)
    assert numbers(resumed) == numbers(run(recipe, 0, tmp_path / "whole", announce=silent))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_adapter_of_the_best_epoch_is_kept_also_by_a_killed_run(tiny: Path, tmp_path: Path) -> None:
    """At this rate the second of four epochs is the best; the first that is as good as any counts."""
    rate = ("train.report=best", "train.epochs=4", "method.lr=5e-2")
    recipe = load("first-finetune/lora", settings(tiny, *rate))
    whole = run(recipe, 0, tmp_path / "whole", announce=silent)
    scores = [row["accuracy"] for row in whole["curve"]]
    assert scores[0] < scores[1] == max(scores) > scores[3]
    assert whole["metrics"] == {key: value for key, value in whole["curve"][1].items() if key != "epoch"}
    assert accuracy_of_the_kept_adapter(recipe, tmp_path / "whole") == pytest.approx(scores[1])

    out, held = tmp_path / "killed", []
    # 13 steps an epoch, a checkpoint every 4: in the third epoch, while the last checkpoint is written, at the end.
    for point, times in (("step", 38), ("rename", 5), ("adapter", 1), ("record", 1)):
        killed_at(point, times, recipe, out, silent)
        held.append(sorted(int(path.name[11:]) for path in out.glob(".work/*/checkpoint-*")))
    assert held == [[26, 36], [26, 48], [26, 52], [26, 52]]
    (best,) = out.glob(".work/*/checkpoint-26")
    best.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"checkpoint-26 of the best epoch is missing; remove .* and run again"):
        run(recipe, 0, out, announce=silent)
    (tmp_path / "elsewhere").rename(best)
    resumed = run(recipe, 0, out, announce=silent)
    assert resumed["resumed"] and numbers(resumed) == numbers(whole)
    kept = [next(tmp_path.glob(f"{name}/.work/*/adapter")) for name in ("whole", "killed")]
    for file in kept[0].iterdir():
        assert (kept[1] / file.name).read_bytes() == file.read_bytes()
    assert not list(out.glob(".work/*/checkpoint-*"))


def accuracy_of_the_kept_adapter(recipe: Recipe, out: Path) -> float:
    """On the validation rows, with the model built anew."""
    task, rows = tasks.find(recipe.task.name), load_data(recipe, None).validation
    model, tokenizer = task.model(recipe.model)
    vbank.load(model.eval(), next(out.glob(".work/*/adapter")))
    batch = task.collator(tokenizer)(task.encode(rows, tokenizer, recipe.task))
    labels = batch.pop("labels")
    with torch.no_grad():
        return task.score(model(**batch).logits, labels)["accuracy"]


def test_the_record_says_what_was_run_and_a_second_call_runs_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/vb-lora", settings(tiny, *VECTORS, "train.epochs=2"))
    lines: list[str] = []
    record = run(recipe, 1, tmp_path, announce=lines.append)
    (path,) = tmp_path.glob("*/*/*.json")
    assert path.relative_to(tmp_path) == Path("first-finetune/vb-lora") / f"{record['run']}.json"
    assert json.loads(path.read_text()) == record
    assert record["seed"] == 1 and record["kind"] == "final" and record["data"]["train"] == 200
    assert record["data"]["source"].startswith("generated sentences")
    assert [row["epoch"] for row in record["curve"]] == [1, 2]
    assert record["metrics"]["accuracy"] == record["curve"][-1]["accuracy"]
    sub_vectors = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64)) // 16  # layers x rank x (in + out) / b
    assert record["parameters"]["groups"] == {"bank": 12 * 16, "logits": sub_vectors * 12}
    assert record["parameters"]["bytes"] == 4 * 12 * 16 + sub_vectors * (4 + 2)  # k - 1 weights and k uint8 indices
    assert record["parameters"]["head"] == 66
    assert record["bytes_on_disk"] > record["parameters"]["bytes"] + 4 * 66
    assert record["seconds"]["train"] > 0 and record["seconds"]["train_cpu"] > 0 and record["peak_memory_bytes"] > 0
    assert {"torch", "transformers", "vbank"} <= set(record["versions"])
    written = path.read_text()
    assert str(tiny.parent) not in written and os.uname().nodename not in record["machine"].values()
    assert any("generated sentences" in line for line in lines)
    before = path.stat().st_mtime_ns
    assert run(recipe, 1, tmp_path, announce=lines.append) == record
    assert path.stat().st_mtime_ns == before and "finished before" in lines[-1]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/vera", settings(tiny, "method.rank=8", "train.epochs=1"))
    first, again, other = (
        run(recipe, seed, tmp_path / name, announce=silent) for seed, name in ((0, "first"), (0, "again"), (1, "other"))
    )
    assert numbers(first) == numbers(again)
    assert first["metrics"]["train_loss"] != other["metrics"]["train_loss"]


def test_an_adapter_checkpoint_holds_no_base_weights(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from vbank import training

    recipe = load("first-finetune/lora", settings(tiny, "train.epochs=1"))
    kept: list[set[str]] = []
    real = training.save_file

    def spy(tensors: dict, path: Path) -> None:
        real(tensors, path)
        kept.append(set(load_file(path)))

    training.save_file = spy
    try:
        run(recipe, 0, tmp_path, announce=silent)
    finally:
        training.save_file = real
    assert kept and all(name.startswith(("vbank.", "classifier.")) for names in kept for name in names)


@pytest.mark.parametrize("variant", ["full", "head"])
def test_baselines_train_what_their_name_says(tiny: Path, variant: str) -> None:
    from vbank.tasks.weights import load_classifier

    model, _ = load_classifier(str(tiny), 2)
    everything = sum(p.numel() for p in model.parameters())
    prepared = prepare(model, load(f"first-finetune/{variant}"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {"classifier.weight", "classifier.bias"}
    assert trained == (head if variant == "head" else {name for name, _ in model.named_parameters()})
    assert prepared.parameters["head"] == 66
    assert prepared.parameters["trainable"] == (0 if variant == "head" else everything - 66)
    rates = load(f"first-finetune/{variant}").method.lr
    assert {g["name"]: g["lr"] for g in prepared.groups}["head"] == rates["head"]


def test_search_keeps_the_validation_sentences_unseen() -> None:
    recipe = load("first-finetune/vb-lora", ["task.source=generated"])
    plain = load_data(recipe, announce=None)
    tried = candidates(recipe)
    for candidate in tried:
        data = load_data(candidate, announce=None)
        assert len(data.validation) == 400 and len(data.train) == 1600
        assert data.train + data.validation == plain.train
        assert candidate.train.epochs == recipe.search.epochs
    assert [c.method.lr for c in tried] == recipe.search.lr
    assert len({run_id(c, plain, 0) for c in [*tried, recipe]}) == len(tried) + 1


def test_every_variant_searches_as_many_rates() -> None:
    from vbank.recipes import variants

    sizes = {name: len(candidates(load(name))) for name in variants("first-finetune")}
    assert len(set(sizes.values())) == 1, sizes


def test_a_run_that_another_process_makes_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/head", settings(tiny))
    work = ledger.work_folder(tmp_path, run_id(recipe, load_data(recipe, None), 0))
    with ledger.claim(work), pytest.raises(ledger.Busy):
        run(recipe, 0, tmp_path, announce=silent)
    assert run(recipe, 0, tmp_path, announce=silent)["seed"] == 0


RESULT = {"metric": "accuracy", "metrics": {"accuracy": 0.5}, "seconds": {"train": 1.0}}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_returns_the_whole_record_and_the_first_one_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("vbank.run._train", lambda *args: dict(RESULT))
    record = run(load("first-finetune/head", ["task.source=generated"]), 2, tmp_path, "search", announce=silent)
    named = {"format": ledger.FORMAT, "experiment": "first-finetune", "variant": "head", "kind": "search", "seed": 2}
    assert record == named | {"run": record["run"]} | RESULT
    assert len(list(tmp_path.glob("*/*/*.json"))) == (rank == "0")


def test_a_run_finished_between_look_and_claim_is_read_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load("first-finetune/head", ["task.source=generated"])
    identity = {"experiment": recipe.experiment, "variant": recipe.variant}
    done = {"format": ledger.FORMAT} | identity | {"run": run_id(recipe, load_data(recipe, None), 0)} | RESULT
    folder = ledger.work_folder

    def other_process_is_faster(out: Path, name: str) -> Path:
        ledger.write(out, done)
        return folder(out, name)

    monkeypatch.setattr(ledger, "work_folder", other_process_is_faster)
    monkeypatch.setattr("vbank.run._train", lambda *args: pytest.fail("made again"))
    assert run(recipe, 0, tmp_path, announce=silent) == done


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rate(tiny: Path, tmp_path: Path) -> None:
    recipe = load("first-finetune/full", settings(tiny, "method.lr.default=1e30"))
    with pytest.raises(FloatingPointError, match="lower method.lr"):
        run(recipe, 0, tmp_path, announce=silent)
    assert not list(tmp_path.glob("*/*/*.json"))


def test_length_buckets_cover_every_row_once_and_depend_on_seed_and_epoch_alone() -> None:
    from vbank.batches import LengthBuckets

    draw = random.Random(0)
    lengths = [draw.randint(3, 60) for _ in range(203)]
    sampler = LengthBuckets(lengths, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(row for batch in first for row in batch) == list(range(203)) and list(sampler) == first
    assert [len(batch) for batch in first] == [8] * 25 + [3] and len(sampler) == 26
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [max(b) - min(b) for b in ([lengths[i] for i in batch] for batch in first[:25])]
    assert sum(spread) / len(spread) < 8  # shuffled batches would spread by about 45


def test_a_damaged_ledger_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e" / "v" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json"):
        ledger.read(tmp_path)
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        ledger.read(tmp_path)


def test_summary_takes_seeds_together_and_tells_settings_apart() -> None:
    def record(seed: int, score: float, lr: float = 1.0) -> dict:
        return {
            "experiment": "e",
            "variant": "v",
            "run": f"{round(lr):08x}-seed{seed}",
            "kind": "final",
            "seed": seed,
            "recipe": {"scale": "cpu", "method": {"lr": {"default": lr}}, "train": {"epochs": 1}},
            "data": {"source": "s"},
            "metric": "accuracy",
            "metrics": {"accuracy": score},
            "parameters": {"trainable": 1, "stored": 1.0, "head": 0, "bytes": 4},
            "bytes_on_disk": 9,
            "seconds": {"train": 10.0 + seed, "train_cpu": 5.0},
            "peak_memory_bytes": 5,
        }

    rows = ledger.summarise([record(0, 0.8), record(1, 0.9), record(2, 0.7), record(0, 0.5, lr=2.0)])
    assert [row["seeds"] for row in rows] == [[0, 1, 2], [0]]
    assert rows[0]["median"] == 0.8 and rows[0]["mean"] == pytest.approx(0.8)
    assert rows[0]["deviation"] == pytest.approx(0.1) and rows[1]["deviation"] is None
    assert rows[0]["train_seconds"] == 11.0 and rows[0]["train_cpu_seconds"] == 5.0
    assert [row["median"] for row in sorted(rows, key=ledger.best_first)] == [0.8, 0.5]
    losses = [row | {"metric": "validation_loss"} for row in rows]
    assert [row["median"] for row in sorted(losses, key=ledger.best_first)] == [0.5, 0.8]
