"""The log of selections: what is read is what was chosen, a stopped run logs the same, and no number depends on it."""

import json
import os
from pathlib import Path

import pytest
import torch
from killing import killed_at
from local_data import silent
from safetensors.torch import load_file, save_file

import vbank
from vbank import ledger, stored
from vbank.adapters import adapter_of
from vbank.methods.base import Site
from vbank.recipes import load
from vbank.run import run
from vbank.selections_log import ABOUT, LEVELS, TOLERANCE, Recorder, Selections, read

SITES = [Site("encoder.layer.0.query", 16, 8), Site("encoder.layer.1.query", 8, 24)]


def method_of(k: int = 2, h: int = 6) -> vbank.methods.vb_lora.VBLoRAMethod:
    torch.manual_seed(0)
    return vbank.VBLoRA(rank=2, num_vectors=h, vector_length=4, top_k=k).build(SITES)


@pytest.mark.parametrize(("k", "h"), [(1, 6), (2, 6), (5, 6), (3, 300)])
def test_what_is_read_is_what_was_chosen(k: int, h: int, tmp_path: Path) -> None:
    method = method_of(k, h)
    log, chosen = Recorder(method, 10), []
    for step in (0, 10, 20, 25):
        with torch.no_grad():
            if step:
                method.logits[step % 7 :: 3] += torch.randn_like(method.logits[step % 7 :: 3])
                method.bank += 1.0
        log.record(step)
        chosen.append(method.selected)
    log.write(tmp_path / "log")
    found = read(tmp_path / "log")
    assert found.steps.tolist() == [0, 10, 20, 25] and found.num_vectors == h
    assert torch.equal(found.indices, torch.stack([indices for indices, _ in chosen]))
    weights = torch.stack([each for _, each in chosen]).detach()
    assert ((found.weights - weights)[..., 1:].abs() <= (TOLERANCE + 0.5) / LEVELS).all()
    assert torch.allclose(found.weights.sum(-1), torch.ones(()))
    torch.testing.assert_close(found.bank_after, method.bank.detach(), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        found.bank_after - found.bank_before, torch.full_like(method.bank, 3.0), rtol=0, atol=4e-3
    )
    assert found.sites == tuple(site.name for site in SITES) and found.spans == tuple(method.spans)
    assert found.spans[-1][2] == found.indices.shape[1] == 2 * (16 + 8 + 8 + 24) // 4
    assert load_file(tmp_path / "log")["indices"].element_size() == (2 if h > 256 else 1)
    same(log.log(), found)


def same(one: Selections, other: Selections) -> None:
    for key, value in vars(one).items():
        theirs = getattr(other, key)
        if not isinstance(value, torch.Tensor):
            assert value == theirs, key
        else:
            assert value.dtype == theirs.dtype and torch.equal(value, theirs), key


def test_a_log_needs_no_file_and_is_not_changed_by_what_comes_after() -> None:
    method = method_of()
    recorder = Recorder(method, 1)
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        recorder.log()
    recorder.record(0)
    early = recorder.log()
    kept = early.indices.clone(), early.weights.clone(), early.bank_after.clone()
    with torch.no_grad():
        method.logits.neg_()
        method.bank += 1.0
    recorder.record(1)
    assert all(map(torch.equal, kept, (early.indices, early.weights, early.bank_after)))
    late = recorder.log()
    assert late.steps.tolist() == [0, 1] and torch.equal(late.indices[0], early.indices[0])
    assert torch.equal(late.bank_before, early.bank_before) and not torch.equal(late.bank_after, early.bank_after)


def test_small_steps_of_a_weight_add_up_and_only_what_moved_is_kept(tmp_path: Path) -> None:
    method = method_of()
    with torch.no_grad():
        method.logits.copy_(torch.tensor([4.0, 4.0, 0, 0, 0, 0]))
    log = Recorder(method, 1)
    for step in range(12):
        log.record(step)
        with torch.no_grad():
            method.logits[3, 0] += 0.05  # a twelfth of what keeps it, each
    kept = torch.stack([rows for rows, _, _ in log.kept])
    assert kept[0].all() and not kept[1:, torch.arange(len(method.logits)) != 3].any()
    assert 1 <= kept[1:, 3].sum() < 6  # not every step, but more than none
    log.write(tmp_path / "log")
    exact = torch.tensor([0.05 * step for step in range(12)]).sigmoid()
    assert (read(tmp_path / "log").weights[:, 3, 0] - exact).abs().max() < (TOLERANCE + 1) / LEVELS


