"""VB-LoRA composes its sub-vectors once a step, and never uses a composition that has gone stale."""

import pytest
import torch
from tiny_models import CONFIGS, EXACT, Blocks, assert_same, gpt2, gradients, logits, move, numbers, tokens
from torch import nn

import vbank
from vbank.methods.selection import top_k
from vbank.methods.vb_lora import VBLoRAMethod, compose

VB = CONFIGS[-1]


@pytest.fixture
def made(monkeypatch) -> list[tuple]:
    """The rows of every composition, in order; () is all of them."""
    rows, original = [], VBLoRAMethod.compose

    def counted(self, *asked):
        rows.append(asked)
        return original(self, *asked)

    monkeypatch.setattr(VBLoRAMethod, "compose", counted)
    return rows


def adapted(build=Blocks) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    vbank.attach(model, VB, "all-linear")
    return move(model)


def reference(model: nn.Module, part=None) -> nn.Module:
    """A model of the same weights whose updates are built in by hand from bank and logits, with its own graph."""
    method = model.vbank["default"].method
    indices, weights = top_k(method.logits, VB.top_k)
    rows = compose(indices, weights, method.bank)
    plain = Blocks()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("vbank.")})
    for site, (start, middle, end) in zip(method.sites, method.spans, strict=True):
        A = rows[start:middle].reshape(VB.rank, site.in_features)
        B = rows[middle:end].reshape(-1, VB.rank, VB.vector_length).transpose(1, 2).reshape(site.out_features, VB.rank)
        layer = plain.get_submodule(site.name)
        weight = layer.weight.detach() + B @ A
        del layer.weight
        layer.weight = weight
    return plain


def own_gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    method = model.vbank["default"].method
    return list(torch.autograd.grad(loss, [method.bank, method.logits]))


def assert_right(model: nn.Module, run) -> None:
    """The outputs and the gradients of `run` are those of the model built by hand."""
    expected = own_gradients(model, run(reference(model)))
    found = own_gradients(model, run(model))
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


X, Y = numbers(5, 8), numbers(4, 8, seed=9)


def test_a_step_composes_once(made):
    model = adapted()
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr=0.1))
    for step in range(3):
        gradients(model, model(X).square().sum())
        optimizer.step()
        assert made == [()] * (step + 1)


def test_each_forward_of_an_accumulated_step_composes_once_and_the_gradients_add_up(made):
    model = adapted()
    one, other = (gradients(model, model(x).square().sum()) for x in (X, Y))
    made.clear()
    model.zero_grad()
    for x in (X, Y):
        model(x).square().sum().backward()
    assert made == [(), ()]
    summed = {name: one[name] + other[name] for name in one}
    assert_same({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, summed, rtol=1e-5, atol=1e-5)


def test_a_forward_without_gradients_composes_once_and_leaves_nothing_behind(made):
    model = adapted()
    with torch.no_grad():
        model(X)
    assert made == [()]
    assert not model.vbank["default"].method.composition.passes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluations_between_steps_are_right(mode):
    model = adapted()
    optimizer = torch.optim.SGD(vbank.param_groups(model, lr=0.5))
    for _ in range(3):
        gradients(model, model(X).square().mean())
        optimizer.step()
        with mode():
            torch.testing.assert_close(model(Y), reference(model)(Y), rtol=1e-4, atol=1e-5)
    assert_right(model, lambda m: m(X).square().sum())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.5),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "one block"])
def test_an_optimizer_step_is_seen(build, whole):
    model = adapted()
    method = model.vbank["default"].method
    run = (lambda m: m(X)) if whole else (lambda m: m.blocks[1](X))
    optimizer = build([method.bank, method.logits])
    before = run(model)
    before.square().sum().backward()
    optimizer.step()
    after = run(model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, run(reference(model)), rtol=1e-4, atol=1e-5)


def test_a_change_through_data_is_seen_by_the_next_forward_of_the_model():
    model = adapted()
    before = model(X)
    model.vbank["default"].method.bank.data.mul_(2.0)  # leaves the version counter alone
    assert not torch.allclose(model(X), before, atol=1e-2)
    torch.testing.assert_close(model(X), reference(model)(X), rtol=1e-4, atol=1e-5)


def test_loading_a_state_dict_is_seen():
    model, other = adapted(), adapted()
    move(other, seed=11)
    model(X), model.blocks[0](X)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.blocks[0](X), other.blocks[0](X), **EXACT)
    torch.testing.assert_close(model(X), other(X), **EXACT)


def test_two_forwards_before_one_backward_are_exact():
    assert_right(adapted(), lambda m: (m(X).mean(0) * m(Y).mean(0)).sum())
    assert_right(adapted(), lambda m: m(X).square().sum() + m(m(X) @ torch.eye(4, 8)).square().sum())


