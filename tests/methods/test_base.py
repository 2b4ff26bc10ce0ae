"""What holds for every method, whatever its `factors`: the update, the counts, the storage, the checks."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import vbank
from vbank import Config, LoRA, PRoLoRA, Site, TiedLoRA, VBLoRA, VeRA
from vbank.methods import METHODS

SITES = [Site("query", 12, 8), Site("up", 8, 20), Site("down", 20, 8)]
CONFIGS = [
    LoRA(3, alpha=6),
    VeRA(5),
    VeRA(5, shared=False),
    VeRA(70),
    TiedLoRA(3, alpha=1.5),
    PRoLoRA(5, unshared_rank=1, share_a=3, share_b=2, alpha=10),
    VBLoRA(3, num_vectors=7, vector_length=4, top_k=3),
]
NAMES = [f"{c.method}-{c.rank}{'' if getattr(c, 'shared', True) else '-own'}" for c in CONFIGS]
every_method = pytest.mark.parametrize("config", CONFIGS, ids=NAMES)


def randomised(config: Config, sites: list[Site], dtype: torch.dtype = torch.float64) -> vbank.Method:
    """A method none of whose parameters is zero, as after some training."""
    method = config.build(sites, dtype=dtype)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(0.0, 0.5)
    return method


@every_method
@pytest.mark.parametrize("site", SITES, ids=lambda s: s.name)
def test_update_is_scale_times_b_a_x(config, site):
    method = randomised(config, SITES)
    x = torch.randn(2, 3, site.in_features, dtype=torch.float64)
    A, B = method.factors(site.name)
    assert A.shape == (config.rank, site.in_features) and B.shape == (site.out_features, config.rank)
    scale = config.alpha / config.rank if getattr(config, "alpha", None) else 1.0
    assert method.scale == scale
    expected = scale * torch.einsum("or,ri,bti->bto", B, A, x)
    torch.testing.assert_close(method.update(x, site.name), expected, rtol=1e-10, atol=1e-12)
    dense = torch.einsum("or,ri->oi", B, A) * scale
    torch.testing.assert_close(vbank.delta(method, site.name), dense, rtol=1e-10, atol=1e-12)


@every_method
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_update_has_the_gradients_of_the_factors_path(config, dtype, tolerance):
    method = randomised(config, SITES, dtype)
    parameters = [p for group in method.groups().values() for p in group]
    results = []
    for direct in (True, False):
        x = torch.linspace(-1, 1, 4 * 12, dtype=dtype).reshape(4, 12).requires_grad_()
        if direct:
            y = method.update(x, "query")
        else:
            A, B = method.factors("query")
            y = x @ A.T @ B.T * method.scale
        weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
        grads = torch.autograd.grad((y * weight).sum(), [x, *parameters], allow_unused=True)
        results.append([y.detach(), *grads])
    used = 0
    for ours, reference in zip(*results, strict=True):
        assert (ours is None) == (reference is None)
        if ours is not None:
            used += 1
            torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)
            assert reference.norm() > 1e-3
    assert used >= 2 + len(method.groups())


@every_method
def test_update_onto_the_outputs_is_their_sum_with_the_same_gradients(config):
    method = randomised(config, SITES)
    parameters = [p for group in method.groups().values() for p in group]
    results = []
    for inside in (True, False):
        x = torch.linspace(-1, 1, 2 * 3 * 12, dtype=torch.float64).reshape(2, 3, 12).requires_grad_()
        base = torch.cos(torch.arange(2 * 3 * 8, dtype=torch.float64)).reshape(2, 3, 8).requires_grad_()
        y = method.update(x, "query", base) if inside else base + method.update(x, "query")
        grads = torch.autograd.grad((y * y.detach()).sum(), [x, base, *parameters], allow_unused=True)
        results.append([y.detach(), base.detach(), *grads])  # the outputs given are not written to
    for ours, reference in zip(*results, strict=True):
        assert (ours is None) == (reference is None)
        if ours is not None:
            torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@every_method
def test_outputs_of_another_type_or_layout_keep_it(config):
    method = randomised(config, SITES, torch.float32)
    x, base = torch.randn(3, 4, 12), torch.randn(4, 3, 8)
    expected = base.transpose(0, 1) + method.update(x, "query")
    torch.testing.assert_close(method.update(x, "query", base.transpose(0, 1)), expected, rtol=1e-5, atol=1e-5)
    half = method.update(x, "query", base.transpose(0, 1).bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):  # a layer that autocast does not reach still answers in float32
        mixed = method.update(x, "query", base.transpose(0, 1).contiguous())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, rtol=0.05, atol=0.1)


@every_method
def test_dropout_acts_on_x_in_training_only(config):
    method = randomised(dataclasses.replace(config, dropout=0.4), SITES)
    x = torch.randn(6, 12, dtype=torch.float64)
    dense = vbank.delta(method, "query")
    method.train()
    torch.manual_seed(5)
    mask = F.dropout(torch.ones_like(x), 0.4)  # 0 or 1 / 0.6
    assert {0.0, 1 / 0.6} == set(mask.unique().tolist())
    torch.manual_seed(5)
    torch.testing.assert_close(method.update(x, "query"), (x * mask) @ dense.T)
    method.eval()
    torch.testing.assert_close(method.update(x, "query"), x @ dense.T)


@every_method
def test_the_update_is_zero_at_the_start_except_in_vb_lora(config):
    method = config.build(SITES)
    for site in SITES:
        start = vbank.delta(method, site.name)
        assert (start.abs().max() > 0) if config.method == "vb-lora" else (start == 0).all()


@every_method
def test_some_gradient_is_not_zero_at_the_start(config):
    method = config.build(SITES)
    loss = sum(method.update(torch.ones(2, s.in_features), s.name).sum() for s in SITES)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())


@every_method
def test_groups_hold_each_parameter_once(config):
    method = config.build(SITES)
    grouped = [id(p) for group in method.groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())
    assert list(method.groups()) == list(config.storage(SITES))
    assert all(p.requires_grad and p.numel() for p in method.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_group_names_are_the_papers(config):
    groups = {
        "lora": ["A", "B"],
        "vera": ["d", "b"],
        "tied-lora": ["A", "B", "u", "v"],
        "prolora": ["A", "B"],
        "vb-lora": ["bank", "logits"],
    }
    assert list(config.build(SITES).groups()) == groups[config.method]


@every_method
def test_the_global_seed_fixes_the_start(config):
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(config.build(SITES).tensors())
    assert all(torch.equal(built[0][key], built[1][key]) for key in built[0])
    if config.method != "vera":  # d = 0.1 and b = 0 are no draws
        assert any(not torch.equal(built[0][key], built[2][key]) for key in built[0])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_builds_in_every_precision(config, dtype):
    method = config.build(SITES, dtype=dtype)
    assert {p.dtype for p in method.parameters()} == {dtype}
    x = torch.randn(3, 12, dtype=dtype)
    y = method.update(x, "query")
    A, B = method.factors("query")
    assert A.dtype == B.dtype == y.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_update_is_the_float32_one_rounded(config, dtype):
    method = randomised(config, SITES, torch.float32)
    x = torch.randn(5, 12)
    exact = method.update(x, "query")
    half = method.update(x.to(dtype), "query")  # a float32 adapter on a half-precision model
    assert half.dtype == dtype
    assert (half.float() - exact).norm() < 8 * torch.finfo(dtype).eps * exact.norm()


@every_method
def test_a_method_moves_between_precisions(config):
    method = randomised(config, SITES, torch.float32)
    x = torch.randn(5, 12)
    exact = method.update(x, "query").detach()
    assert method.to(torch.float64).update(x.double(), "query").dtype == torch.float64
    torch.testing.assert_close(method.update(x.double(), "query").float(), exact, rtol=1e-5, atol=1e-5)


@every_method
def test_read_of_tensors_gives_the_same_factors(config):
    saved = randomised(config, SITES, torch.float32)
    fresh = config.build(SITES)
    assert set(fresh.tensors()) == {key for key, _ in fresh.named_parameters()}
    before = [f.clone() for f in fresh.factors("up")]
    fresh.read({key: value.detach().clone() for key, value in saved.tensors().items()}, "resumable")
    for ours, theirs, old in zip(fresh.factors("up"), saved.factors("up"), before, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, old)


# Shapes, ranks and shares that hypothesis draws. The shares need not divide; the sub-vector length does.


@st.composite
def cases(draw) -> tuple[Config, list[Site]]:
    unit = draw(st.integers(1, 6))
    sizes = st.integers(1, 6).map(lambda n: n * unit)
    sites = [Site(f"layer{i}", draw(sizes), draw(sizes)) for i in range(draw(st.integers(1, 4)))]
    rank = draw(st.integers(1, 7))
    kind = draw(st.sampled_from(sorted(METHODS)))
    if kind == "lora":
        return LoRA(rank), sites
    if kind == "vera":
        train_b, train_d = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        return VeRA(rank, shared=draw(st.booleans()), train_b=train_b, train_d=train_d), sites
    if kind == "tied-lora":
        return TiedLoRA(rank), sites
    if kind == "prolora":
        least_in, least_out = min(s.in_features for s in sites), min(s.out_features for s in sites)
        config = PRoLoRA(
            rank,
            unshared_rank=draw(st.integers(0, rank)),
            share_a=draw(st.integers(1, least_in)),
            share_b=draw(st.integers(1, least_out)),
            rotate=draw(st.booleans()),
        )
        return config, sites
    h = draw(st.integers(1, 12))
    selection = draw(st.sampled_from(["top_k", "select_all", "noisy_top_k"]))
    return VBLoRA(rank, h, unit, draw(st.integers(1, h)), selection=selection), sites


@settings(max_examples=150)
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_shapes_counts_and_bytes(case, dtype):
    config, sites = case
    method = config.build(sites, dtype=dtype).eval()
    for site in sites:
        A, B = method.factors(site.name)
        assert A.shape == (config.rank, site.in_features)
        assert B.shape == (site.out_features, config.rank)
        assert method.update(torch.zeros(2, site.in_features), site.name).shape == (2, site.out_features)
    itemsize = dtype.itemsize
    shapes_alone = vbank.count_sites(config, sites, itemsize)
    assert shapes_alone.sites == len(sites)
    for name, parameters in method.groups().items():
        assert shapes_alone.groups[name].trained == sum(p.numel() for p in parameters)
    assert set(shapes_alone.groups) == set(method.groups())
    stored = method.compact_tensors().values()
    assert shapes_alone.bytes == sum(t.numel() * t.element_size() for t in stored)
    full = config.build(sites).eval().compact_tensors().values()  # `stored` is float32 equivalents
    assert shapes_alone.stored == sum(t.numel() * t.element_size() for t in full) / 4


@settings(max_examples=100)
@given(cases())
def test_the_meta_device_counts_as_the_cpu_does(case):
    config, sites = case
    live, meta = config.build(sites), config.build(sites, device="meta")
    assert all(p.is_meta for p in [*meta.parameters(), *meta.buffers()])
    shapes = {key: (tuple(p.shape), p.dtype) for key, p in meta.named_parameters()}
    assert shapes == {key: (tuple(p.shape), p.dtype) for key, p in live.named_parameters()}
    A, B = meta.factors(sites[0].name)
    assert A.shape == (config.rank, sites[0].in_features) and B.shape == (sites[0].out_features, config.rank)


@every_method
def test_the_meta_context_builds_no_values(config):
    with torch.device("meta"):
        method = config.build(SITES)
    assert all(p.is_meta for p in [*method.parameters(), *method.buffers()])


@settings(max_examples=60)
@given(cases(), st.integers(0, 2**31))
def test_delta_has_at_most_the_rank(case, seed):
    config, sites = case
    assume(config.rank < min(sites[0].in_features, sites[0].out_features))
    torch.manual_seed(seed)
    method = randomised(config, sites).eval()
    values = torch.linalg.svdvals(vbank.delta(method, sites[0].name))
    assert values[config.rank] < 1e-9 * max(values[0], 1.0)


# Configurations.


@every_method
def test_settings_rebuild_the_configuration(config):
    import json

    stored = json.loads(json.dumps(config.settings()))
    assert type(config)(**stored) == config
    assert METHODS[config.method] is type(config)


@every_method
def test_configurations_do_not_change(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 9


def test_positions_of_the_settings():
    assert LoRA(4, 8) == LoRA(rank=4, alpha=8)
    assert VeRA(4, 0.5, 3) == VeRA(rank=4, d_init=0.5, seed=3)
    assert PRoLoRA(4, 1, 2, 3, 16) == PRoLoRA(rank=4, unshared_rank=1, share_a=2, share_b=3, alpha=16)
    assert VBLoRA(4, 5, 6, 3) == VBLoRA(rank=4, num_vectors=5, vector_length=6, top_k=3)
    with pytest.raises(TypeError):
        LoRA(4, 8, 0.1)


def test_defaults_are_the_papers():
    config = VBLoRA(4)
    assert (config.num_vectors, config.vector_length, config.top_k) == (90, 256, 2)
    assert (config.selection, config.bank_bound, config.logits_std) == ("top_k", 0.02, 0.01)
    assert (VeRA(4).d_init, VeRA(4).seed, VeRA(4).init, VeRA(4).shared) == (0.1, 0, "kaiming_uniform", True)
    assert PRoLoRA(4).rotate and PRoLoRA(4).rectified and PRoLoRA(4).unshared_rank == 0
    assert all(config(4).scale == 1.0 for config in (LoRA, TiedLoRA, PRoLoRA))
    assert all(config(4, alpha=2).scale == 0.5 for config in (LoRA, TiedLoRA, PRoLoRA))
    assert not hasattr(VBLoRA(4), "alpha") and not hasattr(VeRA(4), "alpha")


def test_lora_is_published_with_the_name_that_the_command_line_takes():
    assert list(METHODS) == ["lora", "vera", "tied-lora", "prolora", "vb-lora"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("rank", [0, -1, 2.0, "4", None, True, math.nan])
def test_a_rank_below_one_or_no_integer_is_refused(method, rank):
    with pytest.raises(ValueError, match=rf"{method.title}: rank is .*{rank}.*integer of at least 1"):
        method(rank)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2, math.nan, math.inf, "0.1", None, True])
def test_a_dropout_out_of_range_is_refused(method, dropout):
    with pytest.raises(ValueError, match=rf"{method.title}: dropout is .*{dropout}.*\[0, 1\)"):
        method(4, dropout=dropout)


@pytest.mark.parametrize("method", [LoRA, TiedLoRA, PRoLoRA])
@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf, "16", True])
def test_an_alpha_that_is_no_positive_number_is_refused(method, alpha):
    with pytest.raises(ValueError, match=rf"{method.title}: alpha is .*{alpha}.*finite number above 0"):
        method(4, alpha=alpha)


@every_method
def test_no_sites_are_refused(config):
    for refused in (lambda: config.build([]), lambda: vbank.count_sites(config, [])):
        with pytest.raises(ValueError, match=f"{config.title}: no sites given; name at least one linear layer"):
            refused()


@every_method
def test_one_name_for_two_sites_is_refused(config):
    with pytest.raises(ValueError, match="two sites bear the name 'up'"):
        config.build([*SITES, Site("up", 8, 8)])


@every_method
def test_delta_of_an_unknown_site_names_the_close_ones(config):
    with pytest.raises(ValueError, match=r"unknown site 'qeury'; did you mean 'query'"):
        vbank.delta(config.build(SITES), "qeury")


def test_the_base_classes_are_no_methods():
    with pytest.raises(TypeError, match="Config is no method: use one of vbank.LoRA"):
        Config(2).build(SITES)
    with pytest.raises(TypeError, match="Config is no method"):
        Config(2).storage(SITES)
