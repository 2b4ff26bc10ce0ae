"""Recipes are read strictly, and hold the values that the chapter states."""

import re
from pathlib import Path

import pytest

import vbank
from vbank.recipes import FOLDER, RecipeError, available, load, variants


@pytest.fixture(autouse=True)
def no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_SCALE", raising=False)


def test_the_first_finetune_is_the_setting_of_the_chapter() -> None:
    assert available()["first-finetune"] == ["head", "full", "lora", "vera", "tied-lora", "prolora", "vb-lora"]
    for name in variants("first-finetune"):
        recipe = load(name)
        assert (recipe.task.name, recipe.task.train_size, recipe.task.holdout) == ("sst2-sentences", 2000, 0)
        assert (recipe.model.name, recipe.model.head) == ("minilm", ["classifier"])
        assert (recipe.train.report, recipe.train.seeds) == (
            "last",
            3,
        ) and recipe.search.epochs < recipe.train.epochs <= 6
        assert (recipe.method.targets, recipe.search.holdout) == ("all-linear", 400)
    config = load("first-finetune/vb-lora").method.config()
    assert config == vbank.VBLoRA(rank=4, num_vectors=90, vector_length=128, top_k=2)
    assert load("first-finetune/lora").method.config().rank == 8
    assert load("first-finetune/full").method.config() is None


