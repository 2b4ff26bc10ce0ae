"""VB-LoRA against the paper's equations: divide, share, top-k; its gradient by hand; what it stores."""

import math

import pytest
import torch

import vbank
from vbank import Site, VBLoRA
from vbank.methods.vb_lora import compose

SITES = [Site("a", 6, 4), Site("b", 4, 8)]


def trained(config: VBLoRA, sites=SITES):
    method = config.build(sites, dtype=torch.float64)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_()
    return method


def sub_vector(logits: list[float], bank: list[list[float]], k: int) -> list[float]:
    """One sub-vector by the definition: the k largest logits, a softmax over them, a sum of bank vectors."""
    chosen = sorted(range(len(logits)), key=lambda s: -logits[s])[:k]
    powers = {s: math.exp(logits[s]) for s in chosen}
    total = sum(powers.values())
    return [sum(powers[s] / total * bank[s][j] for s in chosen) for j in range(len(bank[0]))]


@pytest.mark.parametrize("rank, h, b, k", [(1, 5, 2, 2), (3, 7, 2, 1), (2, 4, 1, 4), (3, 6, 2, 3)])
def test_factors_by_loops(rank, h, b, k):
    method = trained(VBLoRA(rank, h, b, k))
    logits, bank = method.logits.tolist(), method.bank.tolist()
    row = 0
    for site in SITES:
        A = [[math.nan] * site.in_features for _ in range(rank)]
        for q in range(rank):  # a rank's row of A is a chain of in / b sub-vectors
            for block in range(site.in_features // b):
                A[q][block * b : (block + 1) * b] = sub_vector(logits[row], bank, k)
                row += 1
        B = [[math.nan] * rank for _ in range(site.out_features)]
        for block in range(site.out_features // b):  # a rank's column of B is a chain of out / b
            for q in range(rank):
                for j, value in enumerate(sub_vector(logits[row], bank, k)):
                    B[block * b + j][q] = value
                row += 1
        got_A, got_B = method.factors(site.name)
        torch.testing.assert_close(got_A, torch.tensor(A, dtype=torch.float64), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got_B, torch.tensor(B, dtype=torch.float64), rtol=1e-6, atol=1e-6)
        assert method.factors(site.name)[0].shape == (rank, site.in_features)
    assert row == len(logits) == rank * (6 + 4 + 4 + 8) // b


def test_compose_by_loops():
    bank, indices, weights = torch.randn(5, 3), torch.tensor([[4, 0], [2, 2]]), torch.tensor([[0.7, 0.3], [0.5, -1.0]])
    expected = torch.stack([0.7 * bank[4] + 0.3 * bank[0], 0.5 * bank[2] - bank[2]])
    torch.testing.assert_close(compose(indices, weights, bank), expected)


def test_initialisation():
    method = VBLoRA(4, num_vectors=200, vector_length=64).build([Site("w", 640, 640)])
    assert method.bank.shape == (200, 64) and method.logits.shape == (80, 200)
    assert 0.0199 < method.bank.abs().max() <= 0.02
    assert method.bank.std().item() == pytest.approx(0.02 / math.sqrt(3), rel=0.02)
    assert abs(method.bank.mean().item()) < 5e-4
    assert method.logits.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(method.logits.mean().item()) < 5e-4
    assert method.logits.abs().max() > 0.03  # normal, not uniform
    wide = VBLoRA(4, 200, 64, bank_bound=0.5, logits_std=2.0).build([Site("w", 640, 640)])
    assert 0.49 < wide.bank.abs().max() <= 0.5
    assert wide.logits.std().item() == pytest.approx(2.0, rel=0.02)


def test_the_bank_does_not_depend_on_how_many_layers_there_are():
    banks = []
    for sites in (SITES[:1], SITES):
        torch.manual_seed(4)
        banks.append(VBLoRA(2, 5, 2).build(sites).bank)
    assert torch.equal(*banks)


def test_one_hot_logits_give_back_the_bank():
    config = VBLoRA(2, num_vectors=6, vector_length=2, top_k=6)
    method = config.build(SITES)
    choice = torch.randint(6, (len(method.logits),))
    with torch.no_grad():
        method.logits.copy_(1e4 * torch.nn.functional.one_hot(choice, 6))
    assert len(choice.unique()) > 3
    A, B = method.factors("b")
    start = 2 * (6 + 4) // 2  # sub-vectors of site a
    chosen = method.bank[choice[start:]]
    assert torch.equal(A, chosen[:4].reshape(2, 4))
    for block in range(4):
        for q in range(2):
            assert torch.equal(B[2 * block : 2 * block + 2, q], chosen[4 + 2 * block + q])


# The gradient.


def test_gradient_by_hand():
    # one number for A and one for B: delta = B * A, with b = 1, h = 3, k = 2
    method = VBLoRA(1, num_vectors=3, vector_length=1, top_k=2).build([Site("w", 1, 1)], dtype=torch.float64)
    with torch.no_grad():
        method.bank.copy_(torch.tensor([[1.0], [3.0], [5.0]]))
        method.logits.copy_(torch.tensor([[0.0, math.log(3.0), -9.0], [math.log(4.0), -9.0, 0.0]]))
    # A = 1/4 * 1 + 3/4 * 3 = 5/2 from vectors 0 and 1; B = 4/5 * 1 + 1/5 * 5 = 9/5 from vectors 0 and 2
    delta = vbank.delta(method, "w")
    torch.testing.assert_close(delta, torch.tensor([[4.5]], dtype=torch.float64), rtol=1e-6, atol=0)
    delta.backward()
    # d delta / d logit_s of A = B * w_s (alpha_s - A); of B = A * w_s (alpha_s - B)
    logits = [
        [9 / 5 * 1 / 4 * (1 - 5 / 2), 9 / 5 * 3 / 4 * (3 - 5 / 2), 0.0],
        [5 / 2 * 4 / 5 * (1 - 9 / 5), 0.0, 5 / 2 * 1 / 5 * (5 - 9 / 5)],
    ]
    # d delta / d alpha_s = B * w_s (of A) + A * w_s (of B)
    bank = [[9 / 5 * 1 / 4 + 5 / 2 * 4 / 5], [9 / 5 * 3 / 4], [5 / 2 * 1 / 5]]
    torch.testing.assert_close(method.logits.grad, torch.tensor(logits, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(method.bank.grad, torch.tensor(bank, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_only_selected_logits_and_vectors_move(k):
    method = trained(VBLoRA(2, 9, 2, k))
    sum(vbank.delta(method, s.name).square().sum() for s in SITES).backward()
    selected = torch.zeros_like(method.logits, dtype=torch.bool)
    selected.scatter_(1, method.logits.topk(k).indices, True)
    assert (method.logits.grad[~selected] == 0).all()
    if k == 1:  # the one weight is 1, whatever its logit is
        assert (method.logits.grad == 0).all()
    else:
        assert (method.logits.grad[selected].abs() > 0).all()
    torch.testing.assert_close(
        method.logits.grad.sum(-1), torch.zeros(len(selected), dtype=torch.float64), atol=1e-6, rtol=0
    )
    used = selected.any(0)
    assert (method.bank.grad[used].abs().sum(-1) > 0).all() and (method.bank.grad[~used] == 0).all()


def test_gradients_against_finite_differences():
    method = trained(VBLoRA(2, 5, 2, 3))

    def loss() -> torch.Tensor:
        return sum(torch.sin(vbank.delta(method, s.name)).sum() for s in SITES)

    loss().backward()
    for parameter in (method.bank, method.logits):
        for place in [(0, 1), (3, 0), (4, 1)]:
            values = []
            for step in (1e-4, -2e-4):
                with torch.no_grad():
                    parameter[place] += step
                    values.append(loss().item())
            with torch.no_grad():
                parameter[place] += 1e-4
            slope = (values[0] - values[1]) / 2e-4
            assert slope == pytest.approx(parameter.grad[place].item(), rel=1e-2, abs=2e-3)


# What is stored.


@pytest.mark.parametrize(
    "h, dtype, nbytes", [(2, torch.uint8, 1), (256, torch.uint8, 1), (257, torch.uint16, 2), (2**16, torch.uint16, 2)]
)
def test_indices_take_the_smallest_type(h, dtype, nbytes):
    config = VBLoRA(1, num_vectors=h, vector_length=4, top_k=2)
    method = config.build([Site("w", 4, 4)])
    with torch.no_grad():
        method.logits[0, h - 1] = 5.0  # the last vector must be nameable
        method.logits[1, 0] = 5.0
    tensors = method.compact_tensors()
    assert tensors["indices"].dtype == dtype
    assert tensors["indices"].long()[:, 0].tolist() == [h - 1, 0]
    count = vbank.count_sites(config, [Site("w", 4, 4)])
    assert count.groups["logits"].nbytes == 2 * (4 + 2 * nbytes)  # two sub-vectors, each a weight and two indices
    assert count.groups["logits"].stored == 2 * (1 + 2 * nbytes / 4)
    assert count.stored * 4 == count.bytes


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compact_tensors_give_back_the_factors(k, dtype):
    config = VBLoRA(2, num_vectors=9, vector_length=2, top_k=k, logits_std=1.0, bank_bound=1.0)
    method = config.build(SITES, dtype=dtype)
    tensors = {key: value.detach().clone() for key, value in method.compact_tensors().items()}
    n = 2 * (6 + 4 + 4 + 8) // 2
    assert (
        tensors["bank"].shape == (9, 2)
        and tensors["indices"].shape == (n, k)
        and tensors["weights"].shape == (n, k - 1)
    )
    assert tensors["bank"].dtype == tensors["weights"].dtype == dtype
    expected = method.selected[1]
    assert torch.equal(tensors["weights"], expected[:, 1:])  # the largest is the one left out
    if k > 1:
        assert (expected[:, 0] >= expected[:, 1]).all()
    fresh = config.build(SITES, dtype=dtype)
    fresh.read(tensors, "compact")
    assert fresh.frozen and not method.frozen
    assert list(fresh.groups()) == ["bank"] and not any(p.requires_grad for p in fresh.parameters())
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for site in SITES:
        for ours, theirs in zip(fresh.factors(site.name), method.factors(site.name), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    again = fresh.compact_tensors()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)  # bit for bit
    with pytest.raises(ValueError, match=r'compact file, which holds no logits.*form="compact"'):
        fresh.tensors()


def test_select_all_stores_every_index():
    config = VBLoRA(2, num_vectors=5, vector_length=2, top_k=2, selection="select_all")
    method = config.build(SITES)
    assert config.stored_k == 5 and VBLoRA(2, 5, 2, 2).stored_k == 2
    assert method.compact_tensors()["indices"].shape == (22, 5)
    assert vbank.count_sites(config, SITES).groups["logits"].nbytes == 22 * (4 * 4 + 5)


def test_counts_by_hand():
    count = vbank.count_sites(VBLoRA(3, num_vectors=7, vector_length=2, top_k=2), SITES)
    n = 3 * (6 + 4 + 4 + 8) // 2
    assert {name: g.trained for name, g in count.groups.items()} == {"bank": 14, "logits": 7 * n}
    assert count.stored == 14 + n * 1.5  # a weight and two quarters
    assert count.bytes == 4 * 14 + 6 * n
    assert vbank.count_sites(VBLoRA(3, 7, 2, 2), SITES, itemsize=2).bytes == 2 * 14 + 4 * n


# Settings and shapes that cannot work.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"top_k": 0}, "top_k is 0; it must be an integer of at least 1"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be an integer of at least 1"),
        ({"top_k": 91}, "top_k is 91 but the bank has num_vectors = 90; a sub-vector cannot choose more"),
        ({"num_vectors": 0}, "num_vectors is 0; it must be an integer of at least 1"),
        ({"num_vectors": 2**16 + 1}, "num_vectors is 65537; an index names at most 65536"),
        ({"vector_length": -4}, "vector_length is -4; it must be an integer of at least 1"),
        ({"selection": "topk"}, "selection is 'topk'; choose one of gumbel_softmax, .*, top_k"),
        ({"selection": ["top_k"]}, r"selection is \['top_k'\]; choose one of"),
        ({"bank_bound": 0.0}, "bank_bound is 0.0; it must be a finite number above 0"),
        ({"bank_bound": math.nan}, "bank_bound is nan; it must be a finite number above 0"),
        ({"logits_std": -0.1}, "logits_std is -0.1; it must be a finite number above 0"),
        ({"logits_std": math.inf}, "logits_std is inf; it must be a finite number above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match="VB-LoRA: " + message):
        VBLoRA(4, **settings)


def test_a_length_that_does_not_divide_names_all_layers_and_the_lengths_that_would():
    sites = [Site("query", 12, 12), Site("up", 12, 20), Site("wide", 60, 20), Site("down", 20, 12), Site("ok", 24, 12)]
    config = VBLoRA(2, vector_length=12)
    for refused in (lambda: config.build(sites), lambda: vbank.count_sites(config, sites)):
        with pytest.raises(ValueError) as error:
            refused()
        text = str(error.value)
        assert "vector_length 12 does not divide the sizes of" in text
        assert "up (12 -> 20), wide (60 -> 20), down (20 -> 12);" in text
        assert "query" not in text and "ok (" not in text
        assert text.endswith("lengths that divide all layers: 1, 2, 4")  # divisors of 12, 20, 24 and 60
    for length in (1, 2, 4):
        VBLoRA(2, 5, vector_length=length).build(sites)


def test_a_length_beyond_the_layer_is_refused():
    with pytest.raises(ValueError, match=r"w \(4 -> 8\); lengths that divide all layers: 1, 2, 4$"):
        VBLoRA(2, vector_length=8).build([Site("w", 4, 8)])
