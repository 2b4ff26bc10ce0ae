"""Several adapters on one model, which of them acts, their heads, and copies of the whole."""

import copy
import io

import pytest
import torch
from tiny_models import (
    CONFIGS,
    EXACT,
    Blocks,
    DTensor,
    assert_same,
    assert_untouched,
    bert,
    every_method,
    fingerprint,
    gradients,
    logits,
    move,
    numbers,
    tokens,
    trained,
)
from torch import nn

import vbank

LORA, VB = CONFIGS[0], CONFIGS[-1]
X = numbers(5, 8)


def two_adapters() -> nn.Module:
    """`lora` on the blocks with the head trained, then `vb`, also with the head, active; all values moved."""
    model = Blocks()
    vbank.attach(model, LORA, "all-linear", train=["head"], name="lora")
    move(model, seed=5)
    with torch.no_grad():
        model.head.weight += 1.0
    vbank.attach(model, VB, ["0"], train=["head"], name="vb")
    move(model, seed=6)
    with torch.no_grad():
        model.head.weight -= 1.0
    return model


def alone(which: str) -> torch.Tensor:
    torch.manual_seed(0)
    model = Blocks()
    if which == "lora":
        vbank.attach(model, LORA, "all-linear")
        move(model, seed=5)
    elif which == "vb":
        vbank.attach(model, VB, ["0"])
        move(model, seed=6)
    with torch.no_grad():
        model.head.weight += {"lora": 1.0, "vb": -1.0, "base": 0.0}[which]
    return model(X)


def test_only_the_active_adapter_acts_and_its_head_comes_with_it():
    torch.manual_seed(0)
    model = two_adapters()
    for name in ("vb", "lora", "lora", "vb"):
        assert vbank.activate(model, name).name == name
        torch.testing.assert_close(model(X), alone(name), **EXACT)
        with vbank.enabled(model, False):
            torch.testing.assert_close(model(X), alone("base"), **EXACT)
        torch.testing.assert_close(model(X), alone(name), **EXACT)
        assert {n.split(".")[1] for n in trained(model) if n.startswith("vbank.")} == {name}
        assert {n for n in trained(model) if not n.startswith("vbank.")} == {"head.weight", "head.bias"}


def test_a_second_adapter_starts_from_the_base_models_head():
    torch.manual_seed(0)
    model = Blocks()
    base = model.head.weight.clone()
    vbank.attach(model, LORA, "all-linear", train=["head"], name="first")
    with torch.no_grad():
        model.head.weight.fill_(7.0)
    vbank.attach(model, LORA, "all-linear", train=["head"], name="second")
    assert torch.equal(model.head.weight, base)


def test_training_one_adapter_leaves_the_other_and_the_base_as_they_were():
    torch.manual_seed(0)
    model = two_adapters()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr=0.1))
    gradients(model, model(X).square().sum())
    optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"vbank.vb.method.bank", "vbank.vb.method.logits", "head.weight", "head.bias"}
    vbank.activate(model, "lora")
    torch.testing.assert_close(model(X), alone("lora"), **EXACT)
    vbank.detach(model, "lora")
    vbank.detach(model, "vb")
    torch.testing.assert_close(model(X), alone("base"), **EXACT)


def test_a_head_does_not_hand_its_gradient_to_the_next_adapter():
    torch.manual_seed(0)
    model = two_adapters()
    model(X).square().sum().backward()
    vbank.activate(model, "lora")
    assert all(p.grad is None for p in model.parameters())


def test_detaching_the_active_adapter_makes_the_first_of_the_others_active():
    torch.manual_seed(0)
    model = two_adapters()
    vbank.detach(model)
    assert list(model.vbank) == ["lora"] and model.vbank.active == "lora"
    torch.testing.assert_close(model(X), alone("lora"), **EXACT)


def test_detaching_an_idle_adapter_changes_nothing_for_the_active_one():
    torch.manual_seed(0)
    model = two_adapters()
    vbank.detach(model, "lora")
    torch.testing.assert_close(model(X), alone("vb"), **EXACT)
    assert not model.blocks[0][2]._forward_hooks  # only `lora` sat there
    assert model.blocks[0][0]._forward_hooks