def test_a_recorder_that_goes_on_from_a_file_writes_the_same_bytes(tmp_path: Path) -> None:
    def train(method: vbank.methods.vb_lora.VBLoRAMethod, log: Recorder, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            with torch.no_grad():
                method.logits += 0.3 * torch.randn_like(method.logits)
            log.record(step)

    method = method_of(3, 300)
    whole = Recorder(method, 1)
    train(method, whole, range(4))
    whole.write(tmp_path / "checkpoint")
    resumed = Recorder(method, 1)
    resumed.resume(tmp_path / "checkpoint")
    state = method.logits.detach().clone()
    train(method, whole, range(4, 9))
    with torch.no_grad():
        method.logits.copy_(state)
    train(method, resumed, range(4, 9))
    for name, log in (("whole", whole), ("resumed", resumed)):
        log.write(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_only_a_vb_lora_in_training_can_be_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not for this LoRA"):
        Recorder(vbank.LoRA(2).build(SITES), 5)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), ["0"])
    vbank.save(model, tmp_path / "compact")
    fresh = torch.nn.Sequential(torch.nn.Linear(8, 8))
    vbank.load(fresh, tmp_path / "compact")
    with pytest.raises(ValueError, match="a VB-LoRA in training"):
        Recorder(adapter_of(fresh)[2].method, 5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "there is no such log"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is no log of selections"),
        (lambda path: save_file({"bank": torch.zeros(2)}, path), "is no log of selections"),
        (lambda path: changed(path, indices=lambda t: t[:-1]), "is damaged"),
        (lambda path: changed(path, kept=lambda t: t[1:]), "is damaged"),
        (lambda path: changed(path, kept=lambda t: t.flip(0)), "is damaged"),
        (lambda path: changed(path, format=9), "has format 9, this version reads 1; update vbank"),
    ],
)
def test_a_file_that_is_no_log_is_named(damage, said: str, tmp_path: Path) -> None:
    method, path = method_of(), tmp_path / "log"
    log = Recorder(method, 1)
    for step in range(2):
        log.record(step)
    log.write(path)
    damage(path)
    with pytest.raises(ValueError) as error:
        read(path)
    assert said in str(error.value) and str(path) in str(error.value)


def changed(path: Path, format: int = 1, **changes) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[ABOUT]) | {"format": format}
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    for key, change in changes.items():
        tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, path, metadata={ABOUT: json.dumps(about)})


def numbers(record: dict) -> tuple:
    return record["metrics"], record["curve"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_logs_beside_its_record_also_if_it_is_killed(recipe_file: str, tmp_path: Path) -> None:
    """No number depends on the log; killed in an epoch, a save or before the record, a run leaves the same bytes."""
    recipe = load(f"{recipe_file}/vb-lora", ["train.log_selections=5"])
    plain = run(load(f"{recipe_file}/vb-lora"), 0, tmp_path / "plain", announce=silent)
    whole = run(recipe, 0, tmp_path / "whole", announce=silent)
    assert numbers(whole) == numbers(plain) and whole["run"] == plain["run"] and "selections" not in plain
    out = tmp_path / "killed"
    for point, times in (("step", 4), ("step", 5), ("save", 2), ("rename", 2), ("record", 1)):  # 6 steps an epoch
        killed_at(point, times, recipe, out, silent)
    resumed = run(recipe, 0, out, announce=silent)
    assert resumed["resumed"] and numbers(resumed) == numbers(whole)
    first, second = (ledger.log_of(ledger.path_of(folder, whole)) for folder in (tmp_path / "whole", out))
    assert first.read_bytes() == second.read_bytes()
    found = read(first)
    assert found.steps.tolist() == [0, 5, 10, 12]  # before the first step, every 5, after the last
    assert whole["selections"] == {"every": 5, "recordings": 4, "bytes": first.stat().st_size}
    assert ledger.read(tmp_path / "whole") == [whole]

    kept = next((tmp_path / "whole").glob(".work/*/adapter"))
    indices = stored.read(kept).tensors["indices"]
    assert torch.equal(found.indices[-1].to(indices.dtype), indices)  # what the kept adapter chooses
    assert not torch.equal(found.indices[0], found.indices[-1])

    said: list[str] = []
    run(recipe, 0, tmp_path / "plain", announce=said.append)
    assert any("no selections were logged then; remove" in line for line in said)
    said.clear()
    run(recipe, 0, tmp_path / "whole", announce=said.append)
    assert not any("no selections" in line for line in said)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_begun_without_a_log_says_how_to_go_on(recipe_file: str, tmp_path: Path) -> None:
    killed_at("step", 4, load(f"{recipe_file}/vb-lora"), tmp_path, silent)
    with pytest.raises(
        ValueError, match=r"checkpoint-2 was written without train.log_selections; set it to 0, or remove"
    ):
        run(load(f"{recipe_file}/vb-lora", ["train.log_selections=5"]), 0, tmp_path, announce=silent)


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("first-finetune/lora", "train.log_selections=5", "is for vb-lora, not lora; set it to 0"),
        ("first-finetune/full", "train.log_selections=5", "is for vb-lora, not full; set it to 0"),
        ("ablations/select-all", "train.log_selections=5", "select_all leaves nothing for train.log_selections"),
    ],
)
def test_a_log_of_what_selects_nothing_is_refused_before_anything_is_read(
    name: str, setting: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        run(load(name, [setting]), 0, tmp_path, announce=silent)
    assert not list(tmp_path.iterdir())
