"""Pictures: folders, data sets of the Hub's shape and a stand-in; a balanced draw; decoded one batch at a time."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from local_data import silent
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vbank import recipes, tasks
from vbank.recipes import ModelSettings, TaskSettings
from vbank.tasks import digits
from vbank.tasks.images import CIFAR100, DIGITS_TURNED, FLOWERS102, FOOD101, RESISC45, PictureTask, Pixels, few, stack
from vbank.tasks.pictures import Picture, grating
from vbank.tasks.sources import DataError

FRUIT = ("apple", "fig", "pear")
TINY = PictureTask("tiny", "someone/tiny", 3)
POOL = PictureTask("tiny", "someone/tiny", 3, splits=(("train", "validation", "test"), ()), pooled=True)


def settings(samples: int = 0, **more: Any) -> TaskSettings:
    return TaskSettings("tiny", samples_per_class=samples, **more)


def write(folder: Path, number: int, size: int = 8, kind: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([number, *folder.name.encode()])
    for index in range(number):
        pixels = draw.integers(0, 255, (size, size + 2, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index:02}.{kind}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """images/tiny with three classes: 5, 6 and 7 pictures to train on, 2 each to measure."""
    root = tmp_path / "images" / "tiny"
    for more, name in enumerate(FRUIT):
        write(root / "train" / name, 5 + more, kind="jpg" if more else "png")
        write(root / "test" / name, 2)
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    return root


@pytest.fixture
def vit(tmp_path: Path) -> str:
    """A folder with a tiny random ViT and its image processor, as the Hub has them."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    place = tmp_path / "vit"
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(place)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(place)
    return str(place)


def test_folders_become_rows_and_nothing_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "open", lambda picture: pytest.fail("decoded"))
    lines: list[str] = []
    data = TINY.load(announce=lines.append)
    assert lines == ["data: tiny from local folder images/tiny in VBANK_DATA: 18 train, 6 to measure"]
    assert [row["class"] for row in data.validation] == ["apple", "apple", "fig", "fig", "pear", "pear"]
    assert [row["label"] for row in data.validation] == [0, 0, 1, 1, 2, 2]
    assert Counter(row["class"] for row in data.train) == {"apple": 5, "fig": 6, "pear": 7}


def test_a_fingerprint_knows_labels_and_files_but_not_where_they_lie(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TINY.load(announce=silent).fingerprint
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "images").rename(moved / "images")
    monkeypatch.setenv("VBANK_DATA", str(moved))
    assert TINY.load(announce=silent).fingerprint == first
    write(moved / "images" / "tiny" / "test" / "fig", 1, size=9)
    changed = TINY.load(announce=silent).fingerprint
    assert changed != first
    (moved / "images" / "tiny" / "test" / "fig" / "00.png").rename(
        moved / "images" / "tiny" / "test" / "apple" / "99.png"
    )
    assert TINY.load(announce=silent).fingerprint not in (first, changed)


def test_the_draw_is_balanced_fixed_by_its_seed_and_disjoint_from_what_is_left(folder: Path) -> None:
    data = TINY.load(announce=silent)
    name = lambda row: row["image"].name  # noqa: E731
    drawn = TINY.select(data, settings(3, subset_seed=1))
    assert Counter(row["class"] for row in drawn.train) == dict.fromkeys(FRUIT, 3)
    assert drawn.validation == data.validation
    assert drawn.train == TINY.select(data, settings(3, subset_seed=1)).train
    assert drawn.train != TINY.select(data, settings(3, subset_seed=2)).train
    assert drawn.fingerprint != data.fingerprint
    for start in (0, 3, 6):  # in rounds, so that any holdout of whole rounds is balanced
        assert {row["class"] for row in drawn.train[start : start + 3]} == set(FRUIT)
    held = TINY.select(data, settings(3, subset_seed=1, holdout=3))
    assert held.train == drawn.train[:6] and held.validation == drawn.train[6:]
    chosen, others = few(data.train, 2, 0, 3)
    assert {*map(name, chosen)} | {*map(name, others)} == {*map(name, data.train)}
    assert not {*map(name, chosen)} & {*map(name, others)}
    assert len(TINY.select(data, settings(train_size=7)).train) == 7
    assert len(TINY.select(data, settings()).train) == 18


