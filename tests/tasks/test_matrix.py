"""The matrix-fitting task: its floor, its optimizer, and what every method must reach."""

import pytest
import torch

import vbank
from vbank.tasks.matrix import Budget, _start, fit, gaussian_targets, subspace_targets, svd_floor

ALL = [
    vbank.LoRA(2),
    vbank.VeRA(7),
    vbank.TiedLoRA(2),
    vbank.PRoLoRA(3, unshared_rank=1, share_a=2, share_b=3),
    vbank.VBLoRA(2, num_vectors=4, vector_length=5, top_k=2),
]
QUICK = Budget(restarts=2, adam_steps=60, newton_steps=20)


def name(config: vbank.Config) -> str:
    return config.title


def test_floor_of_a_diagonal_matrix_by_hand() -> None:
    target = torch.diag(torch.tensor([1.0, -4.0, 2.0]))  # singular values 4, 2, 1
    expected = [21 / 9, 5 / 9, 1 / 9, 0.0, 0.0]
    assert [svd_floor(target, r).item() for r in range(5)] == pytest.approx(expected)


def test_floor_of_a_wide_matrix_and_of_a_batch() -> None:
    target = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert svd_floor(target.expand(4, 5, 2, 3), 1).tolist() == [[pytest.approx(4 / 6)] * 5] * 4
    with pytest.raises(ValueError, match="rank is -1"):
        svd_floor(target, -1)


@pytest.mark.parametrize("rank", range(1, 10))
def test_lora_reaches_the_floor(rank: int) -> None:
    target = gaussian_targets(4, seed=5)
    result = fit(vbank.LoRA(rank), target, seed=5)
    floor = svd_floor(target, rank)[:, 0]
    assert (result.mse >= floor * (1 - 1e-9)).all()
    assert (result.mse <= floor * 1.01).all()


def test_lora_of_full_rank_is_exact() -> None:
    assert fit(vbank.LoRA(10), gaussian_targets(4, seed=5)).mse.max() < 1e-8


@pytest.mark.parametrize("config", ALL, ids=name)
def test_the_batch_computes_what_the_method_computes(config: vbank.Config) -> None:
    sites = [vbank.Site("a", 15, 30), vbank.Site("b", 15, 30)]
    start = _start(config, sites, seed=3, restart=1, noise=0.5)
    method = config.build(sites, dtype=torch.float64)
    if isinstance(config, vbank.VeRA):  # the frozen pair comes from the seed of the target
        method = vbank.VeRA(config.rank, seed=3).build(sites, dtype=torch.float64)
    method.load_state_dict(start.method.state_dict(), strict=False)
    expected = torch.stack([vbank.delta(method, site.name) for site in sites])
    torch.testing.assert_close(start(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", ALL, ids=name)
def test_result_is_consistent_and_repeats(config: vbank.Config) -> None:
    target = gaussian_targets(3, sites=2, seed=1)
    state = torch.get_rng_state()
    first, second = fit(config, target, budget=QUICK), fit(config, target, budget=QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.mse, second.mse)
    assert torch.equal(first.mse, first.restarts.amin(1))
    torch.testing.assert_close(first.mse, (first.delta - target).square().mean((1, 2, 3)))
    count = vbank.count_sites(config, [vbank.Site("a", 10, 10), vbank.Site("b", 10, 10)])
    assert (first.trainable, first.stored) == (count.trainable, count.stored)
    floor = svd_floor(target, config.rank).mean(1)
    assert (first.mse >= floor * (1 - 1e-6)).all()
    assert (first.mse < target.square().mean((1, 2, 3))).all()


def test_a_seed_does_not_depend_on_its_neighbours() -> None:
    target = gaussian_targets(3, seed=1)
    together = fit(vbank.VeRA(7), target, seed=4, budget=QUICK).mse
    alone = fit(vbank.VeRA(7), target[2], seed=6, budget=QUICK).mse
    torch.testing.assert_close(together[2:], alone, rtol=1e-6, atol=0)


def test_prolora_without_sharing_is_lora() -> None:
    target = gaussian_targets(3, seed=2)
    lora = fit(vbank.LoRA(3), target)
    for config in (vbank.PRoLoRA(3, unshared_rank=3, share_a=2, share_b=2), vbank.PRoLoRA(3)):
        prolora = fit(config, target)
        assert prolora.trainable == lora.trainable
        torch.testing.assert_close(prolora.mse, lora.mse, rtol=1e-3, atol=0)


def test_a_tied_pair_alone_is_lora_with_scales_to_spare() -> None:
    target = gaussian_targets(3, seed=2)
    lora, tied = fit(vbank.LoRA(2), target), fit(vbank.TiedLoRA(2), target)
    assert tied.trainable == lora.trainable + 2 + 10
    torch.testing.assert_close(tied.mse, lora.mse, rtol=1e-2, atol=0)


def test_vera_with_a_hundred_random_directions_is_exact() -> None:
    result = fit(vbank.VeRA(100), gaussian_targets(2, seed=3))
    assert result.trainable == 110
    assert result.mse.max() < 1e-8


def test_vb_lora_with_a_vector_for_every_factor_is_lora() -> None:
    target = gaussian_targets(3, seed=2)
    result = fit(vbank.VBLoRA(1, num_vectors=2, vector_length=10, top_k=2), target)
    torch.testing.assert_close(result.mse, svd_floor(target, 1)[:, 0], rtol=1e-2, atol=0)


def test_subspace_targets_share_their_spaces() -> None:
    target = subspace_targets(5, sites=6, rank=3)
    assert target.shape == (5, 6, 10, 10)
    assert svd_floor(target, 3).max() < 1e-20
    assert svd_floor(target.transpose(1, 2).reshape(5, 10, 60), 3).max() < 1e-20  # one column space
    assert svd_floor(target.reshape(5, 60, 10), 3).max() < 1e-20  # one row space
    assert target.square().mean() == pytest.approx(1.0, abs=0.2)


def test_one_tied_pair_serves_targets_of_one_subspace() -> None:
    target = subspace_targets(2, sites=4, rank=2)
    budget = Budget(restarts=3, adam_steps=400, newton_steps=40)
    tied, lora = fit(vbank.TiedLoRA(4), target, budget=budget), fit(vbank.LoRA(1), target, budget=budget)
    assert tied.mse.max() < 0.1 * lora.mse.min()


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(1, 1, 1, 2, 2), torch.full((2, 2), torch.nan)])
def test_bad_targets_are_refused(target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be finite, of shape"):
        fit(vbank.LoRA(1), target)


def test_a_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        fit(vbank.VBLoRA(1, num_vectors=2, vector_length=4), torch.zeros(10, 10))
