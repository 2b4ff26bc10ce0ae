"""SelectedAdamW against torch's AdamW on all logits: the same numbers, with state for chosen logits alone."""

import copy
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_task
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import killed_at
from local_data import silent
from safetensors.torch import load_file, save_file
from tiny_models import EXACT, Blocks, DTensor, assert_same, bert, move, numbers, tokens
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import vbank
from vbank import VBLoRA, account, optimizers, selected_adamw, tasks
from vbank.live_memory import LivePeak
from vbank.recipes import load
from vbank.run import run
from vbank.selected_adamw import Length, SelectedAdamW
from vbank.training import PROGRESS, TRAINED, AdapterTrainer

X, Y = numbers(8, 8), numbers(8, 4, seed=8)
RATES = {"bank": 1e-2, "logits": 5e-2, "head": 1e-2}  # at this rate most sub-vectors choose anew in a step
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def adapted(top_k: int = 2, num_vectors: int = 40, rank: int = 2, targets="all-linear", **changes) -> nn.Module:
    torch.manual_seed(0)
    model = Blocks()
    config = VBLoRA(rank, num_vectors, vector_length=8, top_k=top_k)
    vbank.attach(model, config, targets, train=["head"], **changes)
    return move(model, std=0.05)


def pair(top_k: int = 2, num_vectors: int = 40, weight_decay: float = 0.0, **changes):
    """A model with AdamW on all logits and its twin with SelectedAdamW."""
    dense, ours = (adapted(top_k, num_vectors, **changes) for _ in range(2))
    groups = vbank.param_groups(dense, RATES, weight_decay)
    return (dense, torch.optim.AdamW(groups)), (ours, SelectedAdamW(ours, RATES, weight_decay=weight_decay))


def method_of(model: nn.Module):
    return model.vbank["default"].method


def loss_of(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    return (model(X[rows]) - Y[rows]).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def ever_chosen(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    """Which logits were chosen in any step, (N, h), from the logits alone."""
    logits = method_of(model).logits
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for _ in range(steps):
        seen.scatter_(1, logits.detach().topk(method_of(model).config.top_k).indices, True)
        train(model, optimizer, 1)
    return seen


@pytest.mark.parametrize("dtype, weight_decay", [(torch.float32, 0.1), (torch.bfloat16, 0.0)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_sixty_steps_are_those_of_adamw_on_all_logits(top_k, dtype, weight_decay):
    (dense, theirs), (ours, mine) = pair(top_k, weight_decay=weight_decay, dtype=dtype)
    first = method_of(dense).selected[0].clone()
    train(dense, theirs, 60), train(ours, mine, 60)
    assert_same(values(ours), values(dense), **EXACT)
    left = (method_of(dense).selected[0][:, :, None] != first[:, None, :]).all(-1)
    assert left.float().mean() > 0.3 or top_k == 1  # of the chosen, many are new
    assert not torch.equal(method_of(dense).bank, method_of(adapted(top_k, dtype=dtype)).bank)


@settings(max_examples=25, deadline=None)
@given(
    top_k=st.integers(1, 5),
    more=st.integers(0, 30),
    weight_decay=st.sampled_from([0.0, 0.3]),
    rate=st.sampled_from([1e-3, 3e-2, 1.0]),
    plan=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    seed=st.integers(0, 1000),
)
def test_any_gradients_give_what_adamw_gives(top_k, more, weight_decay, rate, plan, seed):
    """`plan`: how many batches each step adds up; none is a step without gradients."""
    config = VBLoRA(1, top_k + more, vector_length=2, top_k=top_k)
    draw = torch.Generator().manual_seed(seed)
    dense, ours = Holder(config), Holder(config)
    ours.load_state_dict(dense.state_dict())
    rates = {"bank": 0.0, "logits": rate}
    theirs = torch.optim.AdamW(vbank.param_groups(dense, rates, weight_decay))
    mine = SelectedAdamW(ours, rates, weight_decay=weight_decay)
    for batches in plan:
        for _ in range(batches):
            towards = torch.randn(6, 6, generator=draw)
            for model in (dense, ours):
                (vbank.delta(method_of(model), "layer") * towards).sum().backward()
        for optimizer in (theirs, mine):
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(method_of(ours).logits, method_of(dense).logits)
        torch.testing.assert_close(vbank.delta(method_of(ours), "layer"), vbank.delta(method_of(dense), "layer"))


class Holder(nn.Module):
    """One layer with an adapter."""

    def __init__(self, config: VBLoRA) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 6)
            vbank.attach(self, config, ["layer"])


def test_batches_add_up_and_norms_are_clipped_as_for_all_logits():
    (dense, theirs), (ours, mine) = pair()
    norms = []
    for _ in range(30):
        found = []
        for model, optimizer in ((dense, theirs), (ours, mine)):
            optimizer.zero_grad()
            for rows in (slice(0, 3), slice(3, 8)):
                loss_of(model, rows).backward()
            found.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05))
            optimizer.step()
        torch.testing.assert_close(found[1], found[0], **CLOSE)
        norms.append(found[0].item())
    assert min(norms) > 0.05
    assert_same(values(ours), values(dense), rtol=1e-4, atol=1e-5)  # a norm summed in another order, amplified by Adam


def test_schedules_and_scaled_losses():
    (dense, theirs), (ours, mine) = pair()
    for model, optimizer in ((dense, theirs), (ours, mine)):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) % 7 / 7)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=5)
        for step in range(40):
            optimizer.zero_grad()
            scaled = scaler.scale(loss_of(model))
            (scaled * torch.inf if step == 10 else scaled).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        assert scaler.get_scale() != 2.0**4
    assert_same(values(ours), values(dense), **EXACT)