def test_without_a_test_set_everything_not_drawn_measures(folder: Path) -> None:
    data = POOL.load(announce=silent)
    assert len(data.train) == 24 and data.validation == []
    drawn = POOL.select(data, settings(4))
    assert len(drawn.train) == 12 and len(drawn.validation) == 12
    assert not {id(row) for row in drawn.train} & {id(row) for row in drawn.validation}
    with pytest.raises(DataError, match="tiny has no test set; set task.samples_per_class"):
        POOL.select(data, settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 6}, "class 'apple' has 5 pictures to train on, fewer than task.samples_per_class = 6"),
        ({"samples": 3, "train_size": 9}, "exclude each other"),
        ({"samples": 3, "holdout": 9}, "holdout of 9 leaves nothing of 9"),
        ({"samples": 3, "holdout": -1}, "holdout of -1"),
    ],
)
def test_draws_that_cannot_be(folder: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TINY.select(TINY.load(announce=silent), settings(**changes))


def test_bad_folders_are_errors_by_name(folder: Path, tmp_path: Path) -> None:
    broken = folder / "train" / "fig" / "03.jpg"
    good = broken.read_bytes()
    broken.write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"train/fig/03\.jpg cannot be read \(not a picture\)"):
        TINY.load(announce=silent)
    broken.write_bytes(good[:100])
    with pytest.raises(DataError, match=r"tiny/train/fig/03\.jpg cannot be (read|decoded)"):
        [row["image"].open() for row in TINY.load(announce=silent).train]
    broken.write_bytes(good)

    other = folder / "test" / "fig" / "02.WEBP"
    PIL.Image.new("RGB", (4, 4)).save(other, "WEBP")
    with pytest.raises(DataError, match=r"test/fig/02\.WEBP: pictures are read as \.png, \.jpg, \.jpeg; convert"):
        TINY.load(announce=silent)
    other.rename(other.with_name("notes.txt"))  # what is no picture by its name is left alone
    assert len(TINY.load(announce=silent).validation) == 6

    (folder / "train" / "grape").mkdir()
    with pytest.raises(DataError, match="train/grape: class without pictures"):
        TINY.load(announce=silent)
    write(folder / "train" / "grape", 2)
    with pytest.raises(DataError, match="train has 4 class folders; tiny has 3 classes"):
        TINY.load(announce=silent)
    (folder / "train" / "fig").rename(tmp_path / "away")
    with pytest.raises(DataError, match="class 'fig' is in one of train and test alone"):
        TINY.load(announce=silent)
    (folder / "test").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="test is missing"):
        TINY.load(announce=silent)


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "secret", 1)
    link = folder / "test" / "pear" / "02.png"
    link.symlink_to(tmp_path / "secret" / "00.png")
    with pytest.raises(DataError, match=r"pear/02\.png is a link that leads out of tiny"):
        TINY.load(announce=silent)
    link.unlink()
    link.symlink_to(folder / "test" / "pear" / "00.png")  # within the folder: as good as a copy
    assert len(TINY.load(announce=silent).validation) == 7
    link.unlink()
    (folder / "train" / "fig").rename(tmp_path / "fig")
    (folder / "train" / "fig").symlink_to(tmp_path / "fig")
    with pytest.raises(DataError, match="leads out of tiny"):
        TINY.load(announce=silent)


def test_a_picture_that_went_away_is_named(folder: Path) -> None:
    data = TINY.load(announce=silent)
    (folder / "train" / "fig" / "00.jpg").unlink()
    with pytest.raises(DataError, match=r"tiny/train/fig/00\.jpg cannot be read"):
        _ = data.fingerprint


def hub(columns: tuple[str, str] = ("image", "label"), labels: tuple[int, ...] = (0, 1, 2), splits=("train", "test")):
    """A data set as `datasets.load_dataset` gives it."""
    draw = np.random.default_rng(0)
    features = Features({columns[0]: Image(), columns[1]: ClassLabel(names=list(FRUIT)), "coarse": Value("int64")})
    pictures = [{"bytes": grating(label, 3, draw), "path": None} for label in labels]
    rows = {columns[0]: pictures, columns[1]: list(labels), "coarse": [0] * len(labels)}
    return DatasetDict({split: Dataset.from_dict(rows, features=features) for split in splits})


