"""Adapters on bitsandbytes' 4-bit and 8-bit layers, which run on the CPU too."""

import copy

import pytest
import torch
import transformers
from tiny_models import (
    CONFIGS,
    EXACT,
    assert_same,
    every_method,
    four_bit,
    gradients,
    llama,
    logits,
    move,
    numbers,
    tokens,
    trained,
)
from torch import nn

import vbank
from vbank.layers import DequantisedLinear, dense_weight

LORA, VB = CONFIGS[0], CONFIGS[-1]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return four_bit(llama(hidden_size=64, intermediate_size=128, initializer_range=0.1))


@pytest.fixture
def model(original: nn.Module) -> nn.Module:
    return copy.deepcopy(original)


def through_files(kind: str, dtype: torch.dtype, folder) -> tuple[nn.Module, transformers.BitsAndBytesConfig]:
    """A llama that transformers quantises as it reads it, and the settings that it is given for that."""
    llama(hidden_size=64, intermediate_size=128, initializer_range=0.1).to(dtype).save_pretrained(folder)
    given = transformers.BitsAndBytesConfig(
        load_in_4bit=kind == "4bit",
        load_in_8bit=kind == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    return read(folder, quantization_config=given), given


def read(folder, **settings) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, **settings).eval()


def eight_bit() -> nn.Module:
    from bitsandbytes import nn as bnb

    model = nn.Sequential(bnb.Linear8bitLt(64, 32, has_fp16_weights=False), nn.Tanh(), nn.Linear(32, 8))
    return model.to("cpu")


def dequantised(model: nn.Module) -> nn.Module:
    """The same model with ordinary layers that hold the dequantised weights."""
    plain = llama(hidden_size=64, intermediate_size=128, initializer_range=0.1).train(model.training)
    weights = {n: p for n, p in model.state_dict().items() if n in plain.state_dict() and p.is_floating_point()}
    plain.load_state_dict(weights, strict=False)
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit":
            assert layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4"
            plain.get_submodule(name).weight.data = dense_weight(layer).clone()
    return plain


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_a_4_bit_model_equals_its_dequantised_twin_forwards_and_backwards(config, training, model):
    model.train(training)
    vbank.attach(model, config, "all-linear")
    move(model, std=0.1)
    plain = dequantised(model)
    vbank.attach(plain, config, "all-linear")
    move(plain, std=0.1)
    x = tokens()
    torch.testing.assert_close(logits(model, x), logits(plain, x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, x), logits(plain, x), rtol=1e-4, atol=1e-4)
    found = gradients(model, logits(model, x).square().mean())
    assert_same(found, gradients(plain, logits(plain, x).square().mean()), rtol=1e-3, atol=1e-4)
    assert set(trained(model)) == set(trained(plain))


@every_method
def test_4_bit_merges_into_the_dequantised_weights_and_unmerge_puts_the_4_bit_layer_back(config, model):
    vbank.attach(model, config, "all-linear")
    move(model, std=0.1)
    x, layer = tokens(), model.model.layers[0].self_attn.q_proj
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad():
        out = logits(model, x)
        vbank.merge(model)
        merged = model.model.layers[0].self_attn.q_proj
        assert type(merged) is DequantisedLinear and merged.weight.dtype == torch.float32
        torch.testing.assert_close(logits(model, x), out, rtol=1e-5, atol=1e-5)
        vbank.unmerge(model)
        assert model.model.layers[0].self_attn.q_proj is layer
        assert_same(before, model.state_dict(), **EXACT)
        assert torch.equal(logits(model, x), out)


