"""`accelerate launch` with two processes: the loss curve of one, also after kill -9 of both; DDP and FSDP."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_task

from vbank import ledger, tasks
from vbank.recipes import load
from vbank.run import run
from vbank.training import AdapterTrainer

TESTS = Path(tiny_task.__file__).parent

# Added to the recipe of tiny_task: the same run with accumulated batches, and sentences for a classifier. 43 rows in
# batches of 7 leave one for the last batch, fewer than there are processes; so do 57 sentences in batches of 8.
MORE = """
[variants.accumulated.method]
name = "lora"
rank = 2
alpha = 4
lr = 1e-2
[variants.accumulated.train]
batch_size = 7
accumulation = 3
label_smoothing = 0.1
[variants.sentences.task]
name = "sst2-sentences"
source = "generated"
train_size = 57
[variants.sentences.model]
name = "{bert}"
head = ["classifier"]
[variants.sentences.train]
eval_batch_size = 57
[variants.sentences.method]
name = "vb-lora"
rank = 2
num_vectors = 12
vector_length = 16
lr = {{ bank = 1e-2, logits = 1e-1, head = 1e-2 }}
"""
VARIANTS = ("vb-lora", "accumulated", "sentences")


def small_bert(folder: Path) -> Path:
    from tiny_models import bert
    from transformers import BertTokenizerFast

    from vbank.tasks.generated import generate

    words = sorted({word for row in generate("sentiment")["train"] for word in str(row["sentence"]).split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    bert(vocab_size=len(words) + 5, hidden_size=32, initializer_range=0.05).save_pretrained(folder)
    return folder


def launch(script: str, recipe: Path, out: Path, *options: str, kill_at: int = 0) -> subprocess.CompletedProcess:
    """Two processes, as on two GPUs; accelerate starts only one with its option --cpu."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, str(TESTS / script), "run", str(recipe), "--out", str(out)],
        env=os.environ | {"PYTHONPATH": path, "KILL_AT_STEP": str(kill_at), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of tiny_task."""
    monkeypatch.setitem(tasks.TABLE, "backwards", "tiny_task:BACKWARDS")
    return Path(tiny_task.write_recipe(tmp_path, tiny_task.save_llama(tmp_path / "llama")))


def keep(text: str, *variants: str) -> str:
    """A recipe with these variants alone."""
    head, *rest = re.split(r"(?m)^(?=\[variants\.)", text)
    return head + "".join(part for part in rest if part.split(".")[1] in variants)


def in_one_process(recipe: Path, variant: str, out: Path) -> ledger.Record:
    return run(load(f"{recipe}/{variant}"), 0, out, announce=lambda line: None)


def recorded(out: Path, variant: str) -> ledger.Record:
    (path,) = out.glob(f"tiny/{variant}/*.json")
    return json.loads(path.read_text())


def assert_same_numbers(one: ledger.Record, other: ledger.Record) -> None:
    assert one["run"] == other["run"] and len(one["curve"]) == len(other["curve"]) == 2
    for mine, theirs in zip(one["curve"], other["curve"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert other["bytes_on_disk"] == one["bytes_on_disk"] > 0


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_also_when_both_are_killed_and_started_again(
    recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(keep(recipe.read_text() + MORE.format(bert=small_bert(tmp_path / "bert")), *VARIANTS))
    out = tmp_path / "two"
    killed = launch("tiny_task.py", recipe, out, "--multi_gpu", kill_at=10)  # in the second epoch of the first run
    assert killed.returncode != 0 and not list(out.glob("*/*/*.json"))
    assert [path.name for path in out.glob(".work/*/checkpoint-*")] == ["checkpoint-8"]
    ended = launch("tiny_task.py", recipe, out, "--multi_gpu")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("data: generated letters") == 1  # one process speaks
    assert "Warning" not in ended.stderr, ended.stderr[-3000:]
    for variant in VARIANTS:
        one, two = in_one_process(recipe, variant, tmp_path / "one"), recorded(out, variant)
        assert (one["machine"]["processes"], two["machine"]["processes"]) == (1, 2)
        assert two["resumed"] is (variant == "vb-lora")
        assert_same_numbers(one, two)
    predictions = list(out.glob(".work/*/predictions.jsonl"))
    assert [len(path.read_text().splitlines()) for path in predictions] == [4, 4]


@pytest.mark.slow
def test_shards_of_fsdp_give_the_curve_of_one_process_and_read_each_others_checkpoints(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on NF4 weights begins in one process and goes on in two that share them; another the other way round."""
    recipe.write_text(keep(recipe.read_text(), "lora", "vb-lora") + '[variants.lora.model]\nquantise = "nf4"\n')
    out, real, steps = tmp_path / "shards", AdapterTrainer.training_step, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            in_one_process(recipe, "lora", out)
    assert [path.name for path in out.glob(".work/*/checkpoint-*")] == ["checkpoint-4"]
    fsdp = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    fsdp += ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer", "--fsdp_cpu_ram_efficient_loading", "false"]
    # lora's last 8 of 12 steps, then 9 of vb-lora
    killed = launch("fsdp_on_cpu.py", recipe, out, *fsdp, kill_at=8 + 10)
    assert killed.returncode != 0
    (checkpoint,) = out.glob(".work/*/checkpoint-*")
    assert checkpoint.name == "checkpoint-8", killed.stderr[-3000:]
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 200_000  # no base weights
    last = in_one_process(recipe, "vb-lora", out)
    assert last["resumed"]
    assert_same_numbers(in_one_process(recipe, "vb-lora", tmp_path / "one"), last)
    sharded = recorded(out, "lora")
    assert sharded["resumed"] and sharded["machine"]["processes"] == 2
    assert_same_numbers(in_one_process(recipe, "lora", tmp_path / "one"), sharded)
