"""VeRA against the paper's equation 2, its initialisation and its ablations."""

import math

import pytest
import torch

import vbank
from vbank import Site, VeRA

SITES = [Site("a", 5, 3), Site("b", 4, 6), Site("c", 2, 2)]


def trained(config: VeRA, sites=SITES):
    method = config.build(sites, dtype=torch.float64)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_()
    return method


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_update_by_loops(rank):
    method = trained(VeRA(rank, seed=3))
    for n, site in enumerate(SITES):
        A, B = method.A0.tolist(), method.B0.tolist()  # one pair, of which each site takes its first columns and rows
        d, b = method.d[n].tolist(), method.b[n].tolist()
        x = [math.sin(1.0 + i) for i in range(site.in_features)]
        expected = [
            b[o] * sum(B[o][q] * d[q] * sum(A[q][i] * x[i] for i in range(site.in_features)) for q in range(rank))
            for o in range(site.out_features)
        ]
        got = method.update(torch.tensor(x, dtype=torch.float64), site.name)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
        A_site, B_site = method.factors(site.name)
        torch.testing.assert_close(B_site @ A_site @ torch.tensor(x, dtype=torch.float64), got)


def test_the_pair_is_as_large_as_the_largest_layer_on_each_side():
    method = VeRA(7).build(SITES)
    assert method.A0.shape == (7, 5) and method.B0.shape == (6, 7)
    assert [tuple(d.shape) for d in method.d] == [(7,)] * 3
    assert [tuple(b.shape) for b in method.b] == [(3,), (6,), (2,)]


def test_a_is_drawn_before_b_from_the_seed_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    method = VeRA(4, seed=42).build(SITES)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    generator = torch.Generator().manual_seed(42)
    for value, (rows, columns) in ((method.A0, (4, 5)), (method.B0, (6, 4))):
        unit = torch.rand(rows, columns, generator=generator)  # U(0, 1) from the same stream
        bound = math.sqrt(6 / columns)
        torch.testing.assert_close(value, unit * 2 * bound - bound, rtol=1e-5, atol=1e-6)
    assert not torch.equal(VeRA(4, seed=43).build(SITES).A0, method.A0)


def test_the_draw_does_not_depend_on_pytorch_defaults():
    expected = VeRA(4, seed=1).build(SITES).checksum()
    torch.set_default_dtype(torch.float64)
    try:
        got = VeRA(4, seed=1).build(SITES).checksum()
    finally:
        torch.set_default_dtype(torch.float32)
    assert got == expected


@pytest.mark.parametrize(
    "init, low, high, deviation",
    [
        ("kaiming_uniform", -math.sqrt(6 / 500), math.sqrt(6 / 500), math.sqrt(2 / 500)),
        ("kaiming_normal", -math.inf, math.inf, math.sqrt(2 / 500)),
        ("uniform", 0.0, 0.1, 0.1 / math.sqrt(12)),
    ],
)
def test_distributions_of_the_pair(init, low, high, deviation):
    A = VeRA(80, init=init).build([Site("a", 500, 10)]).A0
    assert low <= A.min() and A.max() <= high
    assert abs(A.std().item() / deviation - 1) < 0.02
    if init == "kaiming_normal":  # some draws lie beyond any uniform of that deviation
        assert A.abs().max() > 3 * deviation
    else:
        assert A.min() < low + 0.01 * (high - low) and A.max() > high - 0.01 * (high - low)


def test_the_fan_in_of_b_is_the_rank():
    B = VeRA(24).build([Site("a", 600, 300)]).B0
    assert 0.98 * 0.5 < B.abs().max() <= 0.5  # sqrt(6 / 24)


def test_scales_start_at_d_init_and_zero():
    method = VeRA(3, d_init=0.25).build(SITES)
    assert all(torch.equal(d, torch.full((3,), 0.25)) for d in method.d)
    assert all((b == 0).all() for b in method.b)
    assert torch.equal(VeRA(3).build(SITES).d[0], torch.full((3,), 0.1))


def test_the_pair_is_neither_trained_nor_in_the_state_dict():
    method = trained(VeRA(3))
    x = torch.randn(2, 5, dtype=torch.float64)
    method.update(x, "a").sum().backward()
    assert not method.A0.requires_grad and not method.B0.requires_grad
    assert set(method.state_dict()) == {"d.0", "d.1", "d.2", "b.0", "b.1", "b.2"}
    assert method.d[0].grad.abs().min() > 0 and method.d[1].grad is None