def closing(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return optimizer.step(closure).item()


def test_a_closure_makes_the_gradients_and_its_loss_is_returned():
    (dense, theirs), (ours, mine) = pair()
    assert [closing(ours, mine) for _ in range(5)] == [closing(dense, theirs) for _ in range(5)]
    assert_same(values(ours), values(dense), **EXACT)


def test_a_copy_of_model_and_optimizer_goes_on_as_they_do_and_apart_from_them():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    train(model, optimizer, 3)
    before = values(model)
    twin, copied = copy.deepcopy((model, optimizer))
    train(twin, copied, 3)
    assert_same(values(model), before, **EXACT)
    train(model, optimizer, 3)
    assert_same(values(twin), values(model), **EXACT)
    assert any(not torch.equal(value, before[name]) for name, value in values(twin).items())


def small(num_vectors: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    vbank.attach(model, VBLoRA(2, num_vectors, vector_length=2, top_k=2), ["0"], train=["2"])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay, num_vectors, listed", [(0.1, 300, True), (0.0, 24, False)])
@pytest.mark.parametrize("foreach", [False, True])
def test_two_thousand_steps_with_schedule_and_clipping(weight_decay, num_vectors, listed, foreach):
    """The norm that clips is AdamW's for both, as the order of its summation is the one thing that may differ."""
    dense, ours = small(num_vectors), small(num_vectors)
    theirs = torch.optim.AdamW(vbank.param_groups(dense, RATES, weight_decay), foreach=foreach)
    mine = SelectedAdamW(ours, RATES, weight_decay=weight_decay)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1 - step % 1000 / 1000))
        for optimizer in (theirs, mine)
    ]
    draw, clipped = torch.Generator().manual_seed(1), 0
    for step in range(2000):
        x, y = torch.randn(8, 8, generator=draw), torch.randn(8, 4, generator=draw)
        norms = []
        for model in (dense, ours):
            (model(x) - y).square().mean().backward()
            norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(norms[1], norms[0], **CLOSE)
        clipped += bool(norms[0] > 0.7)
        for model, optimizer, schedule in zip((dense, ours), (theirs, mine), schedules, strict=True):
            nn.utils.clip_grads_with_norm_(model.parameters(), 0.7, norms[0])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 100 == 99:
            assert_same(values(ours), values(dense), **EXACT)
    assert_same(in_full(ours, mine), in_full(dense, theirs), **EXACT)
    assert ("pairs" in state_of(ours, mine)) == listed
    assert 200 < clipped < 1800


# What is kept, and for how many.


def test_state_is_kept_for_the_logits_ever_chosen_and_no_others():
    model = adapted(top_k=2, num_vectors=120)
    optimizer = SelectedAdamW(model, RATES)
    first = ever_chosen(model, optimizer, 1)
    pairs = state_of(model, optimizer)["pairs"]
    assert pairs[pairs < first.numel()].tolist() == first.flatten().nonzero().flatten().tolist() and not first[0, 0]
    seen = first | ever_chosen(model, optimizer, 60)
    logits, chosen = method_of(model).logits, method_of(model).chosen.values
    state = optimizer.state[chosen]
    pairs = state["pairs"][state["pairs"] < logits.numel()].tolist()
    assert pairs == seen.flatten().nonzero().flatten().tolist()
    assert 4 * len(logits) < len(pairs) < 0.4 * logits.numel()
    assert optimizer.length.most == len(pairs)
    room = len(state["pairs"])
    assert len(pairs) <= room <= len(pairs) + len(pairs) // 8 + 1
    assert [state[key].nbytes for key in ("pairs", "exp_avg", "exp_avg_sq")] == [4 * room] * 3
    assert chosen.shape == (len(logits), 2) and logits.grad is None and chosen.grad is None
    loss_of(model).backward()
    assert logits.grad is None and chosen.grad.shape == chosen.shape
    assert vbank.count(model).trainable == method_of(model).bank.numel() + logits.numel()


def test_a_list_seldom_grows_and_is_left_alone_while_nothing_is_new():
    model = adapted(num_vectors=400)
    optimizer = SelectedAdamW(model, RATES)
    lists, pairs = [], []
    for step in range(64):
        if step == 60:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        train(model, optimizer, 1)
        lists.append(state_of(model, optimizer)["pairs"])
        assert lists[-1].untyped_storage().nbytes() == 4 * len(lists[-1])
        pairs.append(optimizer.length.most)
        if step == 0 or len(lists[-1]) != len(lists[-2]):
            assert len(lists[-1]) == pairs[-1] + pairs[-1] // 8
    assert pairs[-1] > 800 and len(set(pairs)) > 40 and 5 < len(set(map(len, lists))) < 25
    assert lists[-1] is lists[-2]


