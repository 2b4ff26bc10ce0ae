"""Models trained from scratch: what the folder holds, that it repeats, resumes, and is read from the cache."""

import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vbank.tasks import scratch
from vbank.tasks.generation import generate
from vbank.tasks.sources import DataError

TEXTS = [f"The {colour} bird number {i} sings near the {place} ." for i in range(12) for colour in ("red", "blue")
         for place in ("river", "old station")]  # fmt: skip
SMALL = {"steps": 6, "vocabulary": 300, "hidden": 32, "layers": 1, "context": 32, "batch_size": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VBANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(folder):
    return {name: value.clone() for name, value in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()}


@pytest.mark.parametrize("kind", scratch.KINDS)
def test_a_model_that_transformers_reads(kind):
    said = []
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    folder = scratch.generator(kind, TEXTS, announce=said.append, **SMALL)
    assert torch.equal(torch.rand(1), expected)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == kind and not model.training
    assert tokenizer.eos_token_id == model.config.eos_token_id and tokenizer.pad_token_id is not None
    assert tokenizer.decode(tokenizer("The bird 12 é", add_special_tokens=False)["input_ids"]) == "The bird 12 é"
    assert len(generate(model, tokenizer, ["The red"], 5)) == 1
    assert all("from scratch" in line for line in said)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    again = scratch.generator(kind, TEXTS, announce=said.append, **SMALL)
    assert again == folder and "before" in said[-1]


def test_where_no_lock_is_the_first_to_rename_wins(monkeypatch):
    def late(aside, folder):
        rename(aside, folder)
        raise OSError("the folder is there")

    rename = os.rename
    monkeypatch.setattr(scratch.os, "rename", late)
    assert (scratch.generator("gpt2", TEXTS, announce=list, **SMALL) / "config.json").is_file()

    def refuse(aside, folder):
        raise OSError("no room")

    monkeypatch.setattr(scratch.os, "rename", refuse)
    with pytest.raises(OSError, match="no room"):
        scratch.generator("gpt2", TEXTS[1:], announce=list, **SMALL)


def test_learning():
    before = scratch.generator("llama", TEXTS, announce=list, **SMALL | {"steps": 1})
    after = scratch.generator("llama", TEXTS, announce=list, **SMALL | {"steps": 60})
    losses = [json.loads((folder / "about.json").read_text())["loss"] for folder in (before, after)]
    assert losses[1] < 0.5 * losses[0]


def test_a_llama_splits_digits_begins_its_texts_and_shares_keys():
    folder = scratch.generator(
        "llama", TEXTS, special_tokens=["<|user|>"], heads=4, key_value_heads=2, announce=list, **SMALL
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.model.layers[0].self_attn.k_proj.out_features == 16
    begin, user = tokenizer.convert_tokens_to_ids(["<s>", "<|user|>"])
    assert tokenizer("<|user|>The")["input_ids"][:2] == [begin, user]
    assert len(tokenizer("1234567", add_special_tokens=False)["input_ids"]) == 7
    assert tokenizer.decode([begin, user], skip_special_tokens=True) == ""


def test_the_same_arguments_give_the_same_model(cache, monkeypatch):
    first = weights(scratch.generator("gpt2", TEXTS, announce=list, **SMALL))
    monkeypatch.setenv("VBANK_CACHE", str(cache / "other"))
    second = weights(scratch.generator("gpt2", TEXTS, announce=list, **SMALL))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1e-3}, {"special_tokens": ["<|user|>"]}, {"layers": 2}])
def test_every_argument_names_another_model(change):
    plain = scratch.generator("gpt2", TEXTS, announce=list, **SMALL)
    assert scratch.generator("gpt2", TEXTS, announce=list, **SMALL | change) != plain
    assert scratch.generator("gpt2", TEXTS[1:], announce=list, **SMALL) != plain


def test_a_stopped_training_goes_on_to_the_same_model(cache, monkeypatch):
    whole = weights(scratch.generator("gpt2", TEXTS, announce=list, **SMALL))
    monkeypatch.setenv("VBANK_CACHE", str(cache / "other"))
    monkeypatch.setattr(scratch, "STEPS_PER_CHECKPOINT", 2)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        scratch.generator("gpt2", TEXTS, announce=list, **SMALL)
    assert not list(cache.glob("other/scratch/*/config.json")), "nothing half made appears"
    resumed = weights(scratch.generator("gpt2", TEXTS, announce=list, **SMALL))
    assert len(calls) == 6 + 2, "steps 5 and 6 alone are made again"
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gtp2", {}, "did you mean 'gpt2'"),
        ("gpt2", {"texts": []}, "needs texts"),
        ("gpt2", {"texts": ["short"]}, "fewer than one row of 32"),
        ("gpt2", {"hidden": 30, "heads": 4}, "hidden 30 gives 4 heads no even size"),
        ("gpt2", {"heads": 2, "key_value_heads": 1}, "no grouped-query attention"),
        ("llama", {"heads": 4, "key_value_heads": 3}, "do not share 3 key and value heads"),
        ("llama", {"vocabulary": 100}, "vocabulary 100 is below the 259"),
        ("llama", {"steps": 0}, "steps is 0"),
        ("llama", {"heads": 0}, "heads is 0"),
        ("llama", {"heads": -2}, "heads is -2"),
        ("llama", {"key_value_heads": -2}, "key_value_heads is -2"),
        ("llama", {"lr": float("nan")}, "lr is nan; expected a finite number above 0"),
        ("llama", {"lr": 0.0}, "lr is 0.0"),
    ],
)
def test_refusals(kind, change, message):
    with pytest.raises(DataError, match=message):
        scratch.generator(kind, **{"texts": TEXTS, "announce": list} | SMALL | change)
