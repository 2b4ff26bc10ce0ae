"""Recipes: counts by hand, arithmetic, and the ways in which a count could be otherwise."""

import pytest

from vbank import Site
from vbank.audits.recipes import counted, evaluate, sites_of

BASE = {"on": "roberta-base", "at": "qv"}
LARGE = {"on": "roberta-large", "at": "all-linear"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"lora": {"rank": 8}, **BASE}, 24 * 8 * 2 * 768),
        ({"lora": {"rank": 8}, **BASE, "of": "bytes"}, 4 * 24 * 8 * 2 * 768),
        ({"vera": {"rank": 1024}, **BASE}, 24 * (1024 + 768)),
        ({"vera": {"rank": 16}, "on": "gpt3-175b", "at": "qv", "of": "pair"}, 16 * 2 * 12288),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "stored"}, 90 * 256 + 24 * 4 * 6 * 1.5),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "bank"}, 90 * 256),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "sub-vectors"}, 24 * 4 * 6),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "stored", "index_bytes": 1}, 90 * 256 + 24 * 4 * 6 * 1.5),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "stored", "index_bytes": 4}, 90 * 256 + 24 * 4 * 6 * 3),
        ({"vb-lora": {"rank": 4}, **BASE, "of": "stored", "index_bytes": 8, "weights": 2}, 90 * 256 + 24 * 4 * 6 * 6),
        ({"tied-lora": {"rank": 8}, **LARGE}, 8 * 2 * 4096 + 144 * 8 + 24 * 9216),
        ({"tied-lora": {"rank": 8}, **LARGE, "tied_to": 1024}, 8 * 2 * 1024 + 144 * 8 + 24 * 9216),
        ({"adapters": {"bottleneck": 64}, **LARGE}, 24 * (2 * 1024 * 64 + 64 + 1024)),
        ({"adapters": {"bottleneck": 8, "a_layer": 2}, **LARGE}, 48 * (2 * 1024 * 8 + 8 + 1024)),
        ({"adapters": {"bottleneck": 6, "norms": 1}, "on": "gpt2-medium"}, 24 * (2 * 1024 * 6 + 6 + 3 * 1024)),
        ({"lora-xs": {"rank": 64}, "on": "mistral-7b", "at": "all-linear"}, 32 * 7 * 64**2),
        ({"full": True, "on": "vit-base", "without": "pooler"}, 85_798_656),  # as torchvision counts it without a head
        ({"full": True, "on": "mistral-7b", "head": True}, 7_241_732_096),
        ({"full": True, "on": "gemma-7b", "head": True}, 8_537_680_896),  # tied: the head adds nothing
        ({"biases": True, "on": "roberta-base"}, 12 * (4 + 4 + 1 + 2) * 768 + 768 + 768),  # embedding norm, pooler
        ({"lora": {"rank": 2}, "on": "llama2-13b", "at": "all-linear"}, 40 * 2 * (4 * 2 * 5120 + 3 * (5120 + 13824))),
        (
            {"lora": {"rank": 1}, "on": "llama2-13b", "at": "all-linear", "changed": {"num_hidden_layers": 32}},
            32 * (4 * 2 * 5120 + 3 * (5120 + 13824)),
        ),
    ],
)
def test_counts_by_hand(recipe, expected):
    assert evaluate(recipe) == expected


LORA = {"lora": {"rank": 8}}
VERA = {"vera": {"rank": 1024}}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"ratio": [LORA, VERA]}, 48 / 7),
        ({"percent": [VERA, LORA]}, 100 * 7 / 48),
        ({"saved": [VERA, LORA]}, 100 * 41 / 48),
        ({"sum": [LORA, VERA]}, 294_912 + 43_008),
        ({"product": [{"number": "0.5"}, LORA]}, 147_456),
        ({"least": [LORA, VERA]}, 43_008),
        ({"most": [LORA, VERA]}, 294_912),
        ({"floor": {"ratio": [LORA, VERA]}}, 6),
        ({"printed": "0.033M"}, 33_000),
    ],
)
def test_arithmetic(recipe, expected):
    assert float(evaluate(recipe, BASE)) == pytest.approx(expected, rel=1e-15)


def test_the_counts_inside_a_recipe_take_the_defaults():
    recipe = {"ratio": [LORA, {"sum": [{"on": "roberta-large", **VERA}, {"number": "1"}]}]}
    assert list(counted(recipe, BASE)) == [{**BASE, **LORA}, {**BASE, **VERA, "on": "roberta-large"}]


def test_a_fused_projection_can_be_taken_apart():
    fused = sites_of({"on": "gpt2-medium", "at": "all-linear"})
    apart = sites_of({"on": "gpt2-medium", "at": "all-linear", "split": True})
    assert len(fused) == 24 * 4 and len(apart) == 24 * 6
    assert {(s.in_features, s.out_features) for s in apart} == {(1024, 1024), (1024, 4096), (4096, 1024)}
    assert sum(s.out_features for s in fused) == sum(s.out_features for s in apart)


def test_a_layer_can_be_divided_into_square_parts():
    """VB-LoRA, section 3.1: M = 12 matrices of d x d a layer, for Tied-LoRA each with scales of its own."""
    parts = sites_of({**LARGE, "parts": 1024})
    assert len(parts) == len({s.name for s in parts}) == 24 * 12
    assert {(s.in_features, s.out_features) for s in parts} == {(1024, 1024)}
    tied = evaluate({"tied-lora": {"rank": 8}, **LARGE, "parts": 1024})
    assert tied == 2 * 8 * 1024 + 24 * 12 * (8 + 1024)


def test_query_key_and_value_can_be_taken_as_one():
    sites = sites_of({"on": "llama2-7b", "at": ["q_proj", "k_proj", "v_proj"], "fused": True})
    assert sites[0] == Site("layers.0.self_attn", 4096, 3 * 4096) and len(sites) == 32


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"lroa": {"rank": 8}, **BASE}, "counts nothing"),
        ({"lora": {"rank": 8}, **BASE, "of": "bank"}, "'bank' is nothing that LoRA has"),
        ({"lora": {"rank": 8}, "on": "roberta-bse", "at": "qv"}, "did you mean 'roberta-base'"),
    ],
)
def test_a_wrong_recipe_is_refused(recipe, said):
    with pytest.raises(ValueError, match=said):
        evaluate(recipe)
