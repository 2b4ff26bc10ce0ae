"""Mixed precision: torch.autocast on the CPU."""

import pytest
import torch
from tiny_models import Blocks, bert, every_method, gradients, logits, move, numbers, tokens

import vbank


@every_method
@pytest.mark.parametrize("build", [Blocks, bert], ids=["blocks", "bert"])
def test_autocast_gives_bfloat16_outputs_near_the_float32_ones_and_float32_gradients(config, build):
    model, x = (Blocks(), numbers(5, 8)) if build is Blocks else (bert(initializer_range=0.05), tokens())
    vbank.attach(model, config, "all-linear")
    move(model, std=0.1)
    expected = gradients(model, logits(model, x).square().mean())
    exact = logits(model, x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logits(model, x)
    assert out.dtype == torch.bfloat16
    assert not torch.equal(out.float(), exact)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    found = gradients(model, out.float().square().mean())
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.06, (name, float(error))


@every_method
def test_leaving_autocast_leaves_nothing_rounded(config):
    model, x = Blocks(), numbers(5, 8)
    vbank.attach(model, config, "all-linear")
    move(model)
    exact = model(x)
    block = model.blocks[0](x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        model.blocks[0](x)
    assert torch.equal(model.blocks[0](x), block)
    assert torch.equal(model(x), exact)
