"""Where rows come from: a local folder, the Hugging Face Hub, or a grammar, tried in this order."""

from __future__ import annotations

import functools
import json
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, object]
Labels = int | tuple[float, float] | None  # how many classes, the range of a score, or rows without a label

HUB_SECONDS = 3.0  # a Hub that does not answer within this counts as absent


class DataError(ValueError):
    """A data set that cannot be read; the message names the file, the line and what is wrong there."""


def read_jsonl(path: Path, columns: Sequence[str], labels: Labels) -> list[Row]:
    """Rows of a JSON-lines file with the fields `columns`, each a non-empty string, and `label` as `labels` says.

    A score comes back as a float; fields that nobody asked for are left out.
    Raises DataError with file and line for invalid UTF-8, broken JSON, a missing field, an empty text or a label out
    of range, and with the file alone when it holds no row.
    """
    rows: list[Row] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not valid UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1});"
                    " save the file as UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); mend or remove this line") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object like {{...}}, found {type(row).__name__}")
            rows.append(checked(row, columns, labels, f"{path}:{number}"))
    if not rows:
        raise DataError(f"{path}: no rows; expected one JSON object a line with {', '.join(_fields(columns, labels))}")
    return rows


def checked(row: Row, columns: Sequence[str], labels: Labels, where: str) -> Row:
    """The fields of a row that were asked for; DataError that begins with `where` if one is not as it should be."""
    fields = _fields(columns, labels)
    for field in fields:
        if field not in row:
            raise DataError(
                f"{where}: field {field!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}"
            )
    for column in columns:
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: field {column!r} must be a non-empty string, found {text!r}")
    kept = {field: row[field] for field in fields}
    if labels is not None:
        problem = label_problem(row["label"], labels)
        if problem:
            raise DataError(f"{where}: {problem}")
        if isinstance(labels, tuple):
            kept["label"] = float(row["label"])  # type: ignore[arg-type]  # label_problem has looked at it
    return kept


def _fields(columns: Sequence[str], labels: Labels) -> tuple[str, ...]:
    return tuple(columns) if labels is None else (*columns, "label")


def label_problem(label: object, labels: int | tuple[float, float]) -> str | None:
    """What is wrong with a label, in words; None if nothing is. NaN, infinity and truth values are no labels."""
    number = isinstance(label, (int, float)) and not isinstance(label, bool)
    if isinstance(labels, tuple):
        low, high = labels
        if not (number and math.isfinite(label) and low <= label <= high):  # type: ignore[arg-type, operator]
            return f"label {label!r} is not a number from {low:g} to {high:g}"
    elif not (isinstance(label, int) and number and 0 <= label < labels):
        hidden = "; -1 marks the hidden labels of a test split, take train and validation" if label == -1 else ""
        return f"label {label!r} is not an integer from 0 to {labels - 1}{hidden}"
    return None


def local_folder(relative: str) -> Path | None:
    """The folder `relative` under VBANK_DATA, or None when the variable is unset or holds no such folder."""
    root = os.environ.get("VBANK_DATA")
    if not root:
        return None
    if not Path(root).is_dir():
        raise DataError(f"VBANK_DATA={root} is not a folder; set it to your data folder or unset it")
    folder = Path(root) / relative
    return folder if folder.is_dir() else None


def load_local(
    relative: str, columns: Sequence[str], labels: Labels, splits: Sequence[str] = ("train", "validation")
) -> dict[str, list[Row]] | None:
    """The splits of a local folder, one file <split>.jsonl each; None when there is no such folder."""
    folder = local_folder(relative)
    if folder is None:
        return None
    rows = {}
    for split in splits:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise DataError(f"{path} is missing; {relative} needs {' and '.join(f'{name}.jsonl' for name in splits)}")
        rows[split] = read_jsonl(path, columns, labels)
    return rows


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network; then cached copies alone count."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def hub_reachable() -> bool:
    """Whether the Hub answers within seconds. Asked once a process and endpoint; HF_HUB_OFFLINE answers no."""
    if offline():
        return False
    return _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


