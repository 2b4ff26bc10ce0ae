"""The ablations change what the papers' tables change and nothing else, and repeat no run that is there already."""

import json
import math
from typing import Any

import pytest

import vbank
from vbank import architectures, tables
from vbank.counting import count_sites
from vbank.recipes import RecipeError, available, load, parse_override, variants
from vbank.targets import resolve

VARIANTS = available()["ablations"]


def settings(name: str) -> dict[str, Any]:
    """All settings of a run but its name, as "section.key"; the method's own as "method.key"."""
    recipe, found = load(name, scale="cpu").resolved(), {}
    for section in ("task", "model", "method", "train"):
        found |= tables.flat(section, recipe[section])
    return found


def changed(name: str, base: str) -> dict[str, Any]:
    """In what a variant differs from another; a setting that it leaves at the method's default is told too."""
    ours, theirs = settings(f"ablations/{name}"), settings(f"ablations/{base}")
    config = load(f"ablations/{name}", scale="cpu").method.config()
    own = {} if config is None else {f"method.{key}": value for key, value in config.settings().items()}
    return {key: own.get(key, ours.get(key)) for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def asked(score: tables.Score) -> dict[str, Any]:
    """What a row of a paper's table changes."""
    found = {}
    for text in score.overrides:
        ((section, values),) = parse_override(text).items()
        found |= {f"{section}.{key}": value for key, value in values.items()}
    return found


@pytest.mark.parametrize(
    ("table", "base", "names"),
    [
        ("vb-lora-5", "top-2", ("top-", "select-", "noisy-", "gumbel-", "straight-")),
        ("vera-6", "vera-default", ("vera-",)),
        ("vera-7", "vera-default", ("vera-default", "vera-unique")),
    ],
)
def test_every_row_of_a_papers_table_has_its_variant(table: str, base: str, names: tuple[str, ...]) -> None:
    rows = {json.dumps(asked(score), sort_keys=True) for score in tables.scores(table=table)}
    ours = [json.dumps(changed(name, base), sort_keys=True) for name in VARIANTS if name.startswith(names)]
    assert len(set(ours)) == len(ours) and rows <= set(ours)
    if table != "vera-6":  # its variants are those of Table 7 too
        assert rows == set(ours)


def test_the_lengths_have_one_budget_as_in_table_6() -> None:
    def budget(values: dict[str, Any]) -> int:
        return values["method.vector_length"] * values["method.num_vectors"]

    gpu = load("vb-lora-glue/cola-large-qv", scale="gpu").method.settings
    rows = [{f"method.{k}": v for k, v in gpu.items()} | asked(score) for score in tables.scores(table="vb-lora-6")]
    assert len(rows) == 4 and len({budget(row) for row in rows}) == 1
    lengths = [name for name in VARIANTS if name.startswith("length-")]
    assert all(changed(name, "top-2").keys() == {"method.vector_length", "method.num_vectors"} for name in lengths)
    ours = [settings(f"ablations/{name}") for name in ("top-2", *lengths)]
    assert {budget(each) for each in ours} == {90 * 128}
    assert [name.rpartition("-")[2] for name in lengths] == [str(each["method.vector_length"]) for each in ours[1:]]
    for b in (each["method.vector_length"] for each in ours):
        assert 384 % b == 0 and 1536 % b == 0  # MiniLM's widths
    shorter = [each["method.vector_length"] < 128 for each in ours[1:]]
    assert any(shorter) and not all(shorter)


def test_rates_and_scales_change_alone() -> None:
    logits, bank = "method.lr.logits", "method.lr.bank"
    top = settings("ablations/top-2")
    for ratio in (1, 4, 10, 160):
        (found,) = changed(f"ratio-{ratio}", "top-2").items()
        assert found == (logits, pytest.approx(ratio * top[bank]))
    for times in (4, 10):
        found = changed(f"one-rate-{times}x", "top-2")
        assert found == {logits: pytest.approx(times * top[bank]), bank: pytest.approx(times * top[bank])}
    for name in ("noisy", "gumbel", "straight"):
        assert changed(f"fast-{name}-top-2", f"{name}-top-2") == {logits: pytest.approx(10 * top[logits])}
    assert changed("logits-std-10x", "top-2") == {"method.logits_std": 10 * 0.01}
    assert changed("logits-std-100x", "top-2") == {"method.logits_std": 100 * 0.01}
    assert changed("bank-tenth", "top-2") == {"method.bank_bound": 0.02 / 10}
    assert changed("bank-10x", "top-2") == {"method.bank_bound": 0.02 * 10}


def test_the_way_to_pefts_settings_goes_one_step_at_a_time() -> None:
    top = settings("ablations/top-2")
    authors = load("vb-lora-glue/cola-large-qv", scale="gpu").method.lr
    assert {key: changed("rates-authors", "top-2")[f"method.lr.{key}"] for key in ("bank", "logits")} == {
        key: authors[key] for key in ("bank", "logits")
    }
    theirs, divided = changed("rates-peft", "top-2"), changed("rates-divided", "top-2")
    assert theirs == {"method.lr.bank": 1e-4, "method.lr.logits": 1e-4}
    assert divided.keys() == theirs.keys()
    for key in ("bank", "logits"):
        rate = f"method.lr.{key}"
        assert divided[rate] / top[rate] == pytest.approx(theirs[rate] / authors[key])
    mathematics = load("vb-lora-math/mistral", scale="gpu").method.settings["num_vectors"]
    bank = round(90 * 256 / mathematics)
    steps = [changed(name, "top-2") for name in ("peft-decay", "peft-qv", "peft-bank", "logits-std-10x")]
    assert steps == [
        {"train.weight_decay": 0.1},
        {"method.targets": "qv"},
        {"method.num_vectors": bank},
        {"method.logits_std": 0.1},
    ]
    together = {key: value for step in steps for key, value in step.items()}
    assert changed("peft-own-rates", "top-2") == together
    assert changed("peft-rates-divided", "top-2") == together | divided
    assert changed("peft-rates", "top-2") == together | theirs
    assert changed("bank-of-256", "top-2") == {"method.num_vectors": 256}


def test_unshared_ranks_are_compared_at_one_budget() -> None:
    sites = [part.site for part in resolve(architectures.build("minilm"), "all-linear")]
    configs = [load(f"ablations/unshared-{u}", scale="cpu").method.config() for u in range(5)]
    counts = [count_sites(config, sites).trainable for config in configs]
    assert counts[4] == count_sites(vbank.LoRA(4), sites).trainable
    assert all(math.isclose(found, counts[4], rel_tol=0.02) for found in counts)  # a last copy is trimmed
    assert [config.unshared_rank for config in configs] == [0, 1, 2, 3, 4] and {c.rank for c in configs[:4]} == {16}
    assert {config.scale for config in configs} == {1.0}
    alpha = load("ablations/unshared-4-alpha", scale="cpu").method.config()
    assert alpha.alpha == configs[0].alpha and alpha.scale == 4
    assert changed("no-rotation", "unshared-2") == {"method.rotate": False}
    assert changed("not-rectified", "unshared-2") == {"method.rectified": False}


def test_no_run_is_made_twice() -> None:
    """What has the settings of another variant here, or of a finished experiment, would be a run for nothing."""
    seen: dict[str, str] = {}
    names = [f"ablations/{name}" for name in VARIANTS]
    names += [name for experiment in ("first-finetune", "minilm-sst2", "minilm-cola") for name in variants(experiment)]
    for name in names:
        key = json.dumps(settings(name), sort_keys=True)
        assert key not in seen, f"{name} has the settings of {seen[key]}"
        seen[key] = name


def test_cola_goes_on_from_the_run_of_our_table() -> None:
    ours, table = settings("ablations/cola-top-3"), settings("minilm-cola/vb-lora-all")
    assert {key for key in ours.keys() | table.keys() if ours.get(key) != table.get(key)} == {"method.top_k"}
    for name in VARIANTS:
        if name.startswith("cola-"):
            assert changed(name, "cola-top-3") == changed(name.removeprefix("cola-"), "top-3")


def test_what_is_logged() -> None:
    logged = {name for name in VARIANTS if load(f"ablations/{name}").train.log_selections}
    assert logged == {"top-1", "top-2", "top-3", "top-6", "noisy-top-2", "fast-noisy-top-2"}


def test_a_pattern_names_a_group() -> None:
    assert variants("ablations/top-*") == [f"ablations/top-{k}" for k in (1, 2, 3, 6)]
    assert variants("ablations/top-2") == ["ablations/top-2"]
    assert variants("ablations") == variants("ablations/*") == [f"ablations/{name}" for name in VARIANTS]
    with pytest.raises(RecipeError, match=r"ablations: unknown variant 'lenght-64'; did you mean 'length-64'"):
        variants("ablations/lenght-64")
    with pytest.raises(RecipeError, match=r"unknown variant 'bottom-\*'"):
        variants("ablations/bottom-*")
