"""How a sub-vector chooses from the bank: equation 3.3 and Table 5's alternatives, each against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vbank import Site, VBLoRA
from vbank.methods.selection import (
    SELECTIONS,
    TEMPERATURE,
    gumbel_softmax,
    noisy_top_k,
    select_all,
    straight_through,
    top_k,
)


def by_sorting(row: list[float], k: int) -> tuple[list[int], list[float]]:
    """softmax(TopK(row, k)) in plain Python, in descending order."""
    order = sorted(range(len(row)), key=lambda s: -row[s])[:k]
    powers = [math.exp(row[s] - row[order[0]]) for s in order]
    return order, [p / sum(powers) for p in powers]


@settings(max_examples=80)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_top_k_by_sorting(rows, h, seed, data):
    k = data.draw(st.integers(1, h))
    logits = torch.randn(rows, h, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    indices, weights = top_k(logits, k)
    for row, i, w in zip(logits.tolist(), indices.tolist(), weights.tolist(), strict=True):
        order, expected = by_sorting(row, k)
        assert i == order
        assert w == pytest.approx(expected, abs=1e-6)  # the softmax is taken in float32
        assert sum(w) == pytest.approx(1.0, abs=1e-6)
        assert w[0] == max(w) >= 1 / k - 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("h", [2, 90, 127, 128])  # from 128 on another algorithm
def test_the_two_largest_and_their_gradient(h, dtype):
    drawn = [torch.randperm(h, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    logits = (torch.stack(drawn) - h / 2).to(dtype).requires_grad_()  # whole and half numbers, exact in bfloat16
    places = torch.stack(drawn).argsort(descending=True)[:, :2]
    indices, weights = top_k(logits, 2)
    assert torch.equal(indices, places)
    weights[:, 0].sum().backward()
    share = 1 / (1 + math.exp(-1))  # of the larger of two logits that differ by one
    expected = torch.zeros(5, h).scatter(1, places, share * (1 - share) * torch.tensor([[1.0, -1.0]]).expand(5, 2))
    torch.testing.assert_close(logits.grad.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_weights_depend_on_differences_of_logits_only():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    shifted = logits + 1e4  # exp would overflow
    assert torch.equal(top_k(logits, 2)[1], top_k(shifted, 2)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_softmax_is_the_float32_one_rounded(dtype):
    logits = torch.randn(50, 9).to(dtype)
    indices, weights = top_k(logits, 4)
    expected_indices, expected = top_k(logits.float(), 4)
    assert weights.dtype == dtype
    assert torch.equal(weights, expected.to(dtype))
    assert (logits.gather(1, indices) == logits.float().gather(1, expected_indices)).all()


def dense(indices: torch.Tensor, weights: torch.Tensor, h: int) -> torch.Tensor:
    """Weights over the whole bank, zeros where nothing is chosen."""
    return torch.zeros(len(indices), h, dtype=weights.dtype).scatter(1, indices, weights)


def test_select_all_is_a_softmax_over_the_bank():
    logits = torch.randn(5, 7)
    for training in (True, False):
        indices, weights = select_all(logits, 2, training)
        assert indices.shape == weights.shape == (5, 7)
        torch.testing.assert_close(dense(indices, weights, 7), logits.softmax(-1))


@pytest.mark.parametrize("select", [noisy_top_k, gumbel_softmax, straight_through])
def test_noise_ends_with_training(select):
    logits = torch.randn(40, 7)
    state = torch.get_rng_state()
    indices, weights = select(logits, 3, False)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert torch.equal(indices, top_k(logits, 3)[0]) and torch.equal(weights, top_k(logits, 3)[1])
    first, second = (dense(*select(logits, 3, True), 7) for _ in range(2))
    assert not torch.equal(first, second)


def test_noisy_top_k_adds_a_normal_of_the_scale_at_which_shazeers_learned_one_starts():
    logits = torch.randn(40, 7)
    torch.manual_seed(3)
    noise = torch.nn.functional.softplus(torch.zeros(())) * torch.randn(40, 7)
    torch.manual_seed(3)
    indices, weights = noisy_top_k(logits, 2, True)
    expected_indices, expected = top_k(logits + noise, 2)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(weights, expected)


def test_gumbel_softmax_has_temperature_one_third():
    logits = torch.randn(40, 7)
    torch.manual_seed(3)
    gumbel = -torch.empty(40, 7).exponential_().log()  # -log E is Gumbel(0, 1) for E ~ Exp(1)
    torch.manual_seed(3)
    indices, weights = gumbel_softmax(logits, 2, True)
    assert pytest.approx(1 / 3) == TEMPERATURE
    assert torch.equal(indices, torch.arange(7).repeat(40, 1))
    torch.testing.assert_close(weights, ((logits + gumbel) * 3).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("select", [gumbel_softmax, straight_through])
def test_half_precision_draws_are_the_float32_ones_rounded(select, dtype):
    logits = torch.randn(50, 9).to(dtype)
    draws = []
    for values in (logits, logits.float()):
        torch.manual_seed(4)
        draws.append(select(values, 2, True)[1])
    assert draws[0].dtype == dtype
    assert torch.equal(draws[0], draws[1].to(dtype))


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    indices, weights = straight_through(logits, 1, True)
    torch.testing.assert_close(weights.mean(0), logits[0].softmax(-1), atol=0.02, rtol=0)


def test_straight_through_is_one_hot_with_the_soft_gradient():
    logits = torch.randn(6, 5, requires_grad=True)
    target = torch.randn(6, 5)
    gradients = []
    for select in (straight_through, gumbel_softmax):
        torch.manual_seed(8)
        _, weights = select(logits, 2, True)
        gradients.append(torch.autograd.grad((weights * target).sum(), logits)[0])
        hard = select is straight_through
        values = weights.detach()
        assert bool(((values - values.round()).abs() < 1e-6).all()) == hard
        torch.testing.assert_close(values.sum(-1), torch.ones(6))
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


def test_names_of_the_selections():
    assert list(SELECTIONS) == ["top_k", "select_all", "noisy_top_k", "gumbel_softmax", "straight_through"]


@pytest.mark.parametrize("selection", ["noisy_top_k", "gumbel_softmax", "straight_through"])
def test_in_a_method_the_noise_is_drawn_anew_each_pass_and_ends_in_eval(selection):
    site = Site("w", 8, 8)
    method = VBLoRA(2, 9, 4, 2, selection=selection, logits_std=1.0).build([site])
    passes = []
    for _ in range(2):
        method.begin_pass()
        passes.append(method.factors("w")[0])
        method.end_pass()
    assert not torch.equal(*passes)
    plain = VBLoRA(2, 9, 4, 2, logits_std=1.0).build([site])
    plain.read(method.tensors(), "resumable")
    method.eval()
    for ours, expected in zip(method.factors("w"), plain.factors("w"), strict=True):
        assert torch.equal(ours, expected)
