"""One composition a pass: that it is shared, and that a stale one is never used."""

import copy
import dataclasses
import pickle

import pytest
import torch
from tiny_models import Blocks, assert_same, every_method, move, numbers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import vbank
from vbank import Site, VBLoRA

SITES = [Site(f"layer{i}", 6, 4) for i in range(3)] + [Site("last", 4, 6)]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
CONFIG = VBLoRA(2, num_vectors=7, vector_length=2, logits_std=1.0, bank_bound=1.0)


def build(monkeypatch: pytest.MonkeyPatch):
    """A method and the list of the row counts that it composed so far."""
    method, calls = CONFIG.build(SITES), []
    compose = method.compose

    def counted(*args):
        rows = compose(*args)
        calls.append(len(rows))
        return rows

    monkeypatch.setattr(method, "compose", counted)
    return method, calls


def all_factors(method):
    return [f.detach().clone() for s in SITES for f in method.factors(s.name)]


def fresh_factors(method):
    """What the parameters give now, with nothing kept from before."""
    return all_factors(copy.deepcopy(method))


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


N = sum(sum(CONFIG.sub_vectors(s)) for s in SITES)


def test_all_sites_of_a_pass_share_one_composition(monkeypatch):
    method, calls = build(monkeypatch)
    for n in range(1, 4):
        method.begin_pass()
        all_factors(method)
        method.end_pass()
        assert calls == [N] * n


def test_a_site_called_twice_within_a_pass_reuses_it(monkeypatch):
    method, calls = build(monkeypatch)
    method.begin_pass()
    all_factors(method), all_factors(method)
    method.end_pass()
    assert calls == [N]


def test_outside_a_model_the_second_call_of_a_site_has_a_graph_of_its_own():
    method = CONFIG.build(SITES)
    first, second = vbank.delta(method, "layer0"), vbank.delta(method, "layer0")
    assert torch.equal(first, second)
    first.sum().backward()
    once = method.logits.grad.clone()
    second.sum().backward()
    torch.testing.assert_close(method.logits.grad, 2 * once)
    assert once.abs().max() > 0


@pytest.mark.parametrize("which", ["bank", "logits"])
def test_a_step_makes_it_stale(which, monkeypatch):
    method, calls = build(monkeypatch)
    method.begin_pass()
    before = method.factors("layer0")[0].detach().clone()
    with torch.no_grad():
        getattr(method, which).copy_(torch.randn_like(getattr(method, which)))
    now = method.factors("layer1")  # another site of the same pass
    method.end_pass()
    assert calls == [N, N]
    assert same(now, copy.deepcopy(method).factors("layer1"))
    assert not torch.equal(before, method.factors("layer0")[0])


