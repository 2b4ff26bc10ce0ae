"""The ablations in the laboratory: what is there is kept, what is missing is made, other settings are refused."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import vbank
from vbank.adapters import adapter_of
from vbank.tasks import digits

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def laboratory():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_ablations", FOLDER / "digits_ablations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_stopped_group_goes_on_and_gives_the_same(laboratory, tmp_path, monkeypatch):
    two = {
        "top-2": dataclasses.replace(laboratory.vb(), epochs=1),
        "head": laboratory.Setting("head-only", 0.0, epochs=1),
    }
    whole = json.loads(laboratory.complete("vb-lora", (1, 2), tmp_path / "whole", two).read_text())["variants"]
    real, made = laboratory.run, []

    def dies(setting, seed):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(seed)
        return real(setting, seed)

    monkeypatch.setattr(laboratory, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        laboratory.complete("vb-lora", (1, 2), tmp_path, two)
    path = tmp_path / "digits_vb_lora.json"
    (kept,) = json.loads(path.read_text())["variants"]["top-2"]["runs"].items()
    assert kept[0] == "1"
    made[:] = [None] * 2  # from here on count the runs
    assert laboratory.complete("vb-lora", (1, 2), tmp_path, two) == path
    assert len(made) == 2 + 3
    report = json.loads(path.read_text())
    assert report["machine"]["cpu"] and report["versions"]["torch"] == torch.__version__
    for name, found in report["variants"].items():
        scores = {seed: (one["accuracy"], one["loss"]) for seed, one in found["runs"].items()}
        assert scores == {seed: (one["accuracy"], one["loss"]) for seed, one in whole[name]["runs"].items()}
        assert scores["1"] != scores["2"]
    counted = report["variants"]["top-2"]["counted"]
    assert counted["stored"] == 24 * 16 + 896 * (1 + 2 / 4) and report["variants"]["head"]["counted"] is None

    other = two | {"top-2": dataclasses.replace(two["top-2"], lr=1e-3)}
    with pytest.raises(ValueError, match="digits_vb_lora.json has 'top-2' with other settings; remove it"):
        laboratory.complete("vb-lora", (1, 2), tmp_path, other)


def test_a_fixed_choice_stays_and_its_weights_move(laboratory):
    states = []

    def watch(step, model):
        laboratory.hold_choice(step, model)
        states.append([each.detach().clone() for each in adapter_of(model)[2].method.selected])

    digits.adapt(laboratory.VB, laboratory.VB_RATES, epochs=1, seed=3, after_step=watch)
    first, last = states[0], states[-1]
    assert torch.equal(first[0].sort(dim=1).values, last[0].sort(dim=1).values)
    assert (last[1] - first[1]).abs().max() > 0.1
    moved = digits.adapt(laboratory.VB, laboratory.VB_RATES, epochs=1, seed=3)
    indices = adapter_of(moved.model)[2].method.selected[0]
    assert (first[0].sort(dim=1).values != indices.sort(dim=1).values).any(dim=1).double().mean() > 0.3


def test_the_groups_are_what_they_say(laboratory):
    groups = {name: make() for name, make in laboratory.GROUPS.items()}
    for settings in groups.values():
        told = [json.dumps(each.told(), sort_keys=True) for each in settings.values()]
        assert len(set(told)) == len(told)
    lengths = [s.method for n, s in groups["vb-lora"].items() if n.startswith("length-") or n == "top-2"]
    assert {each.num_vectors * each.vector_length for each in lengths} == {384} and len(lengths) == 5
    sites = adapter_of(digits.adapt(vbank.LoRA(4), 1e-2, epochs=1).model)[2].sites
    budgets = {
        name: sum(part.trained for part in setting.method.storage(sites).values())
        for name, setting in groups["prolora"].items()
    }
    assert all(abs(found / budgets["unshared-4 0.01"] - 1) < 0.06 for found in budgets.values())
    long = groups["peft"]["all"]
    assert long.epochs * 1000 // long.batch_size == 5000
    alone = [key for key in groups["peft"] if key in ("decay", "std", "qv", "bank")]
    together = groups["peft"]["all-but-rates"].told()
    authors = groups["peft"]["authors"].told()
    for key in alone:
        one = groups["peft"][key].told()
        flat = {**one, **one["settings"]}
        base = {**authors, **authors["settings"]}
        (difference,) = [name for name in flat if name != "settings" and flat[name] != base[name]]
        assert {**together, **together["settings"]}[difference] == flat[difference]
    assert groups["peft"]["all"].told() | {"lr": authors["lr"]} == together


def test_a_run_that_is_no_number_is_told_as_such(laboratory, monkeypatch):
    broken = digits.Adaptation(0.1, [1.0, float("nan")], None, torch.nn.Identity())
    monkeypatch.setattr(digits, "adapt", lambda *args, **kwargs: broken)
    assert laboratory.run(laboratory.vb(), 1)["loss"] is None