def test_a_part_of_the_model_can_be_called(made):
    model = adapted()
    assert_right(model, lambda m: m.blocks[1](X).square().sum())
    assert_right(model, lambda m: (m.blocks[0](X) * m.blocks[2](X)).sum())
    made.clear()
    model.blocks[1](model.blocks[0](X))
    assert made == [(0, 6), (6, 12), (12, 18), (18, 24)]  # nothing is shared: each layer makes its own rows


def test_parts_can_be_walked_back_one_by_one():
    model = adapted()
    first, second = model.blocks[0](X).square().sum(), model.blocks[1](X).square().sum()
    expected = own_gradients(model, reference(model).blocks[0](X).square().sum())
    for one, other in zip(own_gradients(model, first), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    expected = own_gradients(model, reference(model).blocks[1](X).square().sum())
    for one, other in zip(own_gradients(model, second), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_value_written_through_data_is_seen_by_the_next_part():
    model = adapted()
    model.blocks[0](X)
    vbank.adapters.adapter_of(model)[2].method.bank.data.zero_()
    with vbank.enabled(model, False):
        base = model.blocks[1](X)
    torch.testing.assert_close(model.blocks[1](X), base)


def test_parts_called_before_and_after_a_backward_are_right():
    model = adapted()
    expected = own_gradients(model, reference(model).blocks[1](X).square().sum())
    model.blocks[0](X).square().sum().backward()  # frees the graph of the composition
    for one, other in zip(own_gradients(model, model.blocks[1](X).square().sum()), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_part_after_the_whole_before_the_backward_is_right():
    assert_right(adapted(), lambda m: m(X).square().sum() + m.blocks[0](Y).square().sum())
    assert_right(adapted(), lambda m: m.blocks[0](Y).square().sum() + m(X).square().sum())


def test_a_model_that_calls_itself_is_right():
    class Recursive(Blocks):
        def forward(self, x, depth: int = 1):
            x = x + self.blocks[0](x)
            if depth:
                x = x + torch.tanh(Recursive.forward(self, x, 0) @ torch.eye(4, 8))
            return super().forward(x)

    class Nested(Recursive):
        def forward(self, x, depth: int = 1):
            x = x + self.blocks[0](x)
            if depth:
                x = x + torch.tanh(self(x, 0) @ torch.eye(4, 8))
            return Blocks.forward(self, x)

    found = []
    for kind in (Recursive, Nested):  # the second goes through the model's hooks again
        model = adapted(kind)
        found.append(gradients(model, model(X).square().sum()))
    assert_same(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_the_graph_can_be_walked_twice():
    model = adapted()
    loss = model(X).square().sum()
    loss.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    assert_same(
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        {n: 2 * g for n, g in once.items()},
        rtol=1e-5,
        atol=1e-6,
    )
    assert_right(model, lambda m: m(X).square().sum())


def test_an_error_in_a_forward_leaves_no_trace():
    model = adapted()
    with pytest.raises(RuntimeError):
        model(numbers(5, 7))
    fail = model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(X)
    fail.remove()
    assert not model.vbank["default"].method.composition.inside
    assert_right(model, lambda m: m(X).square().sum())
    assert_right(model, lambda m: m.blocks[0](X).square().sum())


def test_training_mode_and_autocast_are_part_of_what_a_composition_is_made_from():
    config = vbank.VBLoRA(2, 9, 8, selection="gumbel_softmax")
    model = Blocks()
    vbank.attach(model, config, ["blocks.0.0"])
    move(model)
    model.train()
    torch.manual_seed(1)
    noisy = model.blocks[0](X)
    model.eval()
    assert not torch.allclose(model.blocks[0](X), noisy, atol=1e-3)
    assert torch.equal(model.blocks[0](X), model.blocks[0](X))


def test_each_step_of_generate_composes_once_and_the_tokens_are_those_of_the_merged_model(made):
    model = adapted(gpt2).eval()
    x = tokens(2, 5)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(x), "eos_token_id": None}
    out = model.generate(x, **settings)
    assert out.shape == (2, 11)
    assert made == [()] * 6
    vbank.merge(model)
    assert torch.equal(model.generate(x, **settings), out)
    vbank.unmerge(model)
    with vbank.enabled(model, False):
        base = model.generate(x, **settings)
    assert not torch.equal(base, out)
    torch.testing.assert_close(logits(model, out)[:, 4:-1].argmax(-1), out[:, 5:])


def test_two_adapters_keep_their_compositions_apart():
    model = adapted()
    first = model(X)
    vbank.attach(model, VB, "all-linear", name="other")
    move(model, seed=12)
    second = model(X)
    vbank.activate(model, "default")
    assert torch.equal(model(X), first)
    vbank.activate(model, "other")
    assert torch.equal(model(X), second) and not torch.allclose(first, second, atol=1e-2)