def test_pairs_of_their_own():
    same = [Site("a", 5, 3), Site("b", 5, 3)]
    method = VeRA(4, shared=False).build(same)
    assert method.A0.shape == method.A1.shape and not torch.equal(method.A0, method.A1)
    shared = VeRA(4).build(same)
    assert torch.equal(shared.factors("a")[0], shared.factors("b")[0])
    assert not torch.equal(method.factors("a")[0], method.factors("b")[0])
    sizes = VeRA(4, shared=False).build(SITES)  # each as large as its own layer
    assert [tuple(b.shape) for _, b in sizes.named_buffers()] == [(4, 5), (3, 4), (4, 4), (6, 4), (4, 2), (2, 4)]
    assert vbank.count_sites(VeRA(4, shared=False), SITES) == vbank.count_sites(VeRA(4), SITES)  # a seed either way


def test_only_d():
    method = VeRA(4, train_b=False).build(SITES)
    assert list(method.groups()) == ["d"] and len(method.b) == 0
    assert (vbank.delta(method, "a") == 0).all()  # d carries the zero start
    A, B = method.factors("a")
    assert torch.equal(B, method.B0[:3])
    method.update(torch.ones(1, 5), "a").sum().backward()
    assert method.d[0].grad.abs().max() > 0
    with torch.no_grad():
        method.d[0].copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(vbank.delta(method, "a"), torch.outer(method.B0[:3, 0], method.A0[0]))
    assert vbank.count_sites(VeRA(4, train_b=False), SITES).trainable == 12


def test_only_b():
    method = VeRA(4, train_d=False).build(SITES)
    assert list(method.groups()) == ["b"] and len(method.d) == 0
    assert (vbank.delta(method, "b") == 0).all()
    assert torch.equal(method.factors("b")[0], method.A0[:, :4])
    method.update(torch.ones(1, 4), "b").sum().backward()
    assert method.b[1].grad.abs().max() > 0
    with torch.no_grad():
        method.b[1].fill_(2.0)
    torch.testing.assert_close(vbank.delta(method, "b"), 2 * method.B0 @ method.A0[:, :4])
    assert vbank.count_sites(VeRA(4, train_d=False), SITES).trainable == 11


def test_counts_by_hand():
    count = vbank.count_sites(VeRA(7), SITES)
    assert {name: g.trained for name, g in count.groups.items()} == {"d": 21, "b": 11}
    assert (count.trainable, count.stored, count.bytes) == (32, 32.0, 128)


def test_a_checksum_guards_the_pair():
    method = VeRA(4, seed=5).build(SITES)
    record = method.record()
    VeRA(4, seed=5).build(SITES).verify(record)
    other = VeRA(4, seed=6).build(SITES)
    with pytest.raises(ValueError, match=r"VeRA: the frozen matrices drawn here from seed 6 .*frozen=True"):
        other.verify(record)
    with pytest.raises(ValueError, match="checksum"):
        method.verify({})
    with torch.no_grad():
        method.B0[0, 0] += 1e-6  # one entry, hardly changed
    with pytest.raises(ValueError, match="checksum"):
        method.verify(record)


def test_the_pair_can_be_stored_instead():
    saved, fresh = VeRA(4, seed=5).build(SITES), VeRA(4, seed=6).build(SITES)
    tensors = saved.frozen_tensors()
    assert set(tensors) == {"A0", "B0"}
    fresh.read_frozen(tensors)
    assert fresh.checksum() == saved.checksum()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"init": "xavier"}, "init is 'xavier'; choose one of kaiming_normal, kaiming_uniform, uniform"),
        ({"init": ["uniform"]}, r"init is \['uniform'\]; choose one of"),
        ({"d_init": math.nan}, "d_init is nan; it must be a finite number"),
        ({"d_init": math.inf}, "d_init is inf; it must be a finite number"),
        ({"d_init": "0.1"}, "d_init is '0.1'; it must be a finite number"),
        ({"d_init": 0}, "d_init is 0, and b starts at 0, so no gradient would ever move them; choose 0.1"),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0"),
        ({"seed": 1.0}, "seed is 1.0; it must be an integer of at least 0"),
        ({"seed": 2**63}, r"seed is 9223372036854775808; it must lie below 2\*\*63"),
        ({"shared": "no"}, "shared is 'no'; it must be True or False"),
        ({"train_b": 0}, "train_b is 0; it must be True or False"),
        ({"train_b": False, "train_d": False}, "train_b and train_d are both False, so nothing would be trained"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match="VeRA: " + message):
        VeRA(4, **settings)


def test_settings_at_the_edge():
    VeRA(4, seed=2**63 - 1).build(SITES)
    assert VeRA(4, d_init=0.0, train_b=False).build(SITES).d[0].sum() == 0
    assert vbank.count_sites(VeRA(4, d_init=0.0, train_d=False), SITES).trainable == 11