# Where all moments take less than a list.


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the logits, in either form."""
    chosen = method_of(model).chosen
    return optimizer.state[method_of(model).logits if chosen is None else chosen.values]


def in_full(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of all logits (N h,), in either form."""
    state, number = state_of(model, optimizer), method_of(model).logits.numel()
    moments = {key: state[key].flatten() for key in ("exp_avg", "exp_avg_sq")}
    if "pairs" not in state:
        return moments
    listed = state["pairs"] < number
    names = state["pairs"][listed].long()
    return {key: value.new_zeros(number).index_put((names,), value[listed]) for key, value in moments.items()}


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(value.nbytes for key, value in state.items() if key != "step")


@pytest.mark.parametrize(
    "dtype, bits, share, weight_decay",
    [(torch.float32, 2**31, 1 / 2, 0.1), (torch.bfloat16, 2**31, 3 / 8, 0.0), (torch.float32, 576, 3 / 8, 0.0)],
    ids=["float32", "bfloat16", "64-bit names"],
)
def test_beyond_half_of_the_pairs_all_moments_are_held_and_none_changes(dtype, bits, share, weight_decay, monkeypatch):
    monkeypatch.setattr(selected_adamw, "IN_32_BITS", bits)
    (dense, theirs), (ours, mine) = pair(num_vectors=16, weight_decay=weight_decay, dtype=dtype)
    logits = method_of(dense).logits
    assert logits.numel() == 576
    seen, listed = torch.zeros_like(logits, dtype=torch.bool), []
    for _ in range(50):
        seen.scatter_(1, logits.detach().topk(2).indices, True)
        train(dense, theirs, 1), train(ours, mine, 1)
        state = state_of(ours, mine)
        listed.append("pairs" in state)
        assert listed[-1] == (seen.sum() <= share * 576)
        assert not listed[-1] or state["pairs"].dtype == (torch.int32 if bits > 576 else torch.int64)
        assert_same(values(ours), values(dense), **EXACT)
        assert_same(in_full(ours, mine), in_full(dense, theirs), **EXACT)
        assert bytes_of(state) <= (3 / 4 if listed[-1] else 1) * bytes_of(state_of(dense, theirs))
    assert listed[0] and not listed[-1] and state["step"] == 50
    assert seen.sum() < 576  # for some the moments are still zero


def test_half_of_the_pairs_are_still_a_list():
    (dense, theirs), (ours, mine) = pair(top_k=2, num_vectors=4)
    for listed in (True, False):
        train(dense, theirs, 1), train(ours, mine, 1)
        assert ("pairs" in state_of(ours, mine)) == listed
        assert_same(in_full(ours, mine), in_full(dense, theirs), **EXACT)


def test_where_one_step_chooses_more_than_half_no_list_is_made():
    (dense, theirs), (ours, mine) = pair(top_k=3, num_vectors=5, weight_decay=0.1)
    train(dense, theirs, 1), train(ours, mine, 1)
    assert "pairs" not in state_of(ours, mine)
    train(dense, theirs, 60), train(ours, mine, 60)
    assert_same(values(ours), values(dense), **EXACT)
    assert_same(in_full(ours, mine), in_full(dense, theirs), **EXACT)


def step_peaks(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """The most bytes held at one time in each of 30 passes and steps, state included; logits are drawn anew."""
    draw, peaks = torch.Generator().manual_seed(3), []
    with LivePeak() as live:
        for _ in range(30):
            with torch.no_grad():
                method_of(model).logits.normal_(generator=draw)
            live.peak = live.now
            rows = method_of(model).compose()
            rows.backward(torch.ones_like(rows))
            del rows
            optimizer.step()
            optimizer.zero_grad()
            peaks.append(live.peak)
    return peaks


def test_no_step_holds_more_than_one_of_adamw():
    found = {}
    for kind in ("adamw", "selected_adamw"):
        model = nn.Sequential(nn.Linear(64, 64))
        vbank.attach(model, VBLoRA(8, 64, 2, 2), ["0"])
        optimizer = optimizers.build(kind, vbank.param_groups(model, 1e-2), model)
        found[kind] = step_peaks(model, optimizer)
    theirs, ours = found.values()
    assert "pairs" not in state_of(model, optimizer)
    assert ours[0] < theirs[0] / 3
    assert 0.8 * max(theirs) < max(ours) < 1.03 * max(theirs)


def test_checkpoints_of_either_form_go_on_exactly_in_an_optimizer_of_either_form():
    model = adapted(num_vectors=16)
    optimizer = SelectedAdamW(model, RATES, weight_decay=0.1)
    saved, listed = [], []
    for steps in (4, 36, 20):
        train(model, optimizer, steps)
        listed.append("pairs" in state_of(model, optimizer))
        saved.append(copy.deepcopy({"model": values(model), "optimizer": optimizer.state_dict()}))
    assert listed == [True, False, False]
    for begun, left in ((0, 56), (1, 20)):
        for before in (0, 4, 40):
            other = adapted(num_vectors=16)
            again = SelectedAdamW(other, RATES)
            train(other, again, before)
            again.load_state_dict(copy.deepcopy(saved[begun]["optimizer"]))
            other.load_state_dict(saved[begun]["model"])
            if listed[begun]:
                pairs = state_of(other, again)["pairs"]
                assert again.length.most == (pairs < 576).sum() < len(pairs)
            else:
                assert "pairs" not in state_of(other, again)
            train(other, again, left)
            assert_same(values(other), saved[2]["model"], **EXACT)
            assert_same(in_full(other, again), in_full(model, optimizer), **EXACT)


def test_a_state_of_no_step_starts_the_list_anew():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    start = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 5)
    optimizer.load_state_dict(start)
    train(model, optimizer, 1)
    assert optimizer.length.most == 2 * len(method_of(model).logits)