def test_an_optimizer_step_within_a_pass():
    method = CONFIG.build(SITES)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    method.begin_pass()
    for _ in range(3):
        loss = sum(vbank.delta(method, s.name).square().sum() for s in SITES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert same(all_factors(method), fresh_factors(method))


def test_a_new_value_under_another_dtype_makes_it_stale():
    method = CONFIG.build(SITES)
    method.begin_pass()
    method.factors("layer0")
    method.to(torch.float64)
    assert method.factors("layer1")[0].dtype == torch.float64


def test_gradients_are_those_of_separate_compositions():
    method = CONFIG.build(SITES, dtype=torch.float64)
    weights = [torch.randn(s.out_features, s.in_features, dtype=torch.float64) for s in SITES]
    parameters = [method.bank, method.logits]
    method.begin_pass()
    loss = sum((vbank.delta(method, s.name) * w).sum() for s, w in zip(SITES, weights, strict=True))
    shared = torch.autograd.grad(loss, parameters)
    method.end_pass()
    separate = [torch.zeros_like(p) for p in parameters]
    for site, weight in zip(SITES, weights, strict=True):
        method.begin_pass()  # a graph of its own
        grads = torch.autograd.grad((vbank.delta(method, site.name) * weight).sum(), parameters)
        separate = [total + grad for total, grad in zip(separate, grads, strict=True)]
    for ours, expected in zip(shared, separate, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.abs().max() > 0


def test_after_a_backward_the_next_site_has_a_graph():
    method = CONFIG.build(SITES)
    method.begin_pass()
    vbank.delta(method, "layer0").sum().backward()
    vbank.delta(method, "layer1").sum().backward()  # the first graph is freed; this one must be new


def test_no_grad_and_grad_do_not_mix():
    method = CONFIG.build(SITES)
    method.begin_pass()
    with torch.no_grad():
        assert not method.factors("layer0")[0].requires_grad
    assert method.factors("layer1")[0].requires_grad
    with torch.no_grad():
        assert not method.factors("layer2")[0].requires_grad
    with torch.inference_mode():
        inference = method.factors("layer0")[0]
    assert not inference.requires_grad
    vbank.delta(method, "layer1").sum().backward()  # an inference tensor here would be an error
    assert method.bank.grad.abs().max() > 0


def test_training_and_eval_do_not_mix():
    method = VBLoRA(2, 7, 2, selection="noisy_top_k", logits_std=1e-3, bank_bound=1.0).build(SITES)
    method.begin_pass()
    method.factors("layer0")
    method.eval()
    assert same(all_factors(method), fresh_factors(method))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_has_its_own(duplicate):
    method = CONFIG.build(SITES)
    method.begin_pass()
    method.factors("layer0")
    twin = duplicate(method)
    assert same(all_factors(twin), all_factors(method))
    with torch.no_grad():
        twin.bank.zero_()
    assert all((f == 0).all() for f in all_factors(twin))
    assert all(f.abs().max() > 0 for f in all_factors(method))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_have_the_plain_gradients(reentrant, monkeypatch):
    square = [Site(f"layer{i}", 4, 4) for i in range(4)]
    method = CONFIG.build(square, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = [method.bank, method.logits]
    gradients, calls = [], []
    compose = method.compose
    monkeypatch.setattr(method, "compose", lambda *args: (calls.append(args), compose(*args))[1])
    for checkpointed in (False, True):
        method.zero_grad()
        calls.clear()
        method.begin_pass()
        y = x
        for site in square:

            def layer(y: torch.Tensor, name: str = site.name) -> torch.Tensor:
                return torch.tanh(y + method.update(y, name))

            y = checkpoint(layer, y, use_reentrant=reentrant) if checkpointed else layer(y)
        method.end_pass()
        y.square().sum().backward()
        gradients.append([p.grad.clone() for p in parameters])
        if not (checkpointed and reentrant):
            assert len(calls) == 1  # one composition a step
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
        assert plain.abs().max() > 0


def test_shapes_pass_through_on_the_meta_device():
    method = CONFIG.build(SITES, device="meta")
    A, B = method.factors("last")
    assert A.is_meta and A.shape == (2, 4) and B.shape == (6, 2)


class Sizes(TorchDispatchMode):
    """Element counts of all results."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.found += [t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t)]
        return out


def test_the_backward_writes_the_gradient_of_all_sub_vectors_once_and_not_once_a_site():
    """Slices would give each site a gradient as large as all sub-vectors, mostly zeros."""
    method = dataclasses.replace(CONFIG, top_k=3).build(SITES)
    method.begin_pass()
    loss = sum(method.update(torch.ones(1, s.in_features), s.name, torch.ones(1, s.out_features)).sum() for s in SITES)
    method.end_pass()
    with Sizes() as sizes:
        loss.backward()
    whole = N * CONFIG.vector_length
    assert whole not in (p.numel() for p in method.parameters())
    assert sizes.found.count(whole) == 1


@every_method
def test_transforms_of_torch_func_give_the_gradients_of_autograd(config):
    model, x = Blocks(), numbers(4, 8)
    vbank.attach(model, config, "all-linear", train=["head"])
    move(model)
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(values, x):
        return torch.func.functional_call(model, values, x).square().sum()

    model(x).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert_same(torch.func.grad(loss)(values, x), found, **CLOSE)
    for_each_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x[:, None])
    assert_same({name: grads.sum(0) for name, grads in for_each_row.items()}, found, **CLOSE)
