"""attach, detach, activate and param_groups: what changes on a model, and that everything else stays."""

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
    gradients,
    logits,
    move,
    numbers,
    tokens,
    trained,
)
from torch import nn

import vbank

VB = CONFIGS[-1]
MODELS = {
    "linear": (Blocks, "all-linear", lambda: numbers(5, 8)),
    "conv1d": (Convolutional, ["c_attn", "c_proj"], lambda: numbers(5, 8)),
    "slices": (Convolutional, "qv", lambda: numbers(5, 8)),
    "gpt2": (gpt2, "all-linear", tokens),
    "gpt2 qv": (gpt2, "qv", tokens),
    "bert": (bert, "all-linear", tokens),
    "albert": (albert, "all-linear", tokens),
}
every_model = pytest.mark.parametrize(("build", "targets", "make_x"), MODELS.values(), ids=MODELS.keys())


def by_hand(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The update of each layer as a dense matrix (out, in), slices in their place, from the factors alone."""
    adapter = model.vbank[name]
    dense = {}
    for site in adapter.sites:
        layer, _, which = site.name.partition(":")
        A, B = adapter.method.factors(site.name)
        update = adapter.method.scale * (B @ A)
        if which:
            third = {"query": 0, "value": 2}[which]
            whole = dense.setdefault(layer, torch.zeros(3 * site.out_features, site.in_features))
            whole[third * site.out_features : (third + 1) * site.out_features] = update.detach()
        else:
            dense[layer] = update.detach()
    return dense


@every_method
@every_model
def test_the_forward_is_that_of_the_base_model_with_w_plus_s_b_a(config, build, targets, make_x):
    model, x = build().eval(), make_x()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vbank.attach(model, config, targets)
    move(model)
    found = logits(model, x)
    updates = by_hand(model, "default")
    vbank.detach(model)
    assert_same(before, model.state_dict(), **EXACT)
    base = logits(model, x)
    for layer, update in updates.items():
        weight = model.get_submodule(layer).weight
        weight.data += update if isinstance(model.get_submodule(layer), nn.Linear) else update.T
    torch.testing.assert_close(found, logits(model, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, base, atol=1e-2)


@every_model
def test_attach_adds_names_under_vbank_freezes_the_rest_and_detach_undoes_it(build, targets, make_x):
    model, x = build().eval(), make_x()
    first = next(iter(model.parameters()))
    first.requires_grad_(False)  # a flag of the user's own, to be put back as it was
    before = fingerprint(model, x)
    adapter = vbank.attach(model, VB, targets)
    assert adapter.name == "default" and adapter.config is VB and model.vbank["default"] is adapter
    names = list(model.state_dict())
    own = [name for name in names if name.startswith("vbank.")]
    assert [name for name in names if name not in own] == list(before["state_dict"])
    assert own == ["vbank.default.method.bank", "vbank.default.method.logits"]
    assert list(trained(model)) == own
    gradients(model, logits(move(model), x).square().sum())
    vbank.detach(model)
    assert_untouched(before, model, x)
    assert all(p.grad is None for p in model.parameters())


@every_method
def test_only_the_update_is_trained_and_the_step_moves_all_of_it(config):
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    move(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(vbank.param_groups(model, lr=0.1))
    gradients(model, model(numbers(6, 8)).square().sum())
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trained(model))
    assert {name for name in moved if not name.startswith("vbank.")} == {"head.weight", "head.bias"}


@every_method
def test_methods_start_at_the_base_model_except_vb_lora(config):
    model, x = Blocks(), numbers(5, 8)
    base = model(x)
    vbank.attach(model, config, "all-linear")
    same = torch.equal(model(x), base)
    assert same == (config.method != "vb-lora")


# Dropout, scale, precision


def test_dropout_acts_on_x_before_a_in_training_alone():
    model, x = nn.Sequential(nn.Linear(8, 4)), numbers(2000, 8)
    vbank.attach(model, vbank.LoRA(2, dropout=0.25), ["0"])
    move(model)
    update = model.vbank["default"].method.factors("0")
    dense = update[1] @ update[0]
    with torch.no_grad():
        model.eval()
        clean = model(x)
        torch.testing.assert_close(clean, model[0].forward(x) + x @ dense.T)
        model.train()
        torch.manual_seed(5)
        noisy = model(x)
        torch.manual_seed(5)
        dropped = nn.functional.dropout(x, 0.25)
    torch.testing.assert_close(noisy, x @ model[0].weight.T + model[0].bias + dropped @ dense.T)
    assert not torch.allclose(noisy, clean, atol=0.1)


def test_an_adapter_put_on_a_model_in_evaluation_does_not_drop():
    model = Blocks().eval()
    adapter = vbank.attach(model, vbank.LoRA(2, dropout=0.5), "all-linear")
    move(model)
    assert not adapter.method.dropout.training
    assert torch.equal(model(numbers(5, 8)), model(numbers(5, 8)))


@pytest.mark.parametrize("config", [vbank.LoRA, vbank.TiedLoRA, vbank.PRoLoRA])
def test_alpha_scales_the_update(config):
    x, outputs = numbers(5, 8), {}
    for alpha in (None, 2, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4))
        base = model(x)
        vbank.attach(model, config(rank=2, alpha=alpha), ["0"])
        outputs[alpha] = move(model)(x) - base
    torch.testing.assert_close(outputs[2], outputs[None])
    torch.testing.assert_close(outputs[4], 2 * outputs[2])


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_adapters_are_float32_on_a_base_of_any_type(config, dtype):
    model, x = Blocks().to(dtype), numbers(5, 8).to(dtype)
    vbank.attach(model, config, "all-linear")
    move(model)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    y = model(x)
    assert y.dtype == dtype
    wanted = {name: parameter.dtype for name, parameter in trained(model).items()}
    found = gradients(model, y.float().square().sum())
    assert {name: gradient.dtype for name, gradient in found.items()} == wanted
    exact = Blocks()
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items() if not k.startswith("vbank.")})
    vbank.attach(exact, config, "all-linear")
    torch.testing.assert_close(y.float(), move(exact)(x.float()), rtol=0.05, atol=0.08)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_take_another_type_where_asked(config, dtype):
    model = Blocks().to(dtype)
    vbank.attach(model, config, "all-linear", dtype=dtype)
    assert {p.dtype for p in trained(model).values()} == {dtype}
    found = gradients(move(model), model(numbers(5, 8).to(dtype)).square().sum())
    assert all(gradient.isfinite().all() for gradient in found.values())


@every_method
def test_the_model_can_be_moved_to_another_type_with_its_adapter(config):
    model, x = Blocks(), numbers(5, 8)
    vbank.attach(model, config, "all-linear", train=["head"])
    y = move(model)(x)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.1)):
        model.to(dtype)
        z = model(x.to(dtype))
        assert z.dtype == dtype
        torch.testing.assert_close(z.float(), y, rtol=tolerance, atol=tolerance)
        with vbank.enabled(model, False):
            assert model(x.to(dtype)).dtype == dtype
        gradients(model, z.float().sum())


# Tied and shared modules


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


@every_method
def test_a_tied_weight_has_one_update_that_acts_wherever_the_weight_does(config):
    model, x = tied(), numbers(5, 8)
    before = fingerprint(model, x)
    adapter = vbank.attach(model, config, ["0"])
    assert [site.name for site in adapter.sites] == ["0"]
    move(model)
    A, B = adapter.method.factors("0")
    weight = model[0].weight + adapter.method.scale * (B @ A)
    z = torch.tanh(x @ weight.T + model[0].bias)
    torch.testing.assert_close(model(x), z @ weight.T + model[2].bias, rtol=1e-5, atol=1e-5)
    vbank.detach(model)
    assert_untouched(before, model, x)


def test_a_module_used_twice_in_one_forward_has_the_gradient_of_both_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.alias = self.layer

        def forward(self, x):
            return self.alias(torch.tanh(self.layer(x)))

    x = numbers(5, 8)
    for config in CONFIGS:
        model = Twice()
        vbank.attach(model, config, ["layer"])
        move(model)
        method = model.vbank["default"].method
        found = gradients(model, model(x).square().sum())
        A, B = method.factors("layer")
        weight = model.layer.weight + method.scale * (B @ A)
        out = torch.tanh(x @ weight.T + model.layer.bias) @ weight.T + model.layer.bias
        assert_same(gradients(model, out.square().sum()), found, rtol=1e-4, atol=1e-5)


def test_the_tied_output_layer_of_gpt2_adapts_without_touching_the_embedding():
    model, x = gpt2().eval(), tokens()
    assert model.lm_head.weight is model.transformer.wte.weight
    hidden = model.transformer(x).last_hidden_state
    vbank.attach(model, CONFIGS[0], ["lm_head"])
    move(model)
    update = vbank.delta(model.vbank["default"].method, "lm_head")
    torch.testing.assert_close(logits(model, x), hidden @ (model.lm_head.weight + update).T, rtol=1e-4, atol=1e-5)


def test_a_tied_head_is_trained_under_the_name_that_the_model_gives_it():
    model, x = gpt2(), tokens()
    before = fingerprint(model, x)
    adapter = vbank.attach(model, CONFIGS[0], "qv", train=["lm_head"])
    assert adapter.trained == ["transformer.wte.weight"]
    assert model.lm_head.weight.requires_grad
    with torch.no_grad():
        model.lm_head.weight += 1.0
    vbank.detach(model)
    assert_untouched(before, model, x)


def test_albert_reuses_one_layer_and_its_gradient_is_the_sum_over_its_uses():
    model, x = albert().eval(), tokens()
    vbank.attach(model, VB, "all-linear")
    move(model)
    found = gradients(model, logits(model, x).square().sum())
    logit = model.vbank["default"].method.logits
    at = found["vbank.default.method.logits"].abs().argmax()
    with torch.no_grad():
        values = []
        for step in (1e-2, -1e-2):
            logit.view(-1)[at] += step
            values.append(logits(model, x).double().square().sum())
            logit.view(-1)[at] -= step
    analytic = found["vbank.default.method.logits"].view(-1)[at].double()
    torch.testing.assert_close(analytic, (values[0] - values[1]) / 2e-2, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_torchs_encoder_layer_is_adapted_also_where_it_would_take_its_fast_path(training):
    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)

    model, x = build(), numbers(2, 5, 8)
    reference = build()
    reference.load_state_dict(model.state_dict())
    vbank.attach(model, CONFIGS[0], ["linear1", "linear2"])
    move(model)
    for site in ("linear1", "linear2"):
        reference.get_submodule(site).weight.data += vbank.delta(model.vbank["default"].method, site).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-5)
    stack = nn.TransformerEncoder(build(), num_layers=2).train(training)
    assert len(vbank.attach(stack, CONFIGS[0], "all-linear").sites) == 4
    with torch.no_grad():
        base = stack(x)
        assert not torch.allclose(move(stack)(x), base, atol=1e-2)


# A trained head


def test_train_names_modules_that_are_trained_whole_and_put_back():
    model, x = bert(), tokens()
    before = fingerprint(model, x)
    adapter = vbank.attach(model, CONFIGS[0], "qv", train=["classifier", "pooler"])
    assert sorted(adapter.trained) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    with torch.no_grad():
        for parameter in adapter.head(model).values():
            parameter += 1.0
    vbank.detach(model)
    assert_untouched(before, model, x)


BAD = {
    "train is a string": ({"train": "classifier"}, r"train is the string 'classifier'.*\['classifier'\]"),
    "train misspelt": ({"train": ["clasifier"]}, "train module 'clasifier' matches no module.*'classifier'"),
    "train holds nothing": ({"train": ["dropout"]}, "train: .* holds no parameters"),
    "both": ({"targets": ["classifier"], "train": ["classifier"]}, "classifier would be both adapted and trained"),
    "both, below": ({"train": ["encoder"]}, "query.* would be both adapted and trained whole"),
    "empty name": ({"name": ""}, "adapter name '' cannot be used"),
    "dot": ({"name": "a.b"}, "adapter name 'a.b' cannot be used"),
    "space": ({"name": "a b"}, "adapter name 'a b' cannot be used"),
    "no string": ({"name": 3}, "adapter name 3 cannot be used"),
    "method of a module": ({"name": "forward"}, "adapter name 'forward' cannot be used"),
    "attribute of a module": ({"name": "training"}, "adapter name 'training' cannot be used"),
    "attribute of the adapters": ({"name": "active"}, "adapter name 'active' cannot be used"),
    "no config": ({"config": "lora"}, r"config is 'lora'; give a method such as vbank.LoRA\(rank=8\)"),
    "bare config": ({"config": vbank.Config(rank=2)}, "vbank.LoRA"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD.keys())
def test_a_refused_attach_leaves_the_model_untouched(given, message):
    model, x = bert(), tokens()
    before = fingerprint(model, x)
    given = {"config": CONFIGS[0], "targets": "qv"} | given
    with pytest.raises((ValueError, TypeError), match=message):
        vbank.attach(model, **given)
    assert_untouched(before, model, x)


def test_a_refused_attach_leaves_the_first_adapter_as_it_was():
    model, x = bert(), tokens()
    vbank.attach(model, VB, "qv", train=["classifier"], name="first")
    move(model)
    before = fingerprint(model, x)
    for given, message in (
        ({"name": "first"}, "'first' is attached already; pick another name=, or vbank.detach"),
        ({"name": "second", "targets": ["nothing"]}, "'nothing' matches no module"),
        ({"name": "second", "config": vbank.VBLoRA(2, 9, 5)}, "does not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            vbank.attach(model, **({"config": VB, "targets": "qv"} | given))
    assert_untouched(before, model, x)
    assert list(model.vbank) == ["first"] and model.vbank.active == "first"


def test_adapters_cannot_be_trained_whole_by_another():
    model = Blocks()
    vbank.attach(model, CONFIGS[0], "all-linear", name="first")
    with pytest.raises(ValueError, match="train module 'vbank' matches no module"):
        vbank.attach(model, CONFIGS[0], "all-linear", name="second", train=["vbank"])


@pytest.mark.parametrize("wrap", ["compile", "data parallel"])
def test_a_wrapped_model_is_refused_with_the_way_out(wrap):
    model = Blocks()
    wrapped = torch.compile(model, backend="eager") if wrap == "compile" else nn.DataParallel(model)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="is wrapped in .*attach to the model itself, then wrap it"):
        vbank.attach(wrapped, CONFIGS[0], "all-linear")
    assert_untouched(before, model)
    vbank.attach(model, CONFIGS[0], "all-linear")  # the way out


def test_a_model_that_holds_another_as_its_attribute_module_is_not_wrapped():
    model = nn.Module()
    model.module = Blocks()
    model.forward = model.module.forward
    assert len(vbank.attach(model, CONFIGS[0], "all-linear").sites) == 6


def test_a_model_whose_part_or_attribute_is_in_the_way_is_refused():
    part = Blocks()
    vbank.attach(part, CONFIGS[0], "all-linear")
    with pytest.raises(ValueError, match="a part of the model has adapters of its own"):
        vbank.attach(nn.Sequential(part), CONFIGS[0], "all-linear")
    model = Blocks()
    model.vbank = "mine"
    with pytest.raises(ValueError, match="attribute 'vbank' of its own"):
        vbank.attach(model, CONFIGS[0], "all-linear")


# param_groups


@every_method
def test_param_groups_name_the_methods_groups_and_the_head(config):
    wanted = {
        "lora": ["A", "B"],
        "vera": ["d", "b"],
        "tied-lora": ["A", "B", "u", "v"],
        "prolora": ["A", "B"],
        "vb-lora": ["bank", "logits"],
    }[config.method]
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    rates = {group: 0.1 * (i + 1) for i, group in enumerate(wanted)} | {"head": 5.0}
    groups = vbank.param_groups(model, lr=rates, weight_decay=0.25)
    assert [group["name"] for group in groups] == [*wanted, "head"]
    assert {group["name"]: group["lr"] for group in groups} == rates
    assert {group["weight_decay"] for group in groups} == {0.25}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in trained(model).values()}
    assert groups[-1]["params"] == [model.head.weight, model.head.bias]


def test_one_rate_serves_all_groups_and_default_those_not_named():
    model = Blocks()
    vbank.attach(model, VB, "all-linear", train=["head"])
    assert [group["lr"] for group in vbank.param_groups(model, lr=0.5)] == [0.5] * 3
    groups = vbank.param_groups(model, lr={"logits": 1e-2, "default": 1e-3})
    assert {group["name"]: group["lr"] for group in groups} == {"bank": 1e-3, "logits": 1e-2, "head": 1e-3}
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_the_optimizer_moves_each_group_at_its_own_rate():
    model = Blocks()
    vbank.attach(model, VB, "all-linear", train=["head"])
    move(model)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    optimizer = torch.optim.SGD(vbank.param_groups(model, lr={"bank": 0.5, "logits": 0.0, "head": 0.25}))
    found = gradients(model, model(numbers(5, 8)).square().sum())
    optimizer.step()
    rates = {"vbank.default.method.bank": 0.5, "vbank.default.method.logits": 0.0}
    for name, parameter in trained(model).items():
        expected = before[name] - rates.get(name, 0.25) * found[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"bank": 0.1, "logit": 0.1}, "'logit', but the groups of this adapter are bank, logits"),
        ({"bank": 0.1}, "no learning rate for logits; name it in lr, or give lr a 'default'"),
        ({"bank": 0.1, "logits": 0.1, "head": 0.1}, "'head', but the groups"),
        (-0.1, "is -0.1; it must be a finite number of at least 0"),
        (float("nan"), "is nan"),
        ({"bank": float("inf"), "default": 0.1}, "'bank' is inf"),
        ("0.1", "is '0.1'"),
    ],
)
def test_wrong_rates_are_refused(lr, message):
    model = Blocks()
    vbank.attach(model, VB, "all-linear")
    with pytest.raises(ValueError, match=message):
        vbank.param_groups(model, lr=lr)


def test_param_groups_of_an_adapter_that_does_not_act_are_refused():
    model = Blocks()
    vbank.attach(model, VB, "all-linear", name="first")
    vbank.attach(model, VB, "all-linear", name="second")
    with pytest.raises(ValueError, match=r"'first' is not the active adapter; call vbank.activate\(model, 'first'\)"):
        vbank.param_groups(model, lr=0.1, name="first")
    with pytest.raises(ValueError, match="no adapter is called 'third'; there are 'first', 'second'"):
        vbank.param_groups(model, lr=0.1, name="third")


def test_a_head_with_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"1\.running_mean, 1\.running_var changes in training.*LayerNorm"):
        vbank.attach(model, vbank.LoRA(2), ["0"], train=["1"])
    assert list(model.state_dict()) == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.int8, "bf16"])
def test_a_type_that_cannot_be_trained_is_refused(dtype):
    model = Blocks()
    before = fingerprint(model)
    with pytest.raises(ValueError, match="choose torch.float32"):
        vbank.attach(model, vbank.LoRA(2), "all-linear", dtype=dtype)
    assert_untouched(before, model)


def test_targets_that_are_no_list_are_refused():
    with pytest.raises(ValueError, match="targets are 5; give a list of module names"):
        vbank.attach(Blocks(), vbank.LoRA(2), 5)


def test_the_base_models_head_put_back_in_inference_mode_passes_gradients_later():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    vbank.attach(model, vbank.LoRA(2), ["0"], train=["1"], name="first")
    with torch.inference_mode():
        vbank.detach(model)
    model(numbers(2, 8)).sum().backward()
    assert not model[1].weight.data.is_inference()


def test_an_idle_head_that_inference_mode_activates_in_another_type_passes_gradients_later():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    for name in ("first", "second"):
        vbank.attach(model, vbank.LoRA(2), ["0"], train=["1"], name=name)
    model.double()
    with torch.inference_mode():
        vbank.activate(model, "first")
    model(numbers(2, 8).double()).sum().backward()
    assert not model[1].weight.data.is_inference()


def test_where_the_active_adapter_leaves_the_first_of_the_others_acts():
    model = Blocks()
    for name in ("first", "second", "third"):
        vbank.attach(model, vbank.LoRA(2), "all-linear", name=name)
    vbank.detach(model, "second")
    assert model.vbank.active == "third"
    vbank.detach(model)
    assert model.vbank.active == "first" and all("vbank.first." in name for name in trained(model))


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), True])
def test_a_weight_decay_that_is_no_rate_is_refused(weight_decay):
    model = Blocks()
    vbank.attach(model, vbank.LoRA(2), "all-linear")
    with pytest.raises(ValueError, match="weight_decay is"):
        vbank.param_groups(model, lr=1e-3, weight_decay=weight_decay)


def test_layers_on_several_devices_are_refused_by_name_and_nothing_is_changed(tmp_path):
    """As `device_map` puts them; the meta device stands for the second one."""
    model = Blocks()
    vbank.attach(model, vbank.LoRA(2), "all-linear")
    vbank.save(model, tmp_path)
    vbank.detach(model)
    model.blocks[2].to("meta")
    before = fingerprint(model)
    for attempt in (lambda: vbank.attach(model, vbank.LoRA(2), "all-linear"), lambda: vbank.load(model, tmp_path)):
        with pytest.raises(ValueError, match=r"target layers lie on cpu, meta; .*device_map=\{'': 0\}"):
            attempt()
        assert fingerprint(model)["attributes"] == before["attributes"]
        assert fingerprint(model)["hooks"] == before["hooks"]
    vbank.attach(model, vbank.LoRA(2), ["blocks.0.0", "blocks.0.2"])  # on one device
