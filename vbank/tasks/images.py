"""Image classification from a few labelled pictures a class: VeRA's four data sets (its section 4.4), and digits here.

A run trains on `task.samples_per_class` pictures of every class, drawn by `task.subset_seed`, and measures on the whole
test set; RESISC45 has none, there all remaining pictures measure. Pictures stay encoded until a batch needs them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vbank.suggestions import unknown
from vbank.tasks import digits
from vbank.tasks.base import Announce, Row, Task, TaskData, hold_out
from vbank.tasks.pictures import Picture, grating, picture_files, rows_of
from vbank.tasks.sources import DataError, hub_splits, label_problem, local_folder, split_of
from vbank.tasks.weights import load_image_classifier

if TYPE_CHECKING:
    from vbank.recipes import ModelSettings, TaskSettings

SOURCES = ("any", "local", "hub", "generated")


class Pixels(torch.utils.data.Dataset[Row]):
    """Rows as a ViT takes them, each decoded, resized and normalised when it is asked for, and then forgotten."""

    def __init__(self, rows: Sequence[Row], processor: Any) -> None:
        self.rows, self.processor = rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        pixels = self.processor(row["image"].open(), return_tensors="pt")["pixel_values"][0]  # (3, height, width)
        return {"pixel_values": pixels, "labels": row["label"]}


def stack(rows: list[Row]) -> dict[str, Tensor]:
    """A batch: pixel_values (batch, channels, height, width) and labels (batch,)."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def few(rows: Sequence[Row], samples: int, seed: int, classes: int) -> tuple[list[Row], list[Row]]:
    """`samples` rows of every class, fixed by the seed, and all the others.

    The drawn rows come in rounds, one of every class a round, so that a part held out of their end is balanced too.
    The others keep their order.

    Raises:
        DataError: a class that has fewer rows; the message names it.
    """
    members: list[list[int]] = [[] for _ in range(classes)]
    for index, row in enumerate(rows):
        members[row["label"]].append(index)
    for label, found in enumerate(members):
        if len(found) < samples:
            name = rows[found[0]].get("class", label) if found else label
            raise DataError(
                f"class {name!r} has {len(found)} pictures to train on, fewer than task.samples_per_class = {samples}; "
                "add pictures or lower it"
            )
    draw = random.Random(seed)
    orders = [draw.sample(found, samples) for found in members]
    rounds = [draw.sample(range(classes), classes) for _ in range(samples)]
    chosen = [orders[label][turn] for turn, labels in enumerate(rounds) for label in labels]
    taken = set(chosen)
    return [rows[index] for index in chosen], [row for index, row in enumerate(rows) if index not in taken]


