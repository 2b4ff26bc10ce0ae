"""Pictures that stay encoded until they are needed: in class folders, in a data set, or drawn as a stand-in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vbank.tasks.base import Row
from vbank.tasks.sources import DataError

KINDS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a data set: its place, until someone opens it.

    Args:
        pictures: a `datasets.Dataset` whose column "image" is not decoded.
        index: the row.
        name: what messages call it.
    """

    pictures: Any
    index: int
    name: str

    def read(self) -> bytes:
        """The file as it is stored.

        Raises:
            DataError: the file is no longer there.
        """
        entry = self.pictures[self.index]["image"]
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        try:
            return Path(entry["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}; restore it or remove it") from None

    @property
    def digest(self) -> str:
        """Sixteen hex digits of the stored file."""
        return hashlib.sha256(self.read()).hexdigest()[:16]

    def open(self) -> Any:
        """The decoded picture, as PIL has it, in RGB.

        Raises:
            DataError: the file is cut off, damaged, or no picture.
        """
        import PIL.Image
        from datasets import Image

        stored = self.read()
        try:
            return Image(mode="RGB").decode_example({"bytes": stored, "path": None})
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"{self.name} cannot be decoded ({error}); restore it or remove it") from None


def rows_of(
    entries: list[dict[str, Any]], labels: list[int], classes: Sequence[str], names: Sequence[str]
) -> list[Row]:
    """Rows of encoded pictures, each {"path", "bytes"}, one of them None; `names` are for messages."""
    from datasets import Dataset, Features, Image

    pictures = Dataset.from_dict({"image": entries}, features=Features({"image": Image(decode=False)}))
    return [
        {"image": Picture(pictures, index, name), "label": label, "class": classes[label]}
        for index, (label, name) in enumerate(zip(labels, names, strict=True))
    ]


def picture_files(split: Path, root: Path) -> dict[str, list[Path]]:
    """The picture files of every class folder of a split, folders and files in the order of their names.

    Looks at the first bytes of each file and decodes none: a picture that is cut off is found when it is needed.

    Raises:
        DataError: no such folder, a class without pictures, a picture of another kind, a file that is no picture, or a
            link out of `root`.
    """
    import PIL.Image

    if not split.is_dir():
        raise DataError(f"{split} is missing; pictures lie in {split.name}/<class>/, as .png or .jpg")
    others = set(PIL.Image.registered_extensions()) - set(KINDS)
    found: dict[str, list[Path]] = {}
    for folder in sorted(split.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files = [path for path in entries if path.suffix.lower() in KINDS]
        for path in entries:  # a picture left out in silence would be missed by nobody
            if path.suffix.lower() in others:
                raise DataError(f"{path}: pictures are read as {', '.join(KINDS)}; convert or remove it")
        if not files:
            raise DataError(f"{folder}: class without pictures; add {' or '.join(KINDS)} files or remove the folder")
        for path in files:
            if not path.resolve().is_relative_to(root):
                raise DataError(f"{path} is a link that leads out of {root.name}; put a copy of the picture there")
            try:
                with PIL.Image.open(path):
                    pass
            except (OSError, SyntaxError) as error:
                reason = "not a picture" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
                raise DataError(f"{path} cannot be read ({reason}); restore it or remove it") from None
        found[folder.name] = files
    return found


def grating(label: int, classes: int, draw: np.random.Generator, size: int = 32) -> bytes:
    """A PNG of coloured stripes, whose direction and colour tell the class, under noise."""
    import PIL.Image

    angle, hue = np.pi * label / classes, 2 * np.pi * label / classes
    y, x = np.mgrid[:size, :size] / size
    wave = np.cos(2 * np.pi * (4 * (x * np.cos(angle) + y * np.sin(angle)) + draw.random()))  # (size, size)
    colour = 0.5 + 0.4 * np.cos(hue + np.array([0.0, 2.0, 4.0]))  # (3,)
    pixels = 128 + 80 * wave[..., None] * colour + draw.normal(0, 20, (size, size, 3))
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
