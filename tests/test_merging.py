"""merge and unmerge: the same outputs, and the weights back bit for bit."""

import pytest
import torch
from tiny_models import (
    CONFIGS,
    EXACT,
    Blocks,
    Convolutional,
    albert,
    assert_same,
    assert_untouched,
    bert,
    every_method,
    fingerprint,
    gpt2,
    jamba,
    llama,
    logits,
    mamba,
    move,
    numbers,
    tokens,
)
from torch import nn

import vbank

LORA, VB = CONFIGS[0], CONFIGS[-1]
X = numbers(5, 8)
MODELS = {
    "linear": (Blocks, "all-linear", X),
    "conv1d": (Convolutional, ["c_attn", "c_proj"], X),
    "slices": (Convolutional, "qv", X),
    "gpt2 qv": (gpt2, "qv", tokens()),
    "llama": (llama, "all-linear", tokens()),
    "bert": (bert, "all-linear", tokens()),
    "albert": (albert, "all-linear", tokens()),
}
every_model = pytest.mark.parametrize(("build", "targets", "x"), MODELS.values(), ids=MODELS.keys())


@every_method
@every_model
def test_merged_gives_the_unmerged_forward_and_unmerge_restores_every_bit(config, build, targets, x):
    model = build().eval()
    vbank.attach(model, config, targets)
    move(model, std=0.1)
    before = fingerprint(model, x)
    vbank.merge(model)
    with torch.no_grad():
        merged = logits(model, x)
    torch.testing.assert_close(merged, before["outputs"], rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(v, before["state_dict"][n]) for n, v in model.state_dict().items())
    assert [n for n, v in model.state_dict().items() if n.startswith("vbank.") and v is None] == []
    vbank.unmerge(model)
    assert_untouched(before, model, x)


@every_method
def test_merge_then_detach_leaves_a_plain_model_with_the_update_and_the_head(config):
    model = Blocks()
    names, flags = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    vbank.attach(model, config, "all-linear", train=["head"])
    move(model)
    with torch.no_grad():
        model.head.bias += 3.0
    out = model(X)
    vbank.merge(model)
    vbank.detach(model)
    torch.testing.assert_close(model(X), out, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    plain = Blocks()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(X), model(X))


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_take_the_update_rounded_once(config, dtype):
    model = Blocks().to(dtype)
    vbank.attach(model, config, "all-linear")
    move(model)
    before = fingerprint(model)
    adapter = model.vbank["default"]
    expected = {
        site.name: (model.get_submodule(site.name).weight.float() + vbank.delta(adapter.method, site.name)).to(dtype)
        for site in adapter.sites
    }
    vbank.merge(model)
    for name, weight in expected.items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    vbank.unmerge(model)
    assert_untouched(before, model)


def test_merging_in_training_leaves_dropout_and_noise_out_and_the_mode_as_it_was():
    for config in (
        vbank.LoRA(2, dropout=0.5),
        vbank.VBLoRA(2, 9, 8, selection="noisy_top_k"),
        vbank.VBLoRA(2, 9, 8, selection="gumbel_softmax"),
    ):
        model = Blocks().eval()
        vbank.attach(model, config, "all-linear")
        move(model)
        out = model(X)
        model.train()
        vbank.merge(model)
        torch.testing.assert_close(model(X), out, rtol=1e-5, atol=1e-5)
        assert model.training and model.vbank["default"].method.training


@every_method
def test_a_tied_weight_is_updated_once(config):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    vbank.attach(model, config, ["0", "2"])
    move(model)
    before = fingerprint(model, X)
    vbank.merge(model)
    assert model[2].weight is model[0].weight
    torch.testing.assert_close(model(X), before["outputs"], rtol=1e-5, atol=1e-5)
    vbank.unmerge(model)
    assert_untouched(before, model, X)


