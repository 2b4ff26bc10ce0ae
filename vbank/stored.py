"""What stands in the folder of an adapter, checked before anything is built from it.

A folder holds one safetensors file and one JSON, `adapter.json`, that names it. Nothing is ever unpickled. Both may be
links, as in the Hub's cache: what counts is the SHA-256 that the JSON gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vbank.methods import METHODS, Config, Method, Site
from vbank.methods.vb_lora import VBLoRA
from vbank.methods.vera import VeRA, VeRAMethod, largest

FORMAT_VERSION = 2  # 1 lacks the key `stored`: its numbers have the adapter's own type
DESCRIPTION = "adapter.json"
TENSORS = re.compile(r"adapter-[0-9a-f]{16}\.safetensors")
FORMS = ("compact", "resumable")
HEAD = "head."
FROZEN = "frozen."
HALF = "float16"
DRAWN = 2**24  # numbers, 64 MiB
KEYS: dict[str, Any] = {
    "format_version": int,
    "method": str,
    "config": dict,
    "form": str,
    "dtype": str,
    "stored": str,
    "targets": (str, list),
    "train": list,
    "sites": dict,
    "record": dict,
    "tensors": str,
    "sha256": str,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class CheckpointError(ValueError):
    """A file that cannot be loaded: what is wrong with it and what to do."""


@dataclass(frozen=True)
class Stored:
    """An adapter as its folder describes it; the tensors fit the settings and the sites.

    Args:
        folder: where it stands.
        config: the method.
        sites: the linear maps that it adapts.
        form: "compact" or "resumable".
        dtype: type of the adapter's parameters.
        targets: as given to `vbank.attach`.
        train: the same.
        record: what `Method.verify` compares.
        tensors: what `Method.read` takes, by name; its numbers are of type `dtype`, whatever type the file has.
        frozen: VeRA's frozen matrices, where the file holds them.
        head: values of the model's own trained parameters, by their names in the model.
    """

    folder: Path
    config: Config
    sites: tuple[Site, ...]
    form: str
    dtype: torch.dtype
    targets: str | list[str]
    train: list[str]
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    frozen: dict[str, Tensor]
    head: dict[str, Tensor]


def read(folder: Path) -> Stored:
    """Read a folder that `vbank.save` wrote. Where a save ends meanwhile, this is what it wrote.

    Raises:
        CheckpointError: the files are missing, damaged, of an unknown version, or hold values out of range.
    """
    description, tensors = _read_files(folder)
    config = _read_config(description, folder)
    sites = tuple(Site(key, *shape) for key, shape in description["sites"].items())
    head = {k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)}
    own = {k: v for k, v in tensors.items() if not k.startswith(HEAD)}
    dtype, form = DTYPES[description["dtype"]], description["form"]
    _check_values(config, sites, own, form, dtype, DTYPES[description["stored"]], folder)
    frozen = {k.removeprefix(FROZEN): v for k, v in own.items() if k.startswith(FROZEN)}
    own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in own.items() if not k.startswith(FROZEN)}
    kept = {key: description[key] for key in ("targets", "train", "record")}
    return Stored(folder, config, sites, form, dtype, tensors=own, frozen=frozen, head=head, **kept)


def _read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the tensors that it names, of one save: one that ends in between removes the former tensors."""
    while True:
        written = _written(folder)
        description = _read_description(folder)
        try:
            return description, _read_tensors(folder, description)
        except FileNotFoundError:
            if _written(folder) == written:  # the JSON is the same file still, so its tensors are lost
                raise CheckpointError(
                    f"{folder} lacks {description['tensors']}, which {DESCRIPTION} names; copy both files"
                ) from None