def test_attach_and_detach_can_be_repeated():
    model = Blocks()
    before = fingerprint(model, X)
    for _ in range(2):
        vbank.attach(model, VB, "all-linear", name="one")
        vbank.attach(model, LORA, "all-linear", name="two", train=["head"])
        vbank.detach(model, "one")
        vbank.detach(model)
        assert_untouched(before, model, X)


def test_names_that_are_not_there_are_refused_with_those_that_are():
    model = two_adapters()
    for act in (vbank.activate, vbank.detach, vbank.merge):
        with pytest.raises(ValueError, match="no adapter is called 'other'; there are 'lora', 'vb'"):
            act(model, "other")


def test_a_model_without_adapters_says_so():
    for act in (vbank.detach, vbank.merge, vbank.unmerge, lambda m: vbank.param_groups(m, lr=0.1)):
        with pytest.raises(ValueError, match="Blocks has no adapter; attach one with vbank.attach or vbank.load"):
            act(Blocks())
    with pytest.raises(ValueError, match="Blocks has no adapter"), vbank.enabled(Blocks(), False):
        pass


def test_a_model_whose_part_has_adapters_is_sent_to_that_part():
    whole = nn.Sequential(nn.Identity(), two_adapters())
    for act in (vbank.merge, vbank.count, lambda m: vbank.param_groups(m, lr=0.1)):
        with pytest.raises(ValueError, match="Sequential has no adapter of its own, its part '1' has; give that part"):
            act(whole)


# enabled