def test_a_weight_shared_with_a_module_that_is_not_adapted_is_refused():
    model = gpt2().eval()
    vbank.attach(model, LORA, ["lm_head"])
    move(model)
    before = fingerprint(model, tokens())
    with pytest.raises(ValueError, match=r"lm_head shares its weight with transformer\.wte, which is not adapted"):
        vbank.merge(model)
    assert_untouched(before, model, tokens())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_nothing_is_merged(value):
    model = Blocks()
    vbank.attach(model, LORA, "all-linear")
    move(model)
    with torch.no_grad():
        model.vbank["default"].method.A[5][0, 0] = value  # the last layer: the others come first
    before = fingerprint(model)
    with pytest.raises(ValueError, match="'default' has values that are not finite in blocks.2.2; nothing is merged"):
        vbank.merge(model)
    after = fingerprint(model)
    assert before["modules"] == after["modules"]
    own = {n: v for n, v in before["state_dict"].items() if not n.startswith("vbank.")}
    assert_same(own, {n: v for n, v in after["state_dict"].items() if n in own}, **EXACT)
    assert model.vbank.merged is None


def test_an_update_that_overflows_half_precision_is_refused():
    model = Blocks().half()
    vbank.attach(model, LORA, "all-linear")
    move(model, std=400.0)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="not finite"):
        vbank.merge(model)
    assert_untouched(before, model)