def test_a_loaded_list_that_is_too_long_is_left(monkeypatch):
    (dense, theirs), (ours, mine) = pair(num_vectors=16)
    with monkeypatch.context() as patched:
        patched.setattr(selected_adamw, "LARGEST", 9)
        train(dense, theirs, 60), train(ours, mine, 60)
    again = SelectedAdamW(ours, RATES)
    again.load_state_dict(mine.state_dict())
    assert len(state_of(ours, again)["pairs"]) > 288
    for group in (*theirs.param_groups, *again.param_groups):
        group["lr"] = 0.0  # nothing new is chosen
    train(dense, theirs, 1), train(ours, again, 1)
    assert "pairs" not in state_of(ours, again)
    assert_same(in_full(ours, again), in_full(dense, theirs), **EXACT)


@pytest.mark.parametrize(
    "pairs, logits, size, expected",
    [
        (1000, 2000, 4, 12_000),
        (1001, 2000, 4, 16_000),
        (750, 2000, 2, 6000),
        (751, 2000, 2, 8000),
        (3, 2**31 - 1, 4, 36),
        (3, 2**31, 4, 48),
        (3 * 2**28, 2**31, 4, 3 * 2**32),
        (3 * 2**28 + 1, 2**31, 4, 2**34),
    ],
)
def test_bytes_of_a_list_and_of_all(pairs, logits, size, expected):
    assert selected_adamw.state_bytes(pairs, logits, size) == expected


# A GPU's count of the pairs comes late.


class Late:
    """A count on its way that comes when it is asked for a third time."""

    def __init__(self) -> None:
        self.asked = 0

    def query(self) -> bool:
        self.asked += 1
        return self.asked == 3


def test_a_count_that_comes_late_changes_nothing(monkeypatch):
    def ask(length: Length, count: Tensor) -> None:
        if length.answer is None:
            length.answer, length.since = (count, Late()), 0

    monkeypatch.setattr(selected_adamw, "counts_late", lambda device: True)
    monkeypatch.setattr(Length, "ask", ask)
    (dense, theirs), (ours, mine) = pair(num_vectors=120)
    spare = []
    for _ in range(40):
        train(dense, theirs, 1), train(ours, mine, 1)
        number = int((state_of(ours, mine)["pairs"] < method_of(ours).logits.numel()).sum())
        assert number <= mine.length.most <= len(state_of(ours, mine)["pairs"])
        spare.append(mine.length.most - number)
    assert 72 <= max(spare) <= 6 * 72
    assert_same(values(ours), values(dense), **EXACT)
    assert_same(in_full(ours, mine), in_full(dense, theirs), **EXACT)


class Answer:
    """A count on its way: `there` says whether it has come."""

    def __init__(self) -> None:
        self.there = False

    def query(self) -> bool:
        return self.there


def test_the_bound_of_the_length_is_never_too_small_and_takes_what_comes_late():
    length, sent = Length(100), Answer()
    assert length.grow(10, 1000) == 110
    length.answer, length.since = (torch.tensor(101), sent), 0  # asked for now: 101 of 110
    assert length.grow(10, 1000) == 120 and length.grow(10, 1000) == 130
    sent.there = True
    assert length.grow(10, 1000) == 101 + 20 + 10
    assert length.answer is None
    assert length.grow(10, 135) == 135


# Stopped and resumed.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resumed_in_the_middle_it_goes_on_exactly(dtype, tmp_path):
    whole = adapted(dtype=dtype)
    optimizer = SelectedAdamW(whole, RATES, weight_decay=0.1)
    train(whole, optimizer, 20)
    vbank.save(whole, tmp_path / "adapter", form="resumable")
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "all.pt")
    train(whole, optimizer, 30)
    saved = torch.load(tmp_path / "all.pt", weights_only=True)
    assert set(saved["model"]) == set(adapted(dtype=dtype).state_dict())  # no name that a plain model does not know

    one = adapted(dtype=dtype)  # values after the optimizer
    resumed = SelectedAdamW(one, RATES, weight_decay=0.5)
    resumed.load_state_dict(copy.deepcopy(saved["optimizer"]))  # an optimizer goes on in the tensors it is given
    one.load_state_dict(saved["model"])
    two = Blocks()  # and before
    vbank.load(two, tmp_path / "adapter")
    again = SelectedAdamW(two, 0.0)
    again.load_state_dict(saved["optimizer"])
    two.load_state_dict({k: v for k, v in saved["model"].items() if not k.startswith("vbank.")}, strict=False)
    for model, opt in ((one, resumed), (two, again)):
        train(model, opt, 30)
        assert_same(values(model), values(whole), **EXACT)