def adapted() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A BERT with VB-LoRA and a trained head, the outputs of the base model and of the adapted one."""
    torch.manual_seed(0)
    model, x = bert().eval(), tokens()
    base = logits(model, x).detach()
    vbank.attach(model, VB, "all-linear", train=["classifier"])
    move(model)
    with torch.no_grad():
        model.classifier.weight += 1.0
    out = logits(model, x).detach()
    assert not torch.allclose(base, out, atol=0.1)
    return model, base, out


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_base_model_bit_for_bit_head_included(merged):
    model, base, out = adapted()
    if merged:
        vbank.merge(model)
        out = logits(model, tokens()).detach()
    with vbank.enabled(model, False) as same:
        assert same is model
        assert torch.equal(logits(model, tokens()), base)
    assert torch.equal(logits(model, tokens()), out)
    assert model.vbank.merged == ("default" if merged else None)


@pytest.mark.parametrize("merged", [False, True])
def test_enabled_nests(merged):
    model, base, out = adapted()
    if merged:
        vbank.merge(model)
    with vbank.enabled(model, False):
        with vbank.enabled(model, False):
            assert torch.equal(logits(model, tokens()), base)
        assert torch.equal(logits(model, tokens()), base)
        with vbank.enabled(model):
            assert torch.equal(logits(model, tokens()), out)
            with vbank.enabled(model, False):
                assert torch.equal(logits(model, tokens()), base)
        assert torch.equal(logits(model, tokens()), base)
    with vbank.enabled(model, True):
        torch.testing.assert_close(logits(model, tokens()), out, rtol=1e-5, atol=1e-5)
    if merged:
        vbank.unmerge(model)
    assert torch.equal(logits(model, tokens()), out)


@pytest.mark.parametrize("merged", [False, True])
def test_an_exception_in_the_block_restores_the_adapter(merged):
    model, _, out = adapted()
    if merged:
        vbank.merge(model)
        out = logits(model, tokens()).detach()
    with pytest.raises(KeyError), vbank.enabled(model, False):
        raise KeyError
    assert torch.equal(logits(model, tokens()), out)


def test_a_loss_against_the_base_model_keeps_its_gradient():
    model, base, _ = adapted()
    expected = gradients(model, (logits(model, tokens()) - base).square().sum())
    out = logits(model, tokens())
    with torch.no_grad(), vbank.enabled(model, False):  # between the forward and its backward
        reference = logits(model, tokens())
    assert_same(gradients(model, (out - reference).square().sum()), expected, **EXACT)


def test_who_acts_cannot_be_changed_inside_a_disabled_block():
    torch.manual_seed(0)
    model = two_adapters()
    out = model(X).detach()
    with vbank.enabled(model, False):
        for act in (
            lambda: vbank.activate(model, "lora"),
            lambda: vbank.detach(model),
            lambda: vbank.merge(model),
            lambda: vbank.attach(model, LORA, "all-linear", name="third"),
        ):
            with pytest.raises(ValueError, match=r"leave the block of vbank.enabled\(model, False\) first"):
                act()
    assert torch.equal(model(X), out)
    assert list(model.vbank) == ["lora", "vb"]


def test_what_changes_in_an_enabled_block_inside_a_disabled_one_lasts():
    torch.manual_seed(0)
    model = two_adapters()
    with vbank.enabled(model, False):
        with vbank.enabled(model, True):
            vbank.activate(model, "lora")
            vbank.merge(model)
        torch.testing.assert_close(model(X), alone("base"), **EXACT)
    torch.testing.assert_close(model(X), alone("lora"), **EXACT)


# Copies


@every_method
def test_a_deep_copy_is_independent(config):
    torch.manual_seed(0)
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    move(model)
    out = model(X)
    out.sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), out)
    optimizer = torch.optim.SGD(vbank.param_groups(twin, lr=0.1))
    found = gradients(twin, twin(X).square().sum())
    assert_same(found, gradients(model, model(X).square().sum()), **EXACT)
    optimizer.step()
    assert not torch.allclose(twin(X), out, atol=1e-2)
    assert torch.equal(model(X), out)
    vbank.merge(twin)
    vbank.detach(twin)
    assert torch.equal(model(X), out)
    with vbank.enabled(model, False):
        assert not torch.equal(model(X), out)


def test_a_deep_copy_of_a_merged_model_unmerges_by_itself():
    torch.manual_seed(0)
    model = two_adapters()
    out = model(X)
    vbank.merge(model)
    twin = copy.deepcopy(model)
    merged = model(X)
    vbank.unmerge(twin)
    assert torch.equal(twin(X), out)
    assert torch.equal(model(X), merged)


@every_method
def test_state_dict_survives_torch_save_and_goes_into_a_model_with_the_same_adapter(config):
    torch.manual_seed(0)
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    move(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Blocks()
    vbank.attach(other, config, "all-linear", train=["head"])
    other(X)  # a composition made before must not survive
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X), model(X))


def test_a_whole_model_can_be_pickled():
    torch.manual_seed(0)
    model = two_adapters()
    out = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert torch.equal(other(X), out)
    vbank.activate(other, "lora")
    torch.testing.assert_close(other(X), alone("lora"), **EXACT)


def test_a_sequential_model_runs_with_its_adapter():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    base = model(X)
    vbank.attach(model, vbank.LoRA(2), ["0"])
    assert torch.equal(model(X), base)
    assert not torch.allclose(move(model)(X), base, atol=1e-2)


def test_wrapped_models_are_served_by_the_same_functions():
    torch.manual_seed(0)
    model = two_adapters()
    wrapped = nn.DataParallel(model)  # without a GPU it calls the model
    vbank.activate(wrapped, "lora")
    torch.testing.assert_close(wrapped(X), alone("lora"), **EXACT)
    with vbank.enabled(wrapped, False) as same:
        assert same is wrapped
        torch.testing.assert_close(wrapped(X), alone("base"), **EXACT)
    vbank.merge(wrapped)
    vbank.unmerge(wrapped)
    vbank.detach(wrapped)
    assert vbank.count(wrapped).method == "VB-LoRA"


@pytest.mark.parametrize("spread", ["blocks.0.0.weight", "head.weight", "vbank.default.method.logits"])
def test_what_fsdp_has_spread_is_refused_before_anything_is_written(spread, tmp_path):
    model = Blocks()
    vbank.attach(model, VB, "all-linear", train=["head"])
    layer, _, name = spread.rpartition(".")
    module = model.get_submodule(layer)
    setattr(module, name, nn.Parameter(getattr(module, name).detach().as_subclass(DTensor)))
    if not spread.startswith("blocks"):
        for write in (vbank.save, vbank.to_peft):
            with pytest.raises(ValueError, match=r"spread adapter 'default' over processes; call model.unshard\(\)"):
                write(model, tmp_path / "adapter")
    if not spread.startswith("head"):
        with pytest.raises(ValueError, match="or its layers over processes; merge before fully_shard"):
            vbank.merge(model)
    assert not (tmp_path / "adapter").exists() and model.vbank.merged is None