def test_what_cannot_be_done_while_merged_is_refused_and_changes_nothing():
    model = Blocks()
    vbank.attach(model, LORA, "all-linear", name="first")
    vbank.attach(model, VB, "all-linear", name="second")
    move(model)
    vbank.merge(model)
    before = fingerprint(model, X)
    for act, message in (
        (lambda: vbank.merge(model), "'second' is merged already; call vbank.unmerge"),
        (lambda: vbank.activate(model, "first"), "'second' is merged into the weights; call vbank.unmerge"),
        (lambda: vbank.attach(model, LORA, "all-linear", name="third"), "'second' is merged into the weights"),
        (lambda: vbank.detach(model, "first"), "'second' is merged into the weights"),
        (lambda: vbank.detach(model), "'first' would then act on changed weights"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
        assert_untouched(before, model, X)


def test_unmerge_without_merge_and_merge_of_an_idle_adapter_are_refused():
    model = Blocks()
    vbank.attach(model, LORA, "all-linear", name="first")
    vbank.attach(model, VB, "all-linear", name="second")
    before = fingerprint(model, X)
    with pytest.raises(ValueError, match="no adapter is merged, so there is nothing to unmerge"):
        vbank.unmerge(model)
    with pytest.raises(ValueError, match=r"'first' is not the active adapter; call vbank.activate\(model, 'first'\)"):
        vbank.merge(model, "first")
    assert_untouched(before, model, X)


def test_merge_and_unmerge_can_be_repeated_without_drift():
    model = Blocks()
    vbank.attach(model, VB, "all-linear")
    move(model)
    before = fingerprint(model, X)
    for _ in range(3):
        vbank.merge(model)
        vbank.unmerge(model)
    assert_untouched(before, model, X)


def test_a_model_moved_while_merged_unmerges_to_its_new_type():
    model, plain = Blocks(), Blocks()
    plain.load_state_dict(model.state_dict())
    vbank.attach(model, VB, "all-linear")
    vbank.merge(model)
    model.to(torch.float64)
    vbank.unmerge(model)
    vbank.detach(model)
    assert_same(dict(plain.double().named_parameters()), dict(model.named_parameters()), **EXACT)


def test_a_parameter_stays_the_same_object_so_that_optimizers_and_ties_hold():
    model = Blocks()
    vbank.attach(model, LORA, "all-linear")
    weight = model.blocks[0][0].weight
    storage = weight.data_ptr()
    vbank.merge(model)
    assert model.blocks[0][0].weight is weight
    vbank.unmerge(model)
    assert weight.data_ptr() == storage


@pytest.mark.parametrize(
    "act",
    [
        lambda model: vbank.activate(model, "second"),
        lambda model: vbank.detach(model, "first"),
        lambda model: vbank.attach(model, LORA, "all-linear", name="third"),
        lambda model: (vbank.detach(model, "first"), vbank.attach(model, LORA, "all-linear", name="first")),
        lambda model: (vbank.activate(model, "second"), vbank.merge(model)),
        lambda model: (vbank.detach(model, "first"), vbank.detach(model, "second")),
    ],
    ids=["activate", "detach", "attach", "replace", "merge another", "detach all"],
)
def test_what_a_block_of_true_within_one_of_false_puts_in_a_merged_adapters_place_stays(act):
    model = Blocks()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("first", "second"):
        vbank.attach(model, VB, "all-linear", train=["head"], name=name)
        move(model)
    vbank.activate(model, "first")
    vbank.merge(model)
    with vbank.enabled(model, False), vbank.enabled(model, True):
        act(model)
        active = model.vbank.active if hasattr(model, "vbank") else None
    assert_same(weights, {name: model.state_dict()[name] for name in weights}, **EXACT)
    if active is not None:
        assert (model.vbank.active, model.vbank.merged, model.vbank.on) == (active, None, True)
        vbank.merge(model)  # what acts can be merged afterwards
    else:
        assert not hasattr(model, "vbank")


def test_a_merged_adapter_that_is_active_again_at_the_end_of_the_blocks_is_merged_again():
    model = Blocks()
    for name in ("first", "second"):
        vbank.attach(model, VB, "all-linear", name=name)
        move(model)
    vbank.merge(model)
    before = fingerprint(model, X)
    with vbank.enabled(model, False), vbank.enabled(model, True):
        vbank.activate(model, "first")
        vbank.activate(model, "second")
    assert model.vbank.merged == "second"
    assert_untouched(before, model, X)


def test_what_inference_mode_merges_and_switches_passes_gradients_later():
    x = numbers(5, 8).requires_grad_()
    model = Blocks()
    vbank.attach(model, VB, "all-linear", train=["head"])
    move(model)
    with torch.inference_mode():
        vbank.merge(model)
    model(x).sum().backward()
    with torch.inference_mode(), vbank.enabled(model, False):
        model(x)
    model(x).sum().backward()
    model.double()
    with torch.inference_mode():
        vbank.unmerge(model)
    model(x.double()).sum().backward()
    with torch.inference_mode():
        block = vbank.enabled(model, False)
        block.__enter__()
    model(x.double()).sum().backward()
    block.__exit__(None, None, None)
    assert not any(parameter.data.is_inference() for parameter in model.parameters())


def test_an_unmerged_quantised_layer_has_the_mode_and_the_device_that_its_stand_in_was_given():
    class Linear4bit(nn.Linear):  # bitsandbytes' own cannot go to the meta device, which stands for a second one here
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.weight.quant_state = None

    model = nn.Sequential(Linear4bit(), nn.Linear(8, 4))
    layer = model[0]
    vbank.attach(model, LORA, ["0"])
    vbank.merge(model)
    assert model[0] is not layer
    model.eval()
    vbank.unmerge(model)
    assert model[0] is layer and not layer.training
    model.train()
    vbank.merge(model)
    model.to("meta")
    vbank.unmerge(model)
    assert model[0] is layer and layer.training
    assert layer.weight.is_meta and layer.bias.is_meta


@pytest.mark.parametrize(("build", "targets"), [(mamba, "all-linear"), (jamba, r"model\.layers\..*")])
def test_layers_that_are_not_called_are_not_merged(build, targets):
    model = build().eval()
    vbank.attach(model, LORA, targets)
    move(model, std=0.3)
    with torch.no_grad():
        out = logits(model, tokens())
        vbank.merge(model)
        torch.testing.assert_close(logits(model, tokens()), out, rtol=1e-4, atol=1e-4)


def test_a_merge_that_fails_leaves_the_method_training(monkeypatch):
    model = Blocks()
    adapter = vbank.attach(model, vbank.LoRA(2, dropout=0.5), "all-linear")
    model.train()
    monkeypatch.setattr("vbank.merging.dense_weight", lambda module: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vbank.merge(model)
    assert adapter.method.training and adapter.method.dropout.training