def test_a_state_of_another_optimizer_or_shape_is_refused_and_nothing_changes():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    train(model, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    (dense, theirs), _ = pair()
    train(dense, theirs, 1)
    states = [theirs.state_dict()]
    for changes in ({"num_vectors": 80}, {"num_vectors": 20}, {"targets": ["0"]}, {"rank": 1, "num_vectors": 80}):
        model = adapted(**changes)  # the last has as many logits, in half as many rows
        other = SelectedAdamW(model, RATES)
        states.append(copy.deepcopy(other.state_dict()))  # of no step
        train(model, other, 1)
        states.append(other.state_dict())
    for state in states:
        with pytest.raises(ValueError, match=r"not one of SelectedAdamW for logits of shape \(36, 40\); make"):
            optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, part in before["state"].items():
        assert_same(part, after["state"][number], **EXACT)


# While it is in use.


def test_saving_merging_and_evaluating_see_the_current_logits(tmp_path):
    (dense, theirs), (ours, mine) = pair()
    train(dense, theirs, 15), train(ours, mine, 15)
    for form in ("compact", "resumable"):
        vbank.save(ours, tmp_path / form, form=form)
        vbank.save(dense, tmp_path / f"dense-{form}", form=form)
        for file in (tmp_path / form).iterdir():
            assert file.read_bytes() == (tmp_path / f"dense-{form}" / file.name).read_bytes()
    with torch.no_grad():
        assert torch.equal(ours(X), dense(X))
        vbank.merge(ours), vbank.merge(dense)
        assert torch.equal(ours(X), dense(X))
        vbank.unmerge(ours), vbank.unmerge(dense)
        with vbank.enabled(ours, False), vbank.enabled(dense, False):
            assert torch.equal(ours(X), dense(X))
    train(dense, theirs, 15), train(ours, mine, 15)
    assert_same(values(ours), values(dense), **EXACT)


def test_another_adapter_may_act_meanwhile_and_detach_leaves_the_base_model():
    (dense, theirs), (ours, mine) = pair()
    for model, optimizer in ((dense, theirs), (ours, mine)):
        train(model, optimizer, 5)
        vbank.attach(model, vbank.LoRA(2), ["0"], name="other")
        loss_of(model).backward()
        optimizer.step()  # nothing to do: the other adapter has the gradients
        assert not any(p.requires_grad for p in model.vbank["default"].parameters())
        vbank.detach(model, "other")
        assert model.vbank.active == "default"
        train(model, optimizer, 5)
    assert not method_of(ours).logits.requires_grad and method_of(ours).chosen.values.requires_grad
    assert_same(values(ours), values(dense), **EXACT)
    vbank.detach(ours), vbank.detach(dense)
    assert_same(values(ours), values(dense), **EXACT)


def test_logits_written_by_hand_are_chosen_from_and_not_under_waiting_gradients():
    (dense, theirs), (ours, mine) = pair()
    fresh = torch.randn_like(method_of(dense).logits)
    for model, optimizer in ((dense, theirs), (ours, mine)):
        train(model, optimizer, 3)
        with torch.no_grad():
            method_of(model).logits.copy_(fresh)
        train(model, optimizer, 3)
    assert_same(values(ours), values(dense), **EXACT)
    loss_of(ours).backward()
    before = values(ours)
    for change in (mine.choose, lambda: ours.load_state_dict(values(dense))):
        with pytest.raises(ValueError, match="the logits change while gradients of the former choice wait"):
            change()
    assert torch.equal(method_of(ours).logits, before["vbank.default.method.logits"])
    mine.zero_grad(set_to_none=False)  # a gradient of zeros waits, too
    with torch.no_grad():
        method_of(ours).logits.mul_(2)
    with pytest.raises(ValueError, match=r"wait; call .* optimizer.zero_grad\(set_to_none=True\) before that"):
        ours(X)
    mine.zero_grad(set_to_none=True)
    assert_sees_its_logits(ours, ours)


def assert_sees_its_logits(model: nn.Module, forward: nn.Module) -> None:
    """A model that composes from its logits themselves gives what `forward` gives."""
    plain = adapted()
    plain.load_state_dict(values(model))
    with torch.no_grad():
        torch.testing.assert_close(forward(X), plain(X), **CLOSE)


@pytest.fixture
def compiled():
    """A model that SelectedAdamW has trained, its compiled form, the optimizer, and fresh logits."""
    torch._dynamo.reset()
    model = adapted()
    optimizer, forward = SelectedAdamW(model, RATES), torch.compile(model, backend="eager", fullgraph=True)
    train(forward, optimizer, 2)
    with torch.no_grad():
        forward(X)
    yield model, forward, optimizer, numbers(*method_of(model).logits.shape, seed=5)
    torch._dynamo.reset()


def test_a_compiled_model_may_be_given(compiled):
    model, forward, former, _ = compiled
    train(model, former, 1)
    SelectedAdamW(forward, RATES)
    with pytest.raises(ValueError, match="the logits are no longer trained by this optimizer"):
        former.step()


def test_choose_brings_in_what_no_forward_notices(compiled):
    model, forward, optimizer, fresh = compiled
    with torch.no_grad():
        method_of(model).logits.copy_(fresh)
    optimizer.choose()
    assert_sees_its_logits(model, forward)
    method_of(model).logits.data.mul_(-1)  # leaves the version as it is
    optimizer.choose()
    assert_sees_its_logits(model, model)
    SelectedAdamW(model, RATES)
    with pytest.raises(ValueError, match="the logits are no longer trained by this optimizer"):
        optimizer.choose()


def test_a_checkpoint_of_the_trainer_is_seen_by_a_compiled_forward(compiled, tmp_path):
    model, forward, _, fresh = compiled
    trainer = object.__new__(AdapterTrainer)
    trainer.accelerator, trainer.model, trainer.settings = SimpleNamespace(unwrap_model=lambda m: m), model, ""
    saved = {name: value.detach().clone() for name, value in trainer._trained().items()}
    save_file(saved | {"vbank.default.method.logits": fresh}, tmp_path / TRAINED)
    (tmp_path / PROGRESS).write_text("{}")
    trainer._load_trained(tmp_path)
    assert torch.equal(method_of(model).logits, fresh)
    assert_sees_its_logits(model, forward)


def test_a_move_to_another_type_is_seen_by_a_compiled_forward(compiled):
    model, forward, _, fresh = compiled
    with torch.no_grad():
        method_of(model).logits.copy_(fresh / 1e6 + 1)  # ties in bfloat16
    method_of(model).to(torch.bfloat16).to(torch.float32)
    assert_sees_its_logits(model, forward)


@pytest.mark.parametrize("compiling", [False, True])
def test_another_tensor_of_the_same_version_is_seen(compiled, compiling):
    model, forward, _, fresh = compiled
    method = method_of(model)
    method.choose()
    while fresh._version < method.logits._version:
        fresh.mul_(1)
    model.load_state_dict(values(model) | {"vbank.default.method.logits": fresh}, assign=True)
    assert method.logits._version == fresh._version and method.logits.data_ptr() == fresh.data_ptr()
    assert_sees_its_logits(model, forward if compiling else model)
    method.logits = nn.Parameter(-fresh, requires_grad=False)
    while method.logits._version < fresh._version:
        method.logits.mul_(1)
    assert_sees_its_logits(model, model)  # an eager forward compares the tensors


def test_a_backward_through_a_former_choice_fails():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    early = loss_of(model)
    train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        early.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    found = []
    for selected in (False, True):
        torch.manual_seed(0)
        model = bert()
        vbank.attach(model, VBLoRA(2, 30, 8, 2), "all-linear", train=["classifier"])
        move(model, 0.05).train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        groups = vbank.param_groups(model, RATES)
        optimizer = SelectedAdamW(model, RATES) if selected else torch.optim.AdamW(groups)
        for _ in range(20):
            optimizer.zero_grad()
            model(tokens()).logits.square().mean().backward()
            optimizer.step()
        found.append(values(model))
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_compiled_it_sees_every_step_and_every_loaded_value():
    torch._dynamo.reset()
    (dense, theirs), (ours, mine) = pair()
    start = values(ours)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        train(dense, theirs, 12), train(compiled, mine, 12)
        assert_same(values(ours), values(dense), rtol=1e-4, atol=1e-5)
        dense.load_state_dict(start), ours.load_state_dict(start)
        torch.testing.assert_close(compiled(X), dense(X), **CLOSE)
    torch._dynamo.reset()


def test_autocast():
    found = []
    for model, optimizer in pair():
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model)
            loss.backward()
            optimizer.step()
        found.append(values(model))
    assert_same(found[1], found[0], **EXACT)