def test_4_bit_merge_then_detach_leaves_a_model_without_4_bit_layers(model):
    vbank.attach(model, VB, "all-linear")
    move(model, std=0.1)
    with torch.no_grad():
        out = logits(model, tokens())
        vbank.merge(model)
        vbank.detach(model)
        torch.testing.assert_close(logits(model, tokens()), out, rtol=1e-5, atol=1e-5)
    assert not any(type(m).__name__ == "Linear4bit" for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(("kind", "dtype"), [("4bit", torch.float32), ("8bit", torch.bfloat16)])
@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], "all-linear"], ids=["some", "all"])
def test_a_merged_and_detached_model_is_saved_and_read_again_with_the_same_outputs(kind, dtype, targets, tmp_path):
    model, given = through_files(kind, dtype, tmp_path / "base")
    vbank.attach(model, LORA, targets)
    move(model, std=0.05)
    vbank.merge(model)
    vbank.detach(model)
    assert given.llm_int8_skip_modules is None  # the caller's settings may serve other models
    model.save_pretrained(tmp_path / "merged")
    again = read(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
    dense = {name for name, layer in model.named_modules() if type(layer) is DequantisedLinear}
    assert len(dense) == (4 if targets != "all-linear" else 14)
    for name, layer in again.named_modules():
        if name in dense | {"lm_head"}:
            assert type(layer) is nn.Linear and layer.weight.dtype == dtype
        assert not isinstance(layer, nn.Linear) or name in dense | {"lm_head"} or "bit" in type(layer).__name__
    flags = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    before = [name in ("is_quantized", f"is_loaded_in_{kind}") for name in flags]
    after = [bool(getattr(model, name, False)) for name in flags]
    assert after == (before if targets != "all-linear" else [False] * 3)
    if targets == "all-linear":
        assert not hasattr(model.config, "quantization_config") and not hasattr(model.config, "_is_quantized")
        assert {p.dtype for p in model.half().parameters()} == {torch.float16}  # which a quantised one refuses


def test_a_merge_that_is_undone_leaves_what_transformers_knows_of_the_quantisation(model):
    settings = model.config.quantization_config
    vbank.attach(model, VB, "all-linear")
    vbank.merge(model)
    vbank.unmerge(model)
    vbank.detach(model)
    assert model.config.quantization_config is model.hf_quantizer.quantization_config is settings
    assert model.is_loaded_in_4bit and model.is_quantized
    assert settings.llm_int8_skip_modules == ["lm_head", "classifier", "pooler"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_8_bits_merge_into_weights_of_the_models_type(dtype):
    model = eight_bit().to(dtype)
    vbank.attach(model, LORA, ["0"])
    move(model, std=0.1)
    expected = (dense_weight(model[0]) + vbank.delta(model.vbank["default"].method, "0")).to(dtype)
    vbank.merge(model)
    assert model[0].weight.dtype == model[0].bias.dtype == dtype and torch.equal(model[0].weight, expected)


def test_detach_restores_a_4_bit_model(model):
    model.train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    out = logits(model, tokens())
    vbank.attach(model, VB, "all-linear")
    with vbank.enabled(model, False):
        assert torch.equal(logits(model, tokens()), out)
    gradients(move(model), logits(model, tokens()).square().mean())
    vbank.detach(model)
    assert_same(before, model.state_dict(), **EXACT)
    assert torch.equal(logits(model, tokens()), out)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "proj" in n)


@pytest.mark.parametrize("evaluated_first", [True, False])
def test_an_evaluation_before_or_between_training_steps_costs_no_gradient(model, evaluated_first):
    """On CPUs with AVX-512 BF16, bitsandbytes rearranges the weights for an evaluation and gradients stop there."""
    x, model = tokens(), model.eval()
    reference = copy.deepcopy(model)
    if evaluated_first:
        with torch.no_grad():
            first = logits(model, x)
    vbank.attach(model, LORA, "all-linear")
    move(model)
    vbank.attach(reference, LORA, "all-linear")
    move(reference)
    with torch.no_grad():
        logits(model.eval(), x)
    loss = logits(model.train(), x).square().mean()
    expected = logits(reference.train(), x).square().mean()
    tolerance = {"rtol": 0.1, "atol": 0.02} if evaluated_first else EXACT  # the rearranged scales are bfloat16
    assert_same(gradients(model, loss), gradients(reference, expected), **tolerance)
    vbank.detach(model)
    if evaluated_first:
        with torch.no_grad():
            assert torch.equal(logits(model.eval(), x), first)


def test_merge_after_an_evaluation_reads_the_weights_rightly(model):
    x = tokens()
    with torch.no_grad():
        logits(model.eval(), x)
        vbank.attach(model, LORA, "all-linear")
        move(model, std=0.1)
        out = logits(model, x)
        vbank.merge(model)
        torch.testing.assert_close(logits(model, x), out, rtol=1e-5, atol=1e-5)


def test_a_4_bit_bfloat16_model_keeps_its_type_and_merges_to_rounding():
    torch.manual_seed(0)
    model = four_bit(llama(hidden_size=64, intermediate_size=128, initializer_range=0.1), torch.bfloat16)
    vbank.attach(model, LORA, "all-linear")
    move(model, std=0.05)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    with torch.no_grad():
        out = logits(model, tokens())
        assert out.dtype == torch.bfloat16
        vbank.merge(model)
        torch.testing.assert_close(logits(model, tokens()), out, rtol=0.1, atol=0.05)


def test_a_quantised_layer_cannot_be_trained_whole(model):
    with pytest.raises(ValueError, match="q_proj.weight.* is quantised and cannot be trained whole; adapt it instead"):
        vbank.attach(model, LORA, ["v_proj"], train=["q_proj"])
    assert not hasattr(model, "vbank")


@every_method
def test_8_bit_layers_train_merge_and_unmerge_on_the_cpu(config):
    model, x = eight_bit(), numbers(5, 64)
    base = model(x)
    vbank.attach(model, config, ["0"])
    assert torch.equal(model(x), base) == (config.method != "vb-lora")
    move(model, std=0.1)
    method = model.vbank["default"].method
    weight = (dense_weight(model[0]) + vbank.delta(method, "0")).detach()
    expected = model[2](torch.tanh(x @ weight.T + model[0].bias))
    out = model(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    gradients(model, out.square().sum())
    layer = model[0]
    vbank.merge(model)
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-4)
    vbank.unmerge(model)
    assert model[0] is layer and torch.equal(model(x), out)
    vbank.detach(model)
    assert torch.equal(model(x), base)
