"""Where rows come from: a local folder, the Hugging Face Hub, or a grammar, tried in this order."""

from __future__ import annotations

import functools
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, object]

HUB_SECONDS = 3.0  # a Hub that does not answer within this counts as absent


class DataError(ValueError):
    """A data set that cannot be read; the message names the file, the line and what is wrong there."""


def read_jsonl(path: Path, columns: Sequence[str], classes: int) -> list[Row]:
    """Rows of a JSON-lines file: every column in `columns` a non-empty string, `label` an integer in 0..classes-1.

    Raises DataError with file and line for broken JSON, a missing field, an empty text or a label out of range,
    and with the file alone when it holds no row.
    """
    rows: list[Row] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); mend or remove this line") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object like {{...}}, found {type(row).__name__}")
            problem = row_problem(row, columns, classes)
            if problem:
                raise DataError(f"{path}:{number}: {problem}")
            rows.append({key: row[key] for key in (*columns, "label")})
    if not rows:
        raise DataError(f"{path}: no rows; expected one JSON object a line with {', '.join((*columns, 'label'))}")
    return rows


def row_problem(row: Row, columns: Sequence[str], classes: int) -> str | None:
    """What is wrong with a row, in words; None if nothing is."""
    for column in (*columns, "label"):
        if column not in row:
            return f"field {column!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}"
    for column in columns:
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            return f"field {column!r} must be a non-empty string, found {text!r}"
    label = row["label"]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        return f"label {label!r} is not an integer from 0 to {classes - 1}"
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


def load_local(relative: str, columns: Sequence[str], classes: int) -> dict[str, list[Row]] | None:
    """The splits train and validation of a local folder; None when there is no such folder."""
    folder = local_folder(relative)
    if folder is None:
        return None
    splits = {}
    for split in ("train", "validation"):
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise DataError(f"{path} is missing; {relative} needs train.jsonl and validation.jsonl")
        splits[split] = read_jsonl(path, columns, classes)
    return splits


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


def load_hub(
    path: str, subset: str | None, rename: dict[str, str], columns: Sequence[str], classes: int
) -> dict[str, list[Row]] | None:
    """The splits train and validation of a Hub data set; None when it cannot be had.

    A Hub that does not answer gives None within seconds, cached copies or not: `datasets` looks into its cache only
    after half a minute of retries. With HF_HUB_OFFLINE=1 it reads the cached copy at once.

    Raises DataError for a row of the data set that is not as `columns` and `classes` say.
    """
    if not offline() and not hub_reachable():
        return None
    import datasets

    try:
        loaded = datasets.load_dataset(path, subset)
    except (OSError, datasets.exceptions.DatasetsError):  # no cached copy, or the connection broke
        return None
    except ValueError as error:  # another configuration is cached, this one is not
        if "Couldn't find cache" not in str(error):
            raise
        return None
    splits: dict[str, list[Row]] = {}
    for split in ("train", "validation"):
        splits[split] = []
        for number, raw in enumerate(loaded[split], start=1):
            row = {rename.get(key, key): value for key, value in raw.items()}
            problem = row_problem(row, columns, classes)
            if problem:
                raise DataError(f"{path} {subset or ''} {split} row {number}: {problem}")
            splits[split].append({key: row[key] for key in (*columns, "label")})
    return splits
