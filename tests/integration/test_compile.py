"""torch.compile: one graph, the eager values and gradients, and nothing stale."""

import shutil

import pytest
import torch
from tiny_models import CONFIGS, Blocks, assert_same, bert, every_method, gradients, logits, move, numbers, tokens
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import vbank

VB = CONFIGS[-1]
X = numbers(5, 8)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def adapted(config: vbank.Config = VB) -> nn.Module:
    torch.manual_seed(0)
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    return move(model)


@every_method
def test_values_gradients_and_steps_are_those_of_eager_in_one_graph(config):
    model, twin = adapted(config), adapted(config)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, backend=counter, fullgraph=True)
    optimizers = [torch.optim.SGD(vbank.param_groups(m, lr=0.05), momentum=0.9) for m in (model, twin)]
    for _ in range(3):  # a stale composition would show in the second step
        expected = gradients(model, model(X).square().mean())
        loss = compiled(X).square().mean()
        torch.testing.assert_close(loss, model(X).square().mean(), **CLOSE)
        assert_same(gradients(twin, loss), expected, **CLOSE)
        for optimizer in optimizers:
            optimizer.step()
    assert counter.frame_count == 1  # compiled once, not once a step


def test_turning_the_adapter_off_and_on_is_seen():
    model = adapted()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    out = model(X)
    for _ in range(2):
        torch.testing.assert_close(compiled(X), out, **CLOSE)
        with vbank.enabled(compiled, False):
            base = model(X)
            torch.testing.assert_close(compiled(X), base, **CLOSE)
        assert not torch.allclose(out, base, atol=1e-2)


def test_merging_activating_and_detaching_are_seen():
    model = adapted()
    vbank.attach(model, CONFIGS[0], "all-linear", name="lora")
    move(model)
    compiled = torch.compile(model, backend="aot_eager")
    lora = model(X)
    torch.testing.assert_close(compiled(X), lora, **CLOSE)
    vbank.activate(compiled, "default")
    vb = model(X)
    assert not torch.allclose(vb, lora, atol=1e-2)
    torch.testing.assert_close(compiled(X), vb, **CLOSE)
    vbank.merge(compiled)
    torch.testing.assert_close(compiled(X), vb, rtol=1e-4, atol=1e-4)
    vbank.unmerge(compiled)
    torch.testing.assert_close(compiled(X), vb, **CLOSE)
    vbank.detach(compiled)
    torch.testing.assert_close(compiled(X), lora, **CLOSE)
    vbank.detach(compiled)
    torch.testing.assert_close(compiled(X), model(X), **CLOSE)
    assert not torch.allclose(model(X), lora, atol=1e-2)


def test_two_forwards_before_one_backward():
    model, twin = adapted(), adapted()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    found = [gradients(m, (run(X) * run(X.flip(0))).square().mean()) for m, run in ((model, model), (twin, compiled))]
    assert_same(found[1], found[0], **CLOSE)


def test_eager_and_compiled_forwards_take_turns():
    model = adapted()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(vbank.param_groups(model, lr=0.05))
    for _ in range(2):
        expected = gradients(model, model(X).square().mean())
        assert_same(gradients(model, compiled(X).square().mean()), expected, **CLOSE)
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), model(X), **CLOSE)
        optimizer.step()


def test_blocks_compiled_one_by_one():
    model, twin = adapted(), adapted()
    for block in twin.blocks:
        block.compile(backend="aot_eager")
    optimizers = [torch.optim.SGD(vbank.param_groups(m, lr=0.05)) for m in (model, twin)]
    for _ in range(3):
        found = [gradients(m, m(X).square().mean()) for m in (model, twin)]
        assert_same(found[1], found[0], **CLOSE)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("config", [CONFIGS[0], VB], ids=["lora", "vb-lora"])
def test_a_transformer(config):
    torch.manual_seed(0)
    model, x = bert(), tokens()
    vbank.attach(model, config, "all-linear")
    move(model, std=0.1)
    expected = gradients(model, logits(model, x).square().mean())
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(gradients(model, logits(compiled, x).square().mean()), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_inductor():
    model = adapted()
    expected = gradients(model, model(X).square().mean())
    compiled = torch.compile(model, fullgraph=True)
    assert_same(gradients(model, compiled(X).square().mean()), expected, **CLOSE)
