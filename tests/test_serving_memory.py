"""What a server holds in memory, to the byte, and what it forgets."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from served import alone, write
from tiny_models import CONFIGS, bert, every_method, logits, tokens
from torch import nn

import vbank
from vbank.serving_store import Cache
from vbank.targets import resolve

EVERY = {config.method: config for config in CONFIGS}
PAIR = (5 * 16 + 16 * 5) * 4  # VeRA's on the small BERT


def test_a_vb_lora_adapter_of_roberta_base_is_95_616_bytes(tmp_path):
    """The formula's bytes: 90 x 256 numbers of the bank, and a weight and two 1-byte indices for 576 sub-vectors."""
    model = nn.Sequential(*(nn.Linear(768, 768, bias=False) for _ in range(24))).eval()
    config = vbank.VBLoRA(rank=4, num_vectors=90, vector_length=256, top_k=2)
    server = vbank.serve(model, cache_bytes=24 * 4 * 2 * 768 * 4)
    for name in "ab":
        server.add(name, write(model, config, tmp_path / name, r"\d+"))
    assert server.nbytes.adapters == 2 * 95_616 and server.nbytes.total == 2 * 95_616
    server(["a"], torch.ones(1, 768))
    assert server.nbytes.cache == 24 * 4 * (768 + 768) * 4  # rank 4, in and out
    server(["b"], torch.ones(1, 768))
    assert server.nbytes.cache == 24 * 4 * (768 + 768) * 4  # a made room for b


@every_method
def test_an_adapter_has_the_bytes_that_are_counted(config, tmp_path):
    model = bert().eval()
    server = vbank.serve(model)
    counted = vbank.count_sites(config, [part.site for part in resolve(model, "qv")]).bytes
    for i, name in enumerate("abc", 1):
        server.add(name, write(model, config, tmp_path / name, train=["classifier"]))
        held = server.nbytes
        assert held.adapters == i * counted
        assert held.heads == i * (16 * 2 + 2) * 4
        assert held.shared == (PAIR if config.method == "vera" else 0)
        assert held.total == held.adapters + held.heads + held.shared + held.cache


def test_a_head_takes_the_model_s_type(tmp_path):
    model = bert().eval()
    path = write(model, EVERY["lora"], tmp_path / "a", train=["classifier"])
    server = vbank.serve(model.bfloat16())
    server.add("a", path)
    assert server.nbytes.heads == (16 * 2 + 2) * 2


def test_one_frozen_pair_for_all_vera_adapters(tmp_path):
    model = bert().eval()
    server = vbank.serve(model)
    same = {"rank": 5, "seed": 3}
    for name, config in {
        "a": vbank.VeRA(**same),
        "b": vbank.VeRA(**same),
        "c": vbank.VeRA(**same, d_init=0.5),  # other settings, the same pair
        "d": vbank.VeRA(rank=5, seed=4),
        "e": vbank.VeRA(rank=5, seed=3, init="kaiming_normal"),
    }.items():
        server.add(name, write(model, config, tmp_path / name))
    assert server.nbytes.shared == 3 * PAIR
    server(list("abcde"), input_ids=tokens(5))
    assert server.nbytes.cache == 0  # d and b are used as they are stored
    for name, pairs in (("a", 3), ("d", 2), ("e", 1), ("b", 1), ("c", 0)):
        server.remove(name)
        gc.collect()
        assert server.nbytes.shared == pairs * PAIR
    assert server.nbytes.total == 0


@pytest.mark.parametrize("method", ["lora", "vera"])
def test_what_is_stored_ready_is_not_kept_twice(method, tmp_path):
    model = bert().eval()
    server = vbank.serve(model)
    server.add("a", write(model, EVERY[method], tmp_path / "a"))
    server(["a", None], input_ids=tokens(2))
    assert server.nbytes.cache == 0


@every_method
def test_removed_adapters_are_gone(config, tmp_path):
    model = bert().eval()
    server = vbank.serve(model)
    server.add("a", write(model, config, tmp_path / "a", train=["classifier"]))
    server(["a", None], input_ids=tokens(2))
    tensors = [weakref.ref(t) for t in (*server._adapters["a"].tensors, *server._adapters["a"].head)]
    assert tensors
    server.replace("a", tmp_path / "a")
    gc.collect()
    assert not any(reference() is not None for reference in tensors)
    assert server.nbytes.cache == 0
    server.remove("a")
    gc.collect()
    assert server.nbytes.total == 0


@pytest.mark.parametrize("cache_bytes", [0, 1, 10_000, 2**40])
def test_no_size_of_the_cache_changes_an_answer(cache_bytes, tmp_path):
    model, x = bert().eval(), tokens(2)
    names = [config.method for config in CONFIGS]
    paths = {name: write(model, EVERY[name], tmp_path / name, seed=i) for i, name in enumerate(names)}
    each = {name: alone(model, path, x) for name, path in paths.items()}
    server = vbank.serve(model, cache_bytes=cache_bytes)
    for name, path in paths.items():
        server.add(name, path)
    for _ in range(3):
        for name in names:
            with torch.no_grad(), server.rows([name, name]):
                torch.testing.assert_close(logits(model, x), each[name], rtol=1e-5, atol=1e-5)
            assert server.nbytes.cache <= cache_bytes
    assert (server.nbytes.cache > 0) == (cache_bytes >= 10_000)


class Fake:
    """An adapter whose terms are of a given size, and which counts how often they are made."""

    def __init__(self, size: int) -> None:
        self.size, self.times, self.served = size, 0, True

    def terms(self):
        self.times += 1
        return {"made": self.times}

    def made(self, terms):
        return self.size


@settings(max_examples=200)
@given(
    limit=st.integers(0, 30),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    steps=st.lists(st.tuples(st.sampled_from(["get", "get", "get", "drop"]), st.integers(0, 5)), max_size=40),
)
def test_the_cache_is_the_most_recent_that_fit(limit, sizes, steps):
    """Against a list that is kept in the order of use."""
    cache, adapters, recent = Cache(limit), [Fake(size) for size in sizes], []
    for step, number in steps:
        adapter = adapters[number % len(adapters)]
        if step == "drop":
            cache.drop(adapter)
            recent = [other for other in recent if other is not adapter]
            continue
        times = adapter.times
        cache.get(adapter)
        assert adapter.times == times + (adapter not in recent)
        if adapter in recent or (adapter.served and 0 < adapter.size <= limit):
            recent = [other for other in recent if other is not adapter] + [adapter]
            while sum(other.size for other in recent) > limit:
                recent.pop(0)
        assert cache.nbytes == sum(other.size for other in recent) <= limit


def test_an_adapter_removed_while_it_was_made_is_not_kept():
    cache = Cache(100)

    class Slow(Fake):
        def terms(self):
            cache.drop(self)
            return super().terms()

    cache.get(Slow(10))
    assert cache.nbytes == 0