def _written(folder: Path) -> tuple[int, int] | None:
    """Tells one writing of the JSON from the next, also where both have the same content."""
    try:
        found = (folder / DESCRIPTION).stat()
    except OSError:  # `_read_description` says what is wrong
        return None
    return found.st_ino, found.st_mtime_ns


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds {DESCRIPTION}")
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no {DESCRIPTION}; give a folder that vbank.save wrote")
    try:
        description = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; restore it from a copy") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{file} holds a {type(description).__name__}, not an object; restore it from a copy")
    version = description.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vbank reads versions 1 to {FORMAT_VERSION}: update vbank, or"
            " save again with this version"
        )
    _check_keys(description, set(KEYS) - ({"stored"} if version == 1 else set()), file)
    description.setdefault("stored", description["dtype"])
    for key, kind in KEYS.items():
        value = description[key]
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise CheckpointError(f"{file}: {key} is {value!r}, which is not of its type; restore it from a copy")
    if description["form"] not in FORMS:
        raise CheckpointError(f"{file}: form is {description['form']!r}; it must be one of {', '.join(FORMS)}")
    if description["dtype"] not in DTYPES:
        raise CheckpointError(f"{file}: dtype is {description['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    if description["stored"] not in (description["dtype"], HALF):
        raise CheckpointError(
            f"{file}: stored is {description['stored']!r}; it must be {description['dtype']}, as dtype is, or {HALF}"
        )
    if not TENSORS.fullmatch(description["tensors"]):
        raise CheckpointError(f"{file}: tensors is {description['tensors']!r}, which is no name that vbank.save writes")
    for key, shape in description["sites"].items():
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise CheckpointError(f"{file}: site {key!r} has shape {shape!r}; it must be [in_features, out_features]")
    if not description["sites"]:
        raise CheckpointError(f"{file}: sites is empty, so there is nothing to adapt")
    return description


def check_record(stored: Stored, method: Method) -> None:
    """Compare the file's record, such as VeRA's checksum, with what this machine made.

    Raises:
        CheckpointError: they differ.
    """
    _check_keys(stored.record, set(method.record()), f"{stored.folder / DESCRIPTION}: record")
    try:
        method.verify(stored.record)
    except ValueError as error:
        raise CheckpointError(f"{stored.folder}: {error}") from error


def _check_keys(found: dict[str, Any], wanted: set[str], where: Path | str) -> None:
    missing, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown keys {', '.join(extra)}"] * bool(extra)
        raise CheckpointError(f"{where} {' and '.join(said)}; restore it from a copy or save again")


def _read_config(description: dict[str, Any], folder: Path) -> Config:
    where = f"{folder / DESCRIPTION}: config"
    kind = METHODS.get(description["method"])
    if kind is None:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: method is {description['method']!r}; it must be one of {', '.join(METHODS)}"
        )
    _check_keys(description["config"], {f.name for f in fields(kind)}, where)
    try:
        return kind(**description["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _read_tensors(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    file = folder / description["tensors"]
    if not file.is_file():
        raise FileNotFoundError(file)
    blob = file.read_bytes()
    if hashlib.sha256(blob).hexdigest() != description["sha256"]:
        raise CheckpointError(
            f"{file} is damaged: its {len(blob):,} bytes have another SHA-256 than {DESCRIPTION} says"
        )
    try:
        return safetensors.torch.load(blob)
    except Exception as error:  # safetensors raises its own kinds
        raise CheckpointError(f"{file} is no safetensors file: {error}") from error


def _check_values(
    config: Config,
    sites: tuple[Site, ...],
    tensors: dict[str, Tensor],
    form: str,
    dtype: torch.dtype,
    stored: torch.dtype,
    folder: Path,
) -> None:
    """Compare the file's tensors with what these settings make, on the meta device, before anything is allocated."""
    if isinstance(config, VeRA) and not any(key.startswith(FROZEN) for key in tensors):
        check_drawn(config, sites, folder / DESCRIPTION, "frozen=True")
    try:
        meta: Method = config.build(sites, dtype=dtype, device="meta")
        wanted = dict(meta.compact_tensors() if form == "compact" else meta.tensors())
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}") from error
    wanted = {key: value.to(stored) if value.is_floating_point() else value for key, value in wanted.items()}
    if isinstance(meta, VeRAMethod) and any(key.startswith(FROZEN) for key in tensors):
        wanted |= {FROZEN + key: value for key, value in meta.frozen_tensors().items()}
    _check_keys(tensors, set(wanted), f"{folder}: the tensor file")
    for key, want in wanted.items():
        value = tensors[key]
        if value.shape != want.shape or value.dtype != want.dtype:
            raise CheckpointError(
                f"{folder}: {key} is {value.dtype} {tuple(value.shape)}; these settings and layers need {want.dtype}"
                f" {tuple(want.shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{folder}: {key} holds values that are not finite; save the adapter again")
    if isinstance(config, VBLoRA) and form == "compact":
        check_choice(config, tensors["indices"].long(), tensors["weights"], folder)


def may_draw(config: VeRA, sites: Sequence[Site]) -> tuple[int, int]:
    """How many numbers VeRA's frozen matrices have, and how many a file may have drawn from its seed.

    Without the matrices, a file of `train_d=False` holds no tensor of the rank's size: any number would stand for it.
    The limit is twice the weights of the adapted layers, for whose model there is room, and 64 MiB in any case. The
    paper's rank of 1024 for 24 layers of 768 (Table 8) makes a pair of a ninth of their weights. `vbank.save` stores
    larger ones, so no file of its own is refused.
    """
    pairs = [largest(sites)] if config.shared else [(s.in_features, s.out_features) for s in sites]
    weights = sum(s.in_features * s.out_features for s in sites)
    return config.rank * sum(map(sum, pairs)), max(DRAWN, 2 * weights)


def check_drawn(config: VeRA, sites: Sequence[Site], file: Path, way: str) -> None:
    """Refuse a file that would have this machine draw more than `may_draw` lets it; `way` has it saved with them.

    Raises:
        CheckpointError: it would.
    """
    numbers, limit = may_draw(config, sites)
    if numbers > limit:
        raise CheckpointError(
            f"{file}: rank is {config.rank:,}, whose frozen matrices of {numbers:,} numbers the file does not hold; for"
            f" these layers at most {limit:,} are drawn from a seed: save the adapter with {way}, which stores them"
        )


def check_choice(config: VBLoRA, indices: Tensor, weights: Tensor, folder: Path) -> None:
    """Refuse a choice that no selection makes. indices: (N, k); weights: (N, k - 1)."""
    largest_index = int(indices.max())
    if largest_index >= config.num_vectors:
        raise CheckpointError(
            f"{folder}: index {largest_index} points outside the bank of {config.num_vectors} vectors; the file is"
            " damaged"
        )
    if (indices.sort(dim=-1).values.diff(dim=-1) == 0).any():
        raise CheckpointError(f"{folder}: a sub-vector names one bank vector twice; the file is damaged")
    sums = weights.float().sum(dim=-1)
    if (weights < 0).any() or (sums > 1.0 + torch.finfo(weights.dtype).eps).any():
        raise CheckpointError(f"{folder}: the weights of a sub-vector are no shares of one; the file is damaged")
