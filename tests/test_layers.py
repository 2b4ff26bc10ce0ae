"""Reading and replacing the weights of every kind of linear layer."""

import pathlib
import re

import pytest
import torch
import transformers
from tiny_models import mamba, numbers
from torch import nn
from transformers.pytorch_utils import Conv1D

from vbank.layers import BYPASSED, bypass, dense_weight, features, is_linear, is_quantised, linear_layers, with_weight


def quantised(kind: str, dtype: torch.dtype = torch.float32, nested: bool = True) -> nn.Module:
    from bitsandbytes import nn as bnb

    if kind == "8bit":
        return bnb.Linear8bitLt(64, 32, has_fp16_weights=False).to("cpu")
    layer = bnb.Linear4bit(64, 32, compute_dtype=dtype, quant_type="nf4", compress_statistics=nested)
    return layer.to(dtype).to("cpu")


def layers() -> dict[str, nn.Module]:
    conv = Conv1D(5, 7)
    nn.init.normal_(conv.bias)
    return {"linear": nn.Linear(7, 5), "no bias": nn.Linear(7, 5, bias=False), "conv1d": conv}


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
def test_dense_weight_is_out_by_in(kind):
    layer, x = layers()[kind], numbers(3, 7)
    assert features(layer) == (7, 5)
    assert is_linear(layer) and not is_quantised(layer)
    y = x @ dense_weight(layer).T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(y, layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_with_weight_is_the_inverse_of_dense_weight(kind):
    layer = layers()[kind]
    new = numbers(5, 7)
    layer.weight.data = with_weight(layer, new)
    assert torch.equal(dense_weight(layer), new)
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_quantised_layers_dense_weight_gives_its_forward(kind):
    layer, x = quantised(kind), numbers(3, 64)
    assert is_linear(layer) and is_quantised(layer)
    assert features(layer) == (64, 32)
    y = x @ dense_weight(layer).T + layer.bias
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stand_in_takes_x_of_any_type_as_the_quantised_layer_does(kind, dtype):
    layer, x = quantised(kind), numbers(3, 64).to(dtype)
    stand_in = with_weight(layer, dense_weight(layer))
    y, expected = stand_in(x), layer(x)
    assert y.dtype == expected.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=0.02, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_an_8_bit_layer_that_is_not_quantised_yet_says_so():
    from bitsandbytes import nn as bnb

    layer = bnb.Linear8bitLt(64, 32, has_fp16_weights=False)
    with pytest.raises(ValueError, match="holds no quantised weight yet; move the model to its device"):
        dense_weight(layer)


def test_a_layer_whose_weight_its_parent_reads_is_not_one_to_adapt():
    class Mixer(mamba().backbone.layers[0].mixer.__class__):  # a class of a user's own, built on the library's
        pass

    model = mamba()
    model.backbone.layers[1].mixer.__class__ = Mixer
    assert list(linear_layers(model)) == [f"backbone.layers.{i}.mixer.in_proj" for i in range(2)] + ["lm_head"]
    assert bypass(model, "backbone.layers.1.mixer.in_proj") is None
    assert bypass(model, "backbone.layers.1.mixer.dt_proj").endswith("an update would be ignored; target 'in_proj'")
    assert linear_layers(
        nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out_proj": nn.Linear(8, 8)})
    ).keys() == {"out_proj"}
    assert list(linear_layers(nn.Linear(8, 8))) == [""]


@pytest.mark.parametrize("name", sorted(set(BYPASSED) - {"MultiheadAttention"}))
def test_transformers_has_the_classes_that_read_a_layers_weight(name, modelling_code):
    classes = [text for text in modelling_code if re.search(rf"^class {name}\(", text, re.M)]
    assert classes
    bodies = [re.split(rf"^class {name}\(", text, flags=re.M)[1].split("\nclass ")[0] for text in classes]
    assert all(any(f"self.{layer}.weight" in body for layer in BYPASSED[name][0]) for body in bodies)


@pytest.fixture(scope="module")
def modelling_code() -> list[str]:
    folder = pathlib.Path(transformers.__file__).parent / "models"
    return [path.read_text(encoding="utf-8") for path in folder.glob("*/modeling_*.py")]


def test_other_modules_are_not_linear():
    assert not is_linear(nn.Bilinear(4, 4, 4)) and not is_linear(nn.Conv1d(4, 4, 1)) and not is_linear(nn.Identity())