class FewShot(Task):
    """What the tasks of this module share: a balanced draw of training pictures, and accuracy."""

    metric = "accuracy"
    classes: int
    pooled: bool = False  # no test set of its own: what is not drawn for training measures

    def select(self, data: TaskData, settings: TaskSettings) -> TaskData:
        """The training rows of a run: `settings.samples_per_class` of every class; 0 takes `settings.train_size`.

        Raises:
            DataError: a class with too few rows, more held out than drawn, settings that exclude each other, or a task
                without test set and without a number of samples.
        """
        samples = settings.samples_per_class
        if samples and settings.train_size:
            raise DataError("task.train_size and task.samples_per_class exclude each other; set one of them to 0")
        if self.pooled and not samples:
            raise DataError(
                f"{self.name} has no test set; set task.samples_per_class, and the pictures not drawn measure"
            )
        if not samples:
            return hold_out(data, settings.train_size, settings.subset_seed, settings.holdout)
        drawn, others = few(data.train, samples, settings.subset_seed, self.classes)
        if not 0 <= settings.holdout < len(drawn):
            raise DataError(f"holdout of {settings.holdout:,} leaves nothing of {len(drawn):,} pictures; take less")
        if settings.holdout:
            return replace(data, train=drawn[: -settings.holdout], validation=drawn[-settings.holdout :])
        return replace(data, train=drawn, validation=others if self.pooled else data.validation)

    def collator(self, processor: Any) -> Callable[[list[Row]], dict[str, Tensor]]:
        """All pictures of a task have one size: a batch is a stack."""
        return stack

    def score(self, predictions: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of pictures whose class has the largest logit."""
        return {self.metric: (predictions.argmax(dim=-1) == labels).double().mean().item()}


def check_source(source: str) -> None:
    """Raises DataError for a source that is none of `SOURCES`."""
    if source not in SOURCES:
        raise DataError(unknown("source", source, SOURCES))


def tell(task: Task, data: TaskData, announce: Announce | None) -> TaskData:
    """Announces where the rows are from and how many there are."""
    if announce:
        counts = f"{len(data.train):,} train, {len(data.validation):,} to measure"
        announce(f"data: {task.name} from {data.source}: {counts}")
    return data


@dataclass(frozen=True)
class PictureTask(FewShot):
    """Picture files in folders or on the Hub.

    Args:
        name: of the task; pictures lie in images/<name>/{train,test}/<class>/ under VBANK_DATA.
        hub: data set on the Hub; it is stored as Parquet and needs no loading script.
        classes: how many.
        splits: on the Hub, the parts to train on and to measure on.
        columns: on the Hub, the picture and its label.
        pooled: the splits, all to train on, are one collection without a test set.
    """

    name: str
    hub: str
    classes: int
    splits: tuple[tuple[str, ...], tuple[str, ...]] = (("train",), ("test",))
    columns: tuple[str, str] = ("image", "label")
    pooled: bool = False

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """Finds the pictures in VBANK_DATA, on the Hub, or draws a stand-in; decodes none.

        Raises:
            DataError: an unknown or absent source, a class folder without pictures, a file that is no picture, a link
                that leads out of the folder, or a label or column that should not be.
        """
        check_source(source)
        found, used = None, ""
        if source in ("any", "local"):
            found, used = self._local(), f"local folder images/{self.name} in VBANK_DATA"
        if found is None and source in ("any", "hub"):
            found, used = self._hub(), f"Hugging Face Hub {self.hub}"
        if found is None and source in ("any", "generated"):
            found, used = self._generated(), "generated pictures (a stand-in, not the real data set)"
        if found is None:
            way = (
                f"set VBANK_DATA to a folder with images/{self.name}"
                if source == "local"
                else "the Hub does not answer"
            )
            raise DataError(f"task {self.name!r}: source {source!r} is absent; {way}, or use source 'any'")
        train, test = found
        if self.pooled:
            train, test = train + test, []
        return tell(self, TaskData(self.name, used, train, test, key=fingerprint_of), announce)

    def model(self, settings: ModelSettings) -> tuple[nn.Module, Any]:
        """A ViT with a fresh head of `classes` outputs, and its image processor."""
        if settings.name == "digits-vit":
            raise DataError(f"model 'digits-vit' reads 8 x 8 digits, not {self.name}; use task 'digits-turned'")
        return load_image_classifier(settings, self.classes)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> Pixels:
        """Decodes when a batch is asked for."""
        return Pixels(rows, processor)

    def _local(self) -> tuple[list[Row], list[Row]] | None:
        root = local_folder(f"images/{self.name}")
        if root is None:
            return None
        parts: list[list[Row]] = []
        known: list[str] | None = None
        for split in ("train", "test"):
            folder = root / split
            if self.pooled and split == "test" and not folder.is_dir():
                parts.append([])
                continue
            files = picture_files(folder, root.resolve())
            if len(files) != self.classes:
                raise DataError(f"{folder} has {len(files)} class folders; {self.name} has {self.classes} classes")
            if known is not None and list(files) != known:
                odd = sorted(set(files) ^ set(known))[0]
                raise DataError(f"{root}: class {odd!r} is in one of train and test alone; both need the same classes")
            known = list(files)
            paths = [(path, label) for label, name in enumerate(files) for path in files[name]]
            entries = [{"path": str(path), "bytes": None} for path, _ in paths]
            names = [str(path.relative_to(root.parent.parent)) for path, _ in paths]
            parts.append(rows_of(entries, [label for _, label in paths], known, names))
        return parts[0], parts[1]

    def _hub(self) -> tuple[list[Row], list[Row]] | None:
        loaded = hub_splits(self.hub)
        return None if loaded is None else self._of_hub(loaded)

    def _of_hub(self, loaded: Any) -> tuple[list[Row], list[Row]]:
        """Rows of a loaded Hub data set; apart from `_hub`, so that a test can hand in one made on the spot."""
        from datasets import Image

        image, label = self.columns
        parts = []
        for splits in self.splits:
            rows: list[Row] = []
            for split in splits:
                part = split_of(loaded, split, self.hub)
                for column in self.columns:
                    if column not in part.column_names:
                        has = ", ".join(map(repr, part.column_names))
                        raise DataError(f"{self.hub} {split}: column {column!r} is missing; there are {has}")
                names = getattr(part.features[label], "names", None) or [str(n) for n in range(self.classes)]
                encoded = part.select_columns([image]).rename_columns({image: "image"})
                encoded = encoded.cast_column("image", Image(decode=False))
                for index, value in enumerate(part[label][:]):
                    where = f"{self.hub} {split} row {index + 1}"
                    if problem := label_problem(value, self.classes):
                        raise DataError(f"{where}: {problem}")
                    rows.append({"image": Picture(encoded, index, where), "label": value, "class": names[value]})
            if splits and not rows:
                raise DataError(f"{self.hub} {splits[0]}: no pictures; clear the cache of this data set and load again")
            parts.append(rows)
        return parts[0], parts[1]

    def _generated(self) -> tuple[list[Row], list[Row]]:
        names = [f"grating {number}" for number in range(self.classes)]
        parts = []
        for split, samples in (("train", 12), ("test", 4)):
            labels = [label for _ in range(samples) for label in range(self.classes)]
            draw = np.random.default_rng(len(split))
            entries = [{"path": None, "bytes": grating(label, self.classes, draw)} for label in labels]
            where = [f"generated {self.name} {split} picture {number + 1}" for number in range(len(labels))]
            parts.append(rows_of(entries, labels, names, where))
        return parts[0], parts[1]


def fingerprint_of(row: Row) -> list[Any]:
    """What of a row tells it from others."""
    return [row["label"], row["image"].digest]


class DigitsTurned(FewShot):
    """scikit-learn's digits turned by 90 degrees, for the small ViT of `vbank.tasks.digits` that reads upright ones.

    1,000 digits to draw from, 797 to measure; they come with scikit-learn, so there is one source and no stand-in.
    """

    name = "digits-turned"
    classes = 10

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """The digits as rows of 8 x 8 numbers from -1 to 1; raises DataError for a source that they are not in."""
        check_source(source)
        if source not in ("any", "local"):
            raise DataError(f"task {self.name!r} comes with scikit-learn, not from source {source!r}; use 'any'")
        data = digits.digits(turned=True)
        train, test = (
            [
                {"pixels": pixels[0].tolist(), "label": label}
                for pixels, label in zip(images, labels.tolist(), strict=True)
            ]
            for images, labels in (data.train, data.test)
        )
        return tell(self, TaskData(self.name, "scikit-learn's scanned digits", train, test), announce)

    def model(self, settings: ModelSettings) -> tuple[nn.Module, None]:
        """The ViT that was trained here on upright digits, with a fresh head from torch's global generator."""
        if settings.name != "digits-vit":
            raise DataError(
                f"task {self.name!r} needs model 'digits-vit', which reads 8 x 8 pixels, not {settings.name!r}"
            )
        return load_image_classifier(settings, self.classes)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> list[Row]:
        """Tensors (1, 8, 8); 1,797 digits are small enough to hold."""
        return [{"pixel_values": torch.tensor(row["pixels"])[None], "labels": row["label"]} for row in rows]


CIFAR100 = PictureTask("cifar100", "uoft-cs/cifar100", 100, columns=("img", "fine_label"))
# Its 25,250 test pictures are called "validation" on the Hub.
FOOD101 = PictureTask("food101", "ethz/food101", 101, splits=(("train",), ("validation",)))
# 1,020 pictures to train on, ten a class: with 10 samples a class every draw is the same but for its order.
FLOWERS102 = PictureTask("flowers102", "dpdl-benchmark/oxford_flowers102", 102)
# 31,500 pictures; the Hub's cut into three parts is not the papers'.
RESISC45 = PictureTask("resisc45", "timm/resisc45", 45, splits=(("train", "validation", "test"), ()), pooled=True)
DIGITS_TURNED = DigitsTurned()