def test_moving_to_another_type_and_back():
    (dense, theirs), (ours, mine) = pair()
    for model, optimizer in ((dense, theirs), (ours, mine)):
        train(model, optimizer, 3)
        method_of(model).to(torch.bfloat16).to(torch.float32)  # ties, which the choice must follow
        train(model, optimizer, 10)
    assert_same(values(ours), values(dense), **EXACT)
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(X), ours(X)) and method_of(twin).chosen is not method_of(ours).chosen


def test_a_move_while_gradients_wait_is_refused_by_the_next_forward():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    loss_of(model).backward()
    method_of(model).to(torch.bfloat16).to(torch.float32)
    with pytest.raises(ValueError, match="the logits change while gradients of the former choice wait"):
        model(X)
    optimizer.zero_grad()
    assert_sees_its_logits(model, model)
    with torch.no_grad():
        method_of(model).logits.mul_(100)
    optimizer.choose()
    method_of(model).chosen.to(torch.bfloat16).to(torch.float32)  # by themselves, which the logits do not show
    assert_sees_its_logits(model, model)


def test_the_choice_moves_to_another_device():
    model = adapted()
    SelectedAdamW(model, RATES)
    method_of(model).to("meta")
    assert {method_of(model).chosen.indices.device.type, method_of(model).chosen.values.device.type} == {"meta"}