def test_a_data_set_of_the_hub_becomes_rows() -> None:
    named = replace(TINY, columns=("img", "fine_label"))
    train, test = named._of_hub(hub(("img", "fine_label")))
    assert [row["class"] for row in train] == list(FRUIT) and len(test) == 3
    assert train[0]["image"].open().size == (32, 32)
    train, test = POOL._of_hub(hub(splits=("train", "validation", "test")))
    assert len(train) == 9 and test == []
    assert len({row["image"].name for row in train}) == 9


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (hub(splits=("train",)), "someone/tiny: split 'test' is missing; the data set has 'train'"),
        (hub(("img", "label")), "column 'image' is missing; there are 'img', 'label', 'coarse'"),
        (hub(labels=(0, 1, -1)), "someone/tiny train row 3: label -1 is not an integer from 0 to 2"),
    ],
)
def test_a_data_set_of_another_shape_is_refused(loaded: DatasetDict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TINY._of_hub(loaded)


def test_an_empty_split_of_the_hub_is_refused() -> None:
    loaded = hub()
    loaded["test"] = loaded["test"].select([])
    with pytest.raises(DataError, match="someone/tiny test: no pictures; clear the cache"):
        TINY._of_hub(loaded)


def test_the_hub_is_asked_after_the_folder_and_before_stripes_are_drawn(
    no_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded, source in ((hub(), "Hugging Face Hub someone/tiny"), (None, "generated pictures")):
        monkeypatch.setattr("vbank.tasks.images.hub_splits", lambda path, loaded=loaded: loaded)
        assert TINY.load(announce=silent).source.startswith(source)


def test_a_checkpoints_own_head_gives_way_to_a_fresh_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=16, num_labels=5, **sizes)
    stored = ViTForImageClassification(config)
    stored.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, processor = TINY.model(ModelSettings(str(tmp_path)))
    assert model.classifier.weight.shape == (3, 16) and processor.size["height"] == 32
    assert torch.equal(model.vit.layernorm.weight, stored.vit.layernorm.weight)


def test_damaged_bytes_of_the_hub_are_named() -> None:
    loaded = hub()
    cut = [
        {"bytes": entry["bytes"][:60], "path": None}
        for entry in loaded["train"].cast_column("image", Image(decode=False))["image"]
    ]
    features = loaded["train"].features
    loaded["train"] = Dataset.from_dict({"image": cut, "label": [0, 1, 2], "coarse": [0, 0, 0]}, features=features)
    train, _ = TINY._of_hub(loaded)
    with pytest.raises(DataError, match="someone/tiny train row 1 cannot be decoded"):
        train[0]["image"].open()


def test_pictures_of_any_mode_come_as_rgb(folder: Path) -> None:
    PIL.Image.new("L", (5, 4), 7).save(folder / "train" / "fig" / "90.png")
    PIL.Image.new("RGBA", (5, 4), (1, 2, 3, 4)).save(folder / "train" / "fig" / "91.png")
    PIL.Image.new("P", (5, 4)).save(folder / "train" / "fig" / "92.png")
    opened = [row["image"].open() for row in TINY.load(announce=silent).train if row["class"] == "fig"][-3:]
    assert [(picture.mode, picture.size) for picture in opened] == [("RGB", (5, 4))] * 3


def test_the_last_resort_is_labelled_and_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)
    lines: list[str] = []
    data, again = TINY.load(announce=lines.append), TINY.load("generated", announce=silent)
    assert "generated pictures (a stand-in, not the real data set): 36 train, 12 to measure" in lines[0]
    assert data.fingerprint == again.fingerprint
    assert len({row["image"].digest for row in data.train + data.validation}) == 48
    with pytest.raises(DataError, match="did you mean 'local'"):
        TINY.load("locale", announce=silent)
    with pytest.raises(DataError, match="set VBANK_DATA to a folder with images/tiny"):
        TINY.load("local", announce=silent)
    with pytest.raises(DataError, match="the Hub does not answer"):
        TINY.load("hub", announce=silent)


