"""The models that the papers adapt: true shapes, without weights and without a download."""

import functools
from collections import Counter

import pytest

from vbank import architectures
from vbank.architectures import ARCHITECTURES
from vbank.targets import resolve

build = functools.cache(architectures.build)  # some take half a second


def shapes(name: str, targets) -> Counter:
    """How many sites there are of each (in, out)."""
    sites = [part.site for part in resolve(build(name), targets)]
    return Counter((s.in_features, s.out_features) for s in sites)


def transformer(layers: int, *linear: tuple[int, int]) -> Counter:
    return Counter({shape: layers * linear.count(shape) for shape in linear})


# name -> layers, query and value, all linear layers of one block (from the models' published configurations)
BLOCKS = {
    "minilm": (6, [(384, 384)] * 2, [(384, 384)] * 4 + [(384, 1536), (1536, 384)]),
    "roberta-base": (12, [(768, 768)] * 2, [(768, 768)] * 4 + [(768, 3072), (3072, 768)]),
    "roberta-large": (24, [(1024, 1024)] * 2, [(1024, 1024)] * 4 + [(1024, 4096), (4096, 1024)]),
    "gpt2-medium": (24, [(1024, 1024)] * 2, [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]),
    "gpt2-large": (36, [(1280, 1280)] * 2, [(1280, 3840), (1280, 1280), (1280, 5120), (5120, 1280)]),
    "gpt3-175b": (96, [(12288, 12288)] * 2, [(12288, 36864), (12288, 12288), (12288, 49152), (49152, 12288)]),
    "llama2-7b": (32, [(4096, 4096)] * 2, [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]),
    "llama2-13b": (40, [(5120, 5120)] * 2, [(5120, 5120)] * 4 + [(5120, 13824)] * 2 + [(13824, 5120)]),
    "llama2-70b": (  # 8 key-value heads of 128 for 64 query heads
        80,
        [(8192, 8192), (8192, 1024)],
        [(8192, 8192)] * 2 + [(8192, 1024)] * 2 + [(8192, 28672)] * 2 + [(28672, 8192)],
    ),
    "llama3.2-3b": (  # 8 key-value heads of 128 for 24
        28,
        [(3072, 3072), (3072, 1024)],
        [(3072, 3072)] * 2 + [(3072, 1024)] * 2 + [(3072, 8192)] * 2 + [(8192, 3072)],
    ),
    "mistral-7b": (  # 8 for 32
        32,
        [(4096, 4096), (4096, 1024)],
        [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 2 + [(14336, 4096)],
    ),
    "gemma-7b": (  # 16 heads of 256 in a hidden size of 3072
        28,
        [(3072, 4096)] * 2,
        [(3072, 4096)] * 3 + [(4096, 3072)] + [(3072, 24576)] * 2 + [(24576, 3072)],
    ),
    "vit-base": (12, [(768, 768)] * 2, [(768, 768)] * 4 + [(768, 3072), (3072, 768)]),
    "vit-large": (24, [(1024, 1024)] * 2, [(1024, 1024)] * 4 + [(1024, 4096), (4096, 1024)]),
}

PARAMETERS = {  # millions, as published, of the body without a language-model head
    "minilm": 22.7,
    "roberta-base": 124.6,
    "roberta-large": 355.4,
    "gpt2-medium": 354.8,
    "gpt2-large": 774.0,
    "gpt3-175b": 175e3,  # printed in billions; with GPT-2's vocabulary and 2,048 positions it is 174.6
    "llama2-7b": 6738 - 131,  # 32,000 x 4,096 in the head
    "llama2-13b": 13016 - 164,
    "llama2-70b": 68977 - 262,
    "llama3.2-3b": 3213,  # the head is the embedding
    "mistral-7b": 7242 - 131,
    "gemma-7b": 8538,
    "vit-base": 86.4,
    "vit-large": 304.3,
}


def test_the_list_is_the_promised_one():
    assert set(ARCHITECTURES) == set(BLOCKS) == set(PARAMETERS)


@pytest.mark.parametrize("name", BLOCKS)
def test_linear_layers(name):
    layers, query_value, everything = BLOCKS[name]
    assert shapes(name, "qv") == transformer(layers, *query_value)
    assert shapes(name, "all-linear") == transformer(layers, *everything)


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones_and_nothing_is_allocated(name):
    model = build(name)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], rel=5e-3)


def test_gpt2_query_and_value_are_slices_of_the_fused_projection():
    sites = architectures.sites("gpt2-medium", "qv")
    assert [s.name for s in sites[:3]] == ["h.0.attn.c_attn:query", "h.0.attn.c_attn:value", "h.1.attn.c_attn:query"]


def test_sites_are_those_that_the_targets_name_in_the_architecture():
    for targets in ("qv", "all-linear", ["query"]):
        assert architectures.sites("minilm", targets) == [p.site for p in resolve(build("minilm"), targets)]


def test_the_pooler_is_no_target():
    assert not [s.name for s in architectures.sites("roberta-base", "all-linear") if "pooler" in s.name]


def test_targets_are_those_of_attach():
    assert shapes("roberta-base", ["query"]) == Counter({(768, 768): 12})
    assert shapes("llama2-7b", r"layers\.[01]\.mlp\.down_proj") == Counter({(11008, 4096): 2})


@pytest.mark.parametrize("refused", [architectures.build, lambda name: architectures.sites(name, "qv")])
def test_an_unknown_name_suggests_close_ones(refused):
    with pytest.raises(ValueError, match=r"unknown architecture 'roberta-bse'; did you mean 'roberta-base'"):
        refused("roberta-bse")
    with pytest.raises(ValueError, match=r"unknown architecture 'zzz'; known: minilm, roberta-base, .*vit-large"):
        refused("zzz")


def test_settings_can_be_changed():
    shorter = architectures.sites("llama2-70b", "all-linear", num_hidden_layers=2, num_key_value_heads=64)
    assert Counter((s.in_features, s.out_features) for s in shorter) == transformer(
        2, *[(8192, 8192)] * 4, *[(8192, 28672)] * 2, (28672, 8192)
    )


@pytest.mark.parametrize(("name", "added"), [("llama2-7b", 32000 * 4096), ("gemma-7b", 0), ("llama3.2-3b", 0)])
def test_the_head_of_a_language_model(name, added):
    sizes = [sum(p.numel() for p in model.parameters()) for model in (build(name), build(name, language_model=True))]
    assert sizes[1] - sizes[0] == added  # none where it is the embedding


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match=r"q_proj"):
        architectures.sites("llama2-7b", ["q_porj"])