def test_every_value_has_its_source_as_a_comment() -> None:
    """On its line; for the rows of [variants], which are whole recipes on a line, above them."""
    for path in FOLDER.glob("*.toml"):
        inside = above = ""
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            above = line if line.startswith("#") else above if line else ""
            if header := re.match(r"\[([\w.-]+)\]", line):
                inside = header.group(1)
            plain = re.match(r"([\w.-]+)\s*= (?!\[$)", line)
            method_name = plain and inside.endswith("method") and plain.group(1) == "name"
            method_name = method_name or (plain and plain.group(1) == "method.name")
            told = "#" in line or method_name or (above if inside == "variants" else inside in ("search", "gpu.task"))
            if inside and plain and plain.group(1) != "from" and not told:
                pytest.fail(f"{path.name}:{number} names no source: {line}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=3", "unknown key in [train] 'epoch'; did you mean 'epochs'"),
        ("trian.epochs=3", "unknown section 'trian'; did you mean 'train'"),
        ("method.num_vector=3", "unknown key in [method] of vb-lora 'num_vector'; did you mean 'num_vectors'"),
        ("method.name=vblora", "unknown method 'vblora'; did you mean 'vb-lora'"),
        ("train.epochs=three", "train.epochs is 'three'; expected int"),
        ("train.epochs=2.5", "train.epochs is 2.5; expected int"),
        ("train.batch_size=true", "train.batch_size is True; expected int"),
        ("train.report=lats", "unknown train.report 'lats'; did you mean 'last'"),
        ("method.rank=0", "rank is 0"),
        ("method.top_k=91", "top_k is 91"),
        ("method.lr=fast", "method.lr is 'fast'"),
        ("method.lr.bank=-1e-3", "method.lr.bank is -0.001; expected a finite number of at least 0"),
        ("method.lr=nan", "method.lr.default is nan"),
        ("method.lr=inf", "method.lr.default is inf"),
        ("train.epochs=0", "train.epochs is 0; expected at least 1"),
        ("train.batch_size=0", "train.batch_size is 0; expected at least 1"),
        ("train.eval_batch_size=-1", "train.eval_batch_size is -1; expected at least 1"),
        ("train.seeds=0", "train.seeds is 0; expected at least 1"),
        ("task.max_length=0", "task.max_length is 0; expected at least 1"),
        ("task.train_size=-1", "task.train_size is -1; expected a finite number of at least 0"),
        ("task.holdout=-1", "task.holdout is -1"),
        ("train.save_steps=-1", "train.save_steps is -1"),
        ("train.weight_decay=-0.1", "train.weight_decay is -0.1"),
        ("train.warmup=1.5", "train.warmup is 1.5; expected a share from 0 to 1"),
        ("train.warmup=nan", "train.warmup is nan"),
        ("train.max_grad_norm=0", "train.max_grad_norm is 0; expected a finite number above 0"),
        ("model.head=[]", "model.head is []; expected at least one module"),
        ("search.lr=[{ bank = -1.0 }]", "search.lr.bank is -1.0"),
        ("epochs=3", "write SECTION.KEY=VALUE"),
        ("train.epochs", "write SECTION.KEY=VALUE"),
    ],
)
def test_a_setting_that_cannot_be_is_named(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("first-finetune/vb-lora", [override])
    assert said in str(error.value)


@pytest.mark.parametrize("variant", ["full", "head"])
def test_a_baseline_has_no_other_learning_rates_than_default_and_head(variant: str) -> None:
    with pytest.raises(RecipeError, match="unknown learning rate in method.lr of .* 'haed'; did you mean 'head'"):
        load(f"first-finetune/{variant}", ["method.lr.haed=1e-3"])
    with pytest.raises(RecipeError, match="unknown learning rate in search.lr of .* 'bank'; known: default, head"):
        load(f"first-finetune/{variant}", ["search.lr=[{ bank = 1e-3 }]"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first-finetun/lora", "unknown recipe 'first-finetun'; did you mean 'first-finetune'"),
        ("first-finetune/lor", "unknown variant 'lor'; did you mean 'lora'"),
        ("first-finetune", "has several variants"),
    ],
)
def test_an_unknown_recipe_suggests_the_close_one(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(name)
    assert said in str(error.value)


SETTINGS = """
[task]
name = "cola"
train_size = 10
[model]
name = "minilm"
[method]
name = "lora"
rank = 2
lr = 1e-3
[train]
epochs = 1
batch_size = 8
"""
LAYERS = """
[gpu.task]
train_size = 0
[gpu.train]
epochs = 20
[variants.plain]
[variants.long.train]
epochs = 5
[variants.long.gpu.train]
epochs = 50
"""


def test_layers_go_in_order_scale_variant_and_the_command_line_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SETTINGS + LAYERS)

    def seen(name: str, scale: str | None, *sets: str) -> tuple[int, int]:
        recipe = load(f"{path}/{name}", sets, scale)
        return recipe.task.train_size, recipe.train.epochs

    assert seen("plain", None) == seen("plain", "cpu") == (10, 1)
    assert seen("plain", "gpu") == (0, 20) and seen("long", "cpu") == (10, 5) and seen("long", "gpu") == (0, 50)
    assert seen("long", "gpu", "train.epochs=7") == (0, 7)
    monkeypatch.setenv("VBANK_SCALE", "gpu")
    assert seen("plain", None) == (0, 20)
    monkeypatch.setenv("VBANK_SCALE", "tpu")
    with pytest.raises(RecipeError, match="VBANK_SCALE"):
        load(f"{path}/plain")
    assert load(f"{path}/plain", ["method.lr.head=0.5"], "cpu").method.lr == {"default": 1e-3, "head": 0.5}
    # One rate means one rate for every group, not a default that the named ones hide.
    assert load("first-finetune/vb-lora", ["method.lr=0.5"], "cpu").method.lr == {"default": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[task", "is not valid TOML"),
        ("[tsak]\nname = 'cola'", "unknown section 'tsak'; did you mean 'task'"),
        ("task = 3\n[variants.a]", "'task' must be a section"),
        ("variants = 3", "'variants' must be a section, [variants]"),
        ("[variants]\na = 3", "'variants.a' must be a section, [variants.a]"),
        ("[[variants.a]]", "'variants.a' must be a section"),
        ("[cpu]\ntask = 3\n[variants.a]", "'cpu.task' must be a section, [cpu.task]"),
        ("[variants.a]\nmethod = 3", "'variants.a.method' must be a section"),
        ("[variants.a.gpu]\ntask = 3", "'variants.a.gpu.task' must be a section"),
        ("[method]\nlr = 'x'\n[variants.a.method]\nlr = { head = 1.0 }", "[task] lacks 'name'"),
        ("[variants.a.method]\nname = 'head'\nlr = 1.0", "[task] lacks 'name'"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load(f"{path}/a")
    assert said in str(error.value) and "broken" in str(error.value)


def test_a_setting_at_its_default_leaves_the_identity_as_it_was() -> None:
    plain = load("first-finetune/lora")
    same = load("first-finetune/lora", ["train.precision=fp32", "train.save_steps=7", "train.seeds=9"])
    assert plain.identity() == same.identity() and "precision" not in plain.identity()["train"]
    assert plain.identity() != load("first-finetune/lora", ["train.max_grad_norm=2.0"]).identity()


MADE_FROM = (
    SETTINGS
    + """
[parts]
long.train.epochs = 5
long.gpu.train.epochs = 50
wide.method.rank = 16
wide.train.epochs = 7
[variants]
plain = {}
long = { from = ["wide"], train.batch_size = 4 }
"""
)


def test_a_variant_lies_over_the_parts_that_it_is_made_from(tmp_path: Path) -> None:
    path = tmp_path / "parts.toml"
    path.write_text(
        MADE_FROM.replace("long = {", "other = {")
        + 'ordered = { from = ["long", "wide"] }\nreversed = { from = ["wide", "long"] }\n'
        + 'own = { from = ["long", "wide"], train.epochs = 9 }\nagain = { from = ["own", "long"] }\n'
    )

    def seen(variant: str, scale: str) -> tuple[int, int]:
        recipe = load(f"{path}/{variant}", scale=scale)
        return recipe.train.epochs, recipe.method.config().rank

    assert seen("plain", "gpu") == (1, 2) and variants(str(path))[-1] == f"{path}/again"
    assert seen("ordered", "cpu") == (7, 16) and seen("ordered", "gpu") == (7, 16)  # each part with its own scale
    assert seen("reversed", "cpu") == (5, 16) and seen("reversed", "gpu") == (50, 16)
    assert seen("own", "gpu") == (9, 16) and seen("again", "cpu") == (5, 16)
    assert load(f"{path}/other").train.batch_size == 4
    with pytest.raises(RecipeError, match="unknown variant 'wide'"):
        load(f"{path}/wide")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ('plain = { from = ["wide"] }', "'long' is a part and a variant"),
        ('other = { from = ["wyde"] }', "'other' is made from an unknown part or variant 'wyde'; did you mean 'wide'"),
        ('other = { from = "wide" }', "from of 'other' is 'wide'; expected a list of names"),
        ('other = { from = ["more"] }\nmore = { from = ["other"] }', "made from itself: other from more from other"),
        ('other = { frm = ["wide"] }', "unknown section 'frm'"),
    ],
)
def test_a_variant_made_from_what_is_not_there_is_named(tmp_path: Path, changed: str, said: str) -> None:
    path = tmp_path / "parts.toml"
    name = changed.partition(" ")[0]
    text = MADE_FROM if name == "plain" else MADE_FROM.replace("long = {", "last = {")
    path.write_text(text.replace("plain = {}", changed))
    with pytest.raises(RecipeError) as error:
        load(f"{path}/{name}")
    assert said in str(error.value) and "parts" in str(error.value)