def test_a_vit_reads_pictures_one_at_a_time_without_torchvision(folder: Path, vit: str, capfd: Any) -> None:
    code = "import sys, vbank.tasks.images; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    model, processor = TINY.model(ModelSettings(vit))
    assert model.config.num_labels == 3 and model.classifier.out_features == 3
    data = TINY.load(announce=silent)
    encoded = TINY.encode(data.validation, processor, settings())
    assert isinstance(encoded, Pixels) and len(encoded) == 6
    batch = TINY.collator(processor)([encoded[index] for index in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].abs().max() <= 1 and batch["labels"].tolist() == [0, 0, 1, 1]
    logits = model(pixel_values=batch["pixel_values"]).logits
    assert TINY.score(logits, batch["labels"])[TINY.metric] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "torchvision" not in "".join(capfd.readouterr())


def test_encoding_opens_only_what_is_asked_for(folder: Path, vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened, real = TINY.load(announce=silent), [], Picture.open
    monkeypatch.setattr(Picture, "open", lambda picture: opened.append(picture.name) or real(picture))
    encoded = TINY.encode(data.train, TINY.model(ModelSettings(vit))[1], settings())
    assert opened == []
    encoded[3]
    assert opened == [data.train[3]["image"].name]


def test_the_four_tasks_are_as_the_paper_has_them() -> None:
    assert {task.name: task.classes for task in (CIFAR100, FOOD101, FLOWERS102, RESISC45)} == {
        "cifar100": 100,
        "food101": 101,
        "flowers102": 102,
        "resisc45": 45,
    }
    assert [task.pooled for task in (CIFAR100, FOOD101, FLOWERS102, RESISC45)] == [False, False, False, True]
    for task in (CIFAR100, FOOD101, FLOWERS102, RESISC45, DIGITS_TURNED):
        assert tasks.find(task.name) is task
    with pytest.raises(DataError, match="did you mean 'flowers102'"):
        tasks.find("flowers")


def test_digits_turned_as_a_task() -> None:
    data = DIGITS_TURNED.load(announce=silent)
    assert len(data.train) == 1000 and len(data.validation) == 797
    drawn = DIGITS_TURNED.select(data, TaskSettings("digits-turned", samples_per_class=10))
    assert Counter(row["label"] for row in drawn.train) == dict.fromkeys(range(10), 10)
    torch.manual_seed(5)
    model, processor = DIGITS_TURNED.model(ModelSettings("digits-vit"))
    encoded = DIGITS_TURNED.encode(data.validation, processor, settings())
    assert torch.equal(stack(encoded)["pixel_values"], digits.digits(turned=True).test[0])
    torch.manual_seed(5)
    again, _ = DIGITS_TURNED.model(ModelSettings("digits-vit"))
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert not torch.equal(again.classifier.weight, digits.pretrained().classifier.weight)
    assert DIGITS_TURNED.load(announce=silent).fingerprint == data.fingerprint != drawn.fingerprint


def test_the_runner_draws_as_the_recipe_says() -> None:
    from vbank.run import load_data

    recipe = recipes.load("vera-images/cifar100-base-vera", ["task.subset_seed=3"], scale="cpu")
    data = load_data(recipe, announce=None)
    assert Counter(row["label"] for row in data.train) == dict.fromkeys(range(10), 10)
    assert data.train == DIGITS_TURNED.select(DIGITS_TURNED.load(announce=None), recipe.task).train
    assert len(data.validation) == 797


def test_a_model_for_other_pictures_is_refused(vit: str) -> None:
    with pytest.raises(DataError, match="reads 8 x 8 digits, not tiny"):
        TINY.model(ModelSettings("digits-vit"))
    with pytest.raises(DataError, match="needs model 'digits-vit'"):
        DIGITS_TURNED.model(ModelSettings(vit))
    with pytest.raises(DataError, match="comes with scikit-learn"):
        DIGITS_TURNED.load("hub", announce=silent)
