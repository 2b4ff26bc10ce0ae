"""Tied-LoRA: one trained pair for all layers, and VeRA as the case where it is frozen."""

import math

import pytest
import torch

import vbank
from vbank import Site, TiedLoRA, VeRA

SITES = [Site("a", 5, 3), Site("b", 4, 6), Site("c", 2, 2)]


def trained(config, sites=SITES):
    method = config.build(sites, dtype=torch.float64)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_()
    return method


@pytest.mark.parametrize("rank, alpha, scale", [(1, None, 1.0), (4, 2, 0.5)])
def test_update_by_loops(rank, alpha, scale):
    method = trained(TiedLoRA(rank, alpha))
    A, B = method.A.tolist(), method.B.tolist()
    for n, site in enumerate(SITES):
        u, v = method.u[n].tolist(), method.v[n].tolist()
        x = [math.cos(1.0 + i) for i in range(site.in_features)]
        expected = [0.0] * site.out_features
        for o in range(site.out_features):
            for q in range(rank):
                for i in range(site.in_features):
                    expected[o] += scale * v[o] * B[o][q] * u[q] * A[q][i] * x[i]
        got = method.update(torch.tensor(x, dtype=torch.float64), site.name)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_initialisation():
    method = TiedLoRA(64).build([Site("a", 400, 10), Site("b", 100, 30)])
    bound = 1 / math.sqrt(400)  # of the largest layer, whose pair it is
    assert method.A.shape == (64, 400) and method.B.shape == (30, 64)
    assert 0.99 * bound < method.A.abs().max() <= bound
    assert (method.B == 0).all()
    assert all((scale == 1).all() for scale in (*method.u, *method.v))


def test_all_layers_train_the_pair():
    method = trained(TiedLoRA(3))
    alone = []
    for site in SITES:
        x = torch.ones(1, site.in_features, dtype=torch.float64)
        (grad,) = torch.autograd.grad(method.update(x, site.name).sum(), method.B)
        assert grad[: site.out_features].abs().min() > 0
        assert (grad[site.out_features :] == 0).all()  # rows that the smaller layer does not take
        alone.append(grad)
    loss = sum(method.update(torch.ones(1, s.in_features, dtype=torch.float64), s.name).sum() for s in SITES)
    (together,) = torch.autograd.grad(loss, method.B)
    torch.testing.assert_close(together, sum(alone))


def test_vera_with_its_pair_trained_is_tied_lora():
    vera, tied = trained(VeRA(4, seed=9)), TiedLoRA(4).build(SITES, dtype=torch.float64)
    with torch.no_grad():
        tied.A.copy_(vera.A0)
        tied.B.copy_(vera.B0)
        for n in range(len(SITES)):
            tied.u[n].copy_(vera.d[n])
            tied.v[n].copy_(vera.b[n])
    vera.A0.requires_grad_()  # the pair trained
    vera.B0.requires_grad_()
    for n, site in enumerate(SITES):
        x = torch.randn(3, site.in_features, dtype=torch.float64)
        y, expected = tied.update(x, site.name), vera.update(x, site.name)
        assert torch.equal(y, expected) and y.abs().max() > 0
        weight = torch.randn_like(y)
        ours = torch.autograd.grad((y * weight).sum(), [tied.A, tied.B, tied.u[n], tied.v[n]])
        theirs = torch.autograd.grad((expected * weight).sum(), [vera.A0, vera.B0, vera.d[n], vera.b[n]])
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b) and a.abs().max() > 0


def test_counts_by_hand():
    count = vbank.count_sites(TiedLoRA(7), SITES)
    trained_scalars = {name: g.trained for name, g in count.groups.items()}
    assert trained_scalars == {"A": 7 * 5, "B": 7 * 6, "u": 21, "v": 11}
    assert (count.trainable, count.stored, count.bytes) == (109, 109.0, 436)
