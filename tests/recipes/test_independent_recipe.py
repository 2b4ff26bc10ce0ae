"""The recipe of PEFT's own comparison: its published settings, and counts that its result files print."""

import pytest

import vbank
from vbank import architectures, recipes
from vbank.tables import independent

SITES = {targets: architectures.sites("llama3.2-3b", targets) for targets in ("qv", "all-linear")}


def load(variant: str, scale: str = "gpu") -> recipes.Recipe:
    return recipes.load(f"peft-metamath/{variant}", scale=scale)


def counted(variant: str) -> vbank.counting.Count:
    recipe = load(variant)
    config = recipe.method.config()
    assert config is not None and isinstance(recipe.method.targets, str)
    return vbank.count_sites(config, SITES[recipe.method.targets])


@pytest.mark.parametrize(
    ("variant", "run"),
    [
        ("lora", "lora/llama-3.2-3B-rank32"),
        ("vb-lora", "vblora/llama-3.2-3B-default"),
        ("vera", "vera/llama-3.2-3B-default"),
    ],
)
def test_a_variant_trains_as_many_numbers_as_the_result_file_says(variant: str, run: str) -> None:
    assert counted(variant).trainable == independent.latest(run).trainable


def test_settings_are_those_of_the_comparison() -> None:
    recipe = load("vb-lora")
    assert (recipe.train.max_steps, recipe.train.batch_size, recipe.train.weight_decay) == (5000, 4, 0.1)
    assert (recipe.train.schedule, recipe.train.warmup, recipe.task.max_length) == ("cosine", 0.1, 768)
    assert recipe.task.train_size > recipe.train.max_steps * recipe.train.batch_size
    assert recipe.method.lr == {"bank": 1e-4, "logits": 1e-4}
    assert recipe.method.config() == vbank.VBLoRA(rank=4, num_vectors=256, vector_length=256, logits_std=0.1)


def test_the_two_pairs_of_rates_differ_in_nothing_else() -> None:
    for bank in ("vb-lora", "vb-lora-1024"):
        theirs, authors = load(bank).resolved(), load(f"{bank}-authors-rates").resolved()
        assert authors["method"].pop("lr") == {"bank": 1e-3, "logits": 1e-2} == load("vb-lora-authors").method.lr
        del theirs["method"]["lr"], theirs["variant"], authors["variant"]
        assert theirs == authors
    assert load("vb-lora-authors").method.lr == recipes.load("vb-lora-math/mistral", scale="gpu").method.lr


def test_every_variant_fits_both_models() -> None:
    for variant in recipes.available()["peft-metamath"]:
        assert 0 < counted(variant).stored <= counted(variant).trainable
        small = load(variant, "cpu")
        config = small.method.config()
        assert config is not None and small.model.name == "scratch-llama"
        config.check([vbank.Site("q_proj", 128, 128), vbank.Site("down_proj", 384, 128)])