def test_released_logits_train_on_with_another_optimizer():
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    train(model, optimizer, 3)
    with pytest.raises(
        ValueError, match=r"a SelectedAdamW trains the logits of adapter 'default'; call its release\(\)"
    ):
        vbank.param_groups(model, 1e-2)
    twin = copy.deepcopy(model)  # whose logits no optimizer can release
    with pytest.raises(ValueError, match=r"A copy .* call model.vbank\['default'\].method.train_chosen\(False\) there"):
        vbank.param_groups(twin, 1e-2)
    twin.vbank["default"].method.train_chosen(False)
    assert method_of(twin).logits.requires_grad and len(vbank.param_groups(twin, 1e-2)) == 3
    optimizer.release()
    before = values(model)
    train(model, torch.optim.AdamW(vbank.param_groups(model, RATES)), 1)
    moved = (before["vbank.default.method.logits"] != method_of(model).logits).sum(1)
    assert (moved == 2).all()
    with pytest.raises(ValueError, match="the logits are no longer trained by this optimizer"):
        optimizer.step()
    one = SelectedAdamW(model, RATES)
    latest = SelectedAdamW(model, RATES)
    one.release()  # has nothing to release
    assert not method_of(model).logits.requires_grad
    train(model, latest, 1)
    with pytest.raises(ValueError, match="the logits are no longer trained by this optimizer"):
        one.step()


# Refused.


def test_a_constructor_that_fails_leaves_the_former_optimizer_in_use():
    (dense, theirs), (ours, mine) = pair()
    train(dense, theirs, 2), train(ours, mine, 2)
    for model, optimizer in ((dense, theirs), (ours, mine)):
        optimizer.zero_grad()
        loss_of(model, slice(3)).backward()  # gradients that wait
    for rates in ({"bank": 1e-2}, -1.0):
        with pytest.raises(ValueError, match="learning rate"):
            SelectedAdamW(ours, rates)
    for optimizer in (theirs, mine):
        optimizer.step()
    train(dense, theirs, 2), train(ours, mine, 2)
    assert_same(values(ours), values(dense), **EXACT)


@pytest.mark.parametrize("selection", ["select_all", "noisy_top_k", "gumbel_softmax", "straight_through"])
def test_selections_that_need_every_logit_are_refused(selection):
    model = Blocks()
    vbank.attach(model, VBLoRA(2, 9, 8, selection=selection), "all-linear")
    with pytest.raises(
        ValueError, match=f"selection '{selection}' gives all logits a gradient.*take torch.optim.AdamW"
    ):
        SelectedAdamW(model, 1e-2)
    assert method_of(model).logits.requires_grad and method_of(model).chosen is None


def test_what_it_cannot_train_is_refused():
    model = Blocks()
    vbank.attach(model, vbank.LoRA(2), "all-linear")
    with pytest.raises(ValueError, match="adapter 'default' is LoRA, which has no logits"):
        SelectedAdamW(model, 1e-2)
    with pytest.raises(ValueError, match="has no adapter"):
        SelectedAdamW(Blocks(), 1e-2)
    ours = adapted()
    with pytest.raises(ValueError, match="wrapped in DataParallel; make the SelectedAdamW first"):
        SelectedAdamW(nn.DataParallel(ours), 1e-2)
    with pytest.raises(ValueError, match="no learning rate for head"):
        SelectedAdamW(ours, {"bank": 1e-2, "logits": 1e-2})
    for wrong in ({"betas": (0.9, 1.0)}, {"betas": (1.0, 0.9)}, {"betas": (-0.1, 0.9)}, {"betas": (0.1, -0.9)}):
        with pytest.raises(ValueError, match=r"betas are \(.* a beta lies in \[0, 1\)"):
            SelectedAdamW(ours, 1e-2, **wrong)
    with pytest.raises(ValueError, match=r"eps is 0.0; .* eps is above 0"):  # AdamW's logits would be 0 / 0
        SelectedAdamW(ours, 1e-2, eps=0.0)
    SelectedAdamW(adapted(), 1e-2, betas=(0.0, 0.0))
    assert method_of(ours).logits.requires_grad and method_of(ours).chosen is None


def test_parameters_that_fsdp_spreads_are_refused_also_in_the_step():
    model = adapted()
    method_of(model).bank = nn.Parameter(torch.zeros(40, 8).as_subclass(DTensor))
    with pytest.raises(ValueError, match="does not train parameters that FSDP has spread; take torch.optim.AdamW"):
        SelectedAdamW(model, RATES)
    model = adapted()
    optimizer = SelectedAdamW(model, RATES)
    optimizer.param_groups[1]["params"] = [torch.zeros(3).as_subclass(DTensor)]
    with pytest.raises(ValueError, match="does not train parameters that FSDP has spread; take torch.optim.AdamW"):
        optimizer.step()


# In recipes, and over processes.