@functools.cache
def _answers(endpoint: str) -> bool:
    verdict = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=HUB_SECONDS):
                verdict.append(True)
        except urllib.error.HTTPError as error:  # an answer, if only a redirect or a refusal of HEAD
            verdict.append(error.code < 500)
        except (OSError, ValueError):
            verdict.append(False)

    # Name resolution knows no timeout, so the question is put in a thread that may be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 1.0)
    return bool(verdict and verdict[0])


def _first_line(error: Exception) -> str:
    """What went wrong, with its cause: `datasets` hides a full disk behind a general message."""
    first, _, _ = f"{error}".strip().partition("\n")
    return f"{first}: {error.__cause__}" if error.__cause__ is not None else first


def hub_splits(path: str, subset: str | None = None, revision: str | None = None) -> Mapping[str, Any] | None:
    """The splits of a Hub data set as `datasets` gives them; None when no Hub answers and offline none is cached.

    A Hub that does not answer gives None within seconds, cached copies or not: `datasets` looks into its cache only
    after half a minute of retries. With HF_HUB_OFFLINE=1 it reads the cached copy at once.

    Args:
        path: of the data set, owner/name.
        subset: its configuration.
        revision: a branch, such as the one that holds the data set as Parquet.

    Raises:
        DataError: the Hub answers and the data set still cannot be loaded (gated, moved, a broken download, a full
            disk), so that nothing else takes its place.
    """
    if not offline() and not hub_reachable():
        return None
    import datasets
    from huggingface_hub.errors import HTTPError

    name = f"{path} {subset}" if subset else path
    try:
        return datasets.load_dataset(path, subset, revision=revision)
    except (OSError, HTTPError, datasets.exceptions.DatasetsError) as error:
        if _absent(error, isinstance(error, datasets.exceptions.DatasetsError)):
            return None
        if "gated" in str(error) or "cannot be accessed" in str(error):
            way = "accept its terms on its page, then `hf auth login` or set HF_TOKEN"
        else:
            way = "try again" if isinstance(error, (ConnectionError, TimeoutError, HTTPError)) else "mend that"
        raise DataError(
            f"{name}: the data set could not be loaded ({type(error).__name__}: {_first_line(error)}); {way}, put the"
            " rows into VBANK_DATA, or ask for a stand-in with task.source='generated'"
        ) from error
    except ValueError as error:  # another configuration is cached, this one is not
        if "Couldn't find cache" not in str(error):
            raise
        return None


def _absent(error: Exception, answered: bool) -> bool:
    """Whether a failure means that no Hub is there, or offline no cached copy. `answered`: the Hub itself said no."""
    if offline():
        return isinstance(error, (ConnectionError, TimeoutError, FileNotFoundError))
    unreached = isinstance(error, ConnectionError) and "Couldn't reach" in str(error)  # not even the list of its files
    return unreached or (isinstance(error, FileNotFoundError) and not answered)  # a proxy answers for the Hub


def load_hub(
    path: str,
    subset: str | None,
    rename: dict[str, str],
    columns: Sequence[str],
    labels: Labels,
    splits: Sequence[str] = ("train", "validation"),
    revision: str | None = None,
) -> dict[str, list[Row]] | None:
    """The rows of a Hub data set, its columns renamed to ours; None where `hub_splits` gives none.

    Raises DataError as `hub_splits` does; for a split that is missing or empty; and for a row that is not as `columns`
    and `labels` say.
    """
    loaded = hub_splits(path, subset, revision)
    if loaded is None:
        return None
    name = f"{path} {subset}" if subset else path
    rows: dict[str, list[Row]] = {}
    for split in splits:
        rows[split] = [
            checked(
                {rename.get(key, key): value for key, value in raw.items()}, columns, labels, f"{name} {split} row {i}"
            )
            for i, raw in enumerate(split_of(loaded, split, name), start=1)
        ]
        if not rows[split]:
            raise DataError(f"{name}: split {split!r} has no rows; clear the cache of this data set and load it again")
    return rows


def split_of(loaded: Mapping[str, Any], split: str, name: str) -> Any:
    """One split of a loaded data set; DataError that begins with the data set's name if it has no such split."""
    if split not in loaded:
        raise DataError(f"{name}: split {split!r} is missing; the data set has {', '.join(map(repr, loaded))}")
    return loaded[split]
