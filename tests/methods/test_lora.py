"""LoRA against the paper's equation 3, element by element."""

import math

import pytest
import torch

import vbank
from vbank import LoRA, Site

SITES = [Site("a", 5, 3), Site("b", 4, 6)]


@pytest.mark.parametrize("rank, alpha, scale", [(1, None, 1.0), (4, 16, 4.0), (3, 1.5, 0.5), (7, 7, 1.0)])
def test_update_by_loops(rank, alpha, scale):
    method = LoRA(rank, alpha).build(SITES, dtype=torch.float64)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_()
    A, B = method.A[1].tolist(), method.B[1].tolist()
    x = [0.3, -1.0, 2.0, 0.5]
    expected = []
    for o in range(6):
        y = 0.0
        for q in range(rank):
            y += B[o][q] * sum(A[q][i] * x[i] for i in range(4))
        expected.append(scale * y)
    got = method.update(torch.tensor([x], dtype=torch.float64), "b")
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))


def test_each_layer_has_its_own_pair():
    method = LoRA(2).build(SITES)
    other = [f.detach().clone() for f in method.factors("a")]
    with torch.no_grad():
        method.A[1].fill_(3.0)
        method.B[1].fill_(2.0)
    assert all(torch.equal(now, before) for now, before in zip(method.factors("a"), other, strict=True))
    assert torch.equal(vbank.delta(method, "b"), torch.full((6, 4), 12.0))


@pytest.mark.parametrize("fan_in", [9, 400])
def test_a_is_uniform_in_one_over_root_fan_in_and_b_zero(fan_in):
    method = LoRA(64).build([Site("a", fan_in, 10)])
    A, B = method.factors("a")
    bound = 1 / math.sqrt(fan_in)
    assert A.abs().max() <= bound and A.max() > 0.97 * bound and A.min() < -0.97 * bound
    assert abs(A.std().item() / (bound / math.sqrt(3)) - 1) < 0.06  # a uniform draw's deviation
    assert torch.equal(B, torch.zeros(10, 64))


def test_layers_start_with_different_draws():
    method = LoRA(2).build([Site("a", 6, 6), Site("b", 6, 6)])
    assert not torch.equal(method.A[0], method.A[1])


def test_counts_by_hand():
    count = vbank.count_sites(LoRA(3), SITES)
    assert {name: g.trained for name, g in count.groups.items()} == {"A": 3 * (5 + 4), "B": 3 * (3 + 6)}
    assert (count.trainable, count.stored, count.bytes) == (54, 54.0, 216)
    assert vbank.count_sites(LoRA(3), SITES, itemsize=2).bytes == 108