def test_recipes_build_it_and_refuse_it_under_fsdp(monkeypatch):
    model = adapted()
    groups = vbank.param_groups(model, RATES, weight_decay=0.1)
    with pytest.raises(ValueError, match="give build\\(\\) the model"):
        optimizers.build("selected_adamw", groups)
    made = optimizers.build("selected_adamw", groups, model)
    assert isinstance(made, vbank.SelectedAdamW)
    kept = ("name", "lr", "weight_decay")
    assert [[g[key] for key in kept] for g in made.param_groups] == [[g[key] for key in kept] for g in groups]
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="'selected_adamw' does not train parameters that FSDP has spread"):
        optimizers.refuse_impossible("selected_adamw")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_recipe_gives_the_curve_of_adamw_also_when_it_is_killed_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TABLE, "backwards", "tiny_task:BACKWARDS")
    recipe = f"{tiny_task.write_recipe(tmp_path, tiny_task.save_llama(tmp_path / 'llama'))}/vb-lora"
    decay = "train.weight_decay=0.01"
    dense = run(load(recipe, [decay]), 0, tmp_path / "dense", announce=silent)
    ours = load(recipe, [decay, "train.optimizer=selected_adamw"])
    killed_at("step", 11, ours, tmp_path / "ours", silent)
    (checkpoint,) = (tmp_path / "ours").glob(".work/*/checkpoint-*")
    saved = load_file(checkpoint / "trained.safetensors")
    assert sorted(name.rpartition(".")[2] for name in saved) == ["bank", "logits"]
    resumed = run(ours, 0, tmp_path / "ours", announce=silent)
    assert resumed["resumed"] and resumed["recipe"]["train"]["optimizer"] == "selected_adamw"
    assert len(dense["curve"]) == 2
    for mine, theirs in zip(resumed["curve"], dense["curve"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    adapters = [next((tmp_path / kind).glob(".work/*/adapter")) for kind in ("dense", "ours")]
    one, other = (load_file(next(folder.glob("*.safetensors"))) for folder in adapters)
    assert_same(one, other, rtol=1e-4, atol=1e-5)


def test_the_account_holds_what_is_there():
    model = bert(num_labels=3)
    config = VBLoRA(2, 30, 8, 2)
    vbank.attach(model, config, "all-linear", train=["classifier"])
    optimizer = SelectedAdamW(move(model, 0.05), RATES)
    for _ in range(12):
        optimizer.zero_grad()
        model(tokens()).logits.square().mean().backward()
        held = sum(p.grad.nbytes for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
    state = state_of(model, optimizer)
    tried = len(state["pairs"]) / len(method_of(model).logits)
    wanted = {"length": 8, "classes": 3, "optimizer": "selected_adamw"}
    found = account.memory(model.config, config, **wanted, ever_chosen=tried).held
    moments = [v.nbytes for part in optimizer.state.values() for key, v in part.items() if key != "step"]
    assert found["gradients"] == held
    assert found["optimizer state"] == pytest.approx(sum(moments), abs=1)


def test_the_account_of_a_large_model_by_hand():
    config = VBLoRA(4, 2048, 256, 2)
    plain, spared = (account.memory("llama2-7b", config, optimizer=name) for name in ("adamw", "selected_adamw"))
    n, bank = 39_040, 2048 * 256
    assert plain.held["gradients"] == 4 * (bank + 2048 * n) and plain.held["optimizer state"] == 8 * (bank + 2048 * n)
    assert spared.held["gradients"] == 4 * (bank + 2 * n)
    assert spared.held["optimizer state"] == 8 * bank + 12 * n * 64  # the mean that it takes
    assert spared.held["adapter and head"] == plain.held["adapter and head"]
    for number, counted in ((1, 2), (40, 40), (1024, 1024)):
        found = account.memory("llama2-7b", config, optimizer="selected_adamw", ever_chosen=number)
        assert found.held["optimizer state"] == 8 * bank + 12 * n * counted
    for number in (1025, 2048, 10_000):  # all moments take less than a list
        found = account.memory("llama2-7b", config, optimizer="selected_adamw", ever_chosen=number)
        assert found.held["optimizer state"] == plain.held["optimizer state"]
    half = account.memory("llama2-7b", config, optimizer="selected_adamw", adapter="bf16")
    assert half.held["optimizer state"] == 4 * bank + 8 * n * 64
    with pytest.raises(ValueError, match="ever_chosen is 0.5; it must be at least 1"):
        account.memory("llama2-7b", config, optimizer="selected_adamw", ever_chosen=0.5)
    with pytest.raises(ValueError, match="'selected_adamw' trains VB-LoRA"):
        account.memory("llama2-7b", vbank.LoRA(4), optimizer="selected_adamw")


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = adapted()
    if rank:
        move(model, std=0.5, seed=9)  # to be overwritten by the first process's
    optimizer = SelectedAdamW(model, RATES)
    wrapped = DistributedDataParallel(model)
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(wrapped, slice(4 * rank, 4 * rank + 4)).backward()
        optimizer.step()
    torch.save(values(model), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, free_port):
    multiprocessing.spawn(process, (free_port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_same(found[0], found[1], **EXACT)
    (dense, theirs), _ = pair()
    train(dense, theirs, 30)
    assert_same(found[0], values(dense), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_step_waits():
    (dense, theirs), (ours, mine) = pair()
    dense.cuda(), ours.cuda()
    x, y = X.cuda(), Y.cuda()
    for model, optimizer in ((dense, theirs), (ours, mine)):
        for step in range(40):
            torch.cuda.set_sync_debug_mode("error" if step > 2 and optimizer is mine else "default")
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    assert_same(values(ours), values(dense), rtol=1e-4, atol=1e-5)


def test_a_changed_top_k_is_refused():
    model = adapted(top_k=2)
    SelectedAdamW(model, RATES)
    method = method_of(model)
    method.config = dataclasses.replace(method.config, top_k=3)
    with pytest.raises(ValueError, match="top_k is 3, but 2 logits of each sub-vector are trained"):
        model(X)
