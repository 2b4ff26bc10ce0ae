"""Save and load adapters: one safetensors file and one JSON that names it. Nothing is ever unpickled.

A save writes the tensor file first, under its hash's name, and the JSON last, each aside and then renamed; whatever
happens in between, the folder holds the old adapter or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vbank.adapters import Adapter, adapter_of
from vbank.attachment import check_room, install
from vbank.methods import METHODS, Config, Method, Site
from vbank.methods.vb_lora import VBLoRA
from vbank.methods.vera import VeRAMethod
from vbank.targets import part_of

FORMAT_VERSION = 1
DESCRIPTION = "adapter.json"
FORMS = ("compact", "resumable")
HEAD = "head."
FROZEN = "frozen."
KEYS: dict[str, Any] = {
    "format_version": int,
    "method": str,
    "config": dict,
    "form": str,
    "dtype": str,
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


def save(
    model: nn.Module, path: str | os.PathLike[str], form: str = "compact", name: str | None = None, frozen: bool = False
) -> None:
    """Write an adapter and its trained head to a folder, replacing the one there in one step.

    For VB-LoRA, "compact" holds the bank, k indices of the smallest unsigned type and k - 1 weights a sub-vector (Li
    et al. 2024, section 3.4) and serves inference; "resumable" holds the logits too and can be trained on. For the
    other methods both forms hold the parameters. VeRA's frozen pair is stored as its seed and a checksum.

    Args:
        model: a model with an adapter.
        path: the folder; made if absent.
        form: "compact" or "resumable".
        name: the adapter; None takes the active one.
        frozen: also store VeRA's frozen matrices, for machines whose random generator differs.

    Raises:
        ValueError: no such adapter or form, values that are not finite, or `path` is a file. Nothing is written then.
        OSError: the disk is full or not writable. An adapter that was in the folder stays whole.
    """
    model, home, adapter = adapter_of(model, name)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save the adapter in")
    method: Method = adapter.method
    tensors = dict(method.compact_tensors() if form == "compact" else method.tensors())
    if frozen and isinstance(method, VeRAMethod):
        tensors |= {FROZEN + key: value for key, value in method.frozen_tensors().items()}
    acting = home.active == adapter.name and home.on
    heads = adapter.head(model) if acting else home.idle_heads[adapter.name]
    tensors |= {HEAD + key: value for key, value in heads.items()}
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)} of adapter {adapter.name!r} is not finite everywhere; nothing is saved")
    blob = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    description = {
        "format_version": FORMAT_VERSION,
        "method": adapter.config.method,
        "config": adapter.config.settings(),
        "form": form,
        "dtype": str(next(method.parameters()).dtype).removeprefix("torch."),
        "targets": adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        "train": adapter.train_modules,
        "sites": {s.name: [s.in_features, s.out_features] for s in adapter.sites},
        "record": method.record(),
        "tensors": f"adapter-{digest[:16]}.safetensors",
        "sha256": digest,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / str(description["tensors"]), blob)
    _replace(folder / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())
    for old in folder.glob("adapter-*.safetensors"):
        if old.name != description["tensors"]:
            old.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, then rename, so that `path` is never half-written."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".aside-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def load(model: nn.Module, path: str | os.PathLike[str], name: str = "default") -> Adapter:
    """Attach the adapter of a folder to a model: settings, layers and values come from the files.

    A VB-LoRA adapter loaded from the compact form gives the outputs that it was saved with and cannot be trained; one
    from the resumable form is bit for bit what was saved.

    Args:
        model: the base model that the adapter was trained on.
        path: the folder.
        name: what to call the adapter.

    Returns:
        The adapter, which is now the active one.

    Raises:
        CheckpointError: the files are missing, damaged, of an unknown version, or hold values out of range.
        ValueError: the model has other layers or shapes, or the name is taken. The model is then as it was.
    """
    folder = Path(path)
    description = _read_description(folder)
    config = _read_config(description, folder)
    tensors = _read_tensors(folder, description)
    check_room(model, name)
    sites = [Site(key, *shape) for key, shape in description["sites"].items()]
    _check_sites(model, sites, folder)
    head = {k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)}
    _check_head(model, head, folder)
    own = {k: v for k, v in tensors.items() if not k.startswith((HEAD, FROZEN))}
    frozen = {k.removeprefix(FROZEN): v for k, v in tensors.items() if k.startswith(FROZEN)}
    try:
        config.check(sites)
    except ValueError as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}") from error
    dtype = DTYPES[description["dtype"]]
    _check_values(config, sites, own, description["form"], dtype, folder)
    parts = [part for part in (part_of(model, site.name) for site in sites) if part is not None]
    device = model.get_submodule(parts[0].module).weight.device
    with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random numbers alone
        method = config.build(sites, dtype=dtype, device=device)
    if frozen and isinstance(method, VeRAMethod):
        method.read_frozen(frozen)
    try:
        method.verify(description["record"])
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    method.read(own, description["form"])
    targets, train = description["targets"], description["train"]
    return install(model, Adapter(name, config, method, parts, targets, train, list(head)), head)


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds {DESCRIPTION}")
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no {DESCRIPTION}; give a folder that vbank.save wrote")
    try:
        description = json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; restore it from a copy") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{file} holds a {type(description).__name__}, not an object; restore it from a copy")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vbank reads version {FORMAT_VERSION}: update vbank, or save"
            " again with this version"
        )
    _check_keys(description, set(KEYS), file)
    for key, kind in KEYS.items():
        if not isinstance(description[key], kind):
            raise CheckpointError(f"{file}: {key} is {description[key]!r}, which is not of its type")
    if description["form"] not in FORMS:
        raise CheckpointError(f"{file}: form is {description['form']!r}; it must be one of {', '.join(FORMS)}")
    if description["dtype"] not in DTYPES:
        raise CheckpointError(f"{file}: dtype is {description['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"adapter-[0-9a-f]{16}\.safetensors", description["tensors"]):
        raise CheckpointError(f"{file}: tensors is {description['tensors']!r}, which is no name that vbank.save writes")
    for key, shape in description["sites"].items():
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise CheckpointError(f"{file}: site {key!r} has shape {shape!r}; it must be [in_features, out_features]")
    if not description["sites"]:
        raise CheckpointError(f"{file}: sites is empty, so there is nothing to adapt")
    return description


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
        raise CheckpointError(f"{folder} lacks {description['tensors']}, which {DESCRIPTION} names; copy both files")
    blob = file.read_bytes()
    if hashlib.sha256(blob).hexdigest() != description["sha256"]:
        raise CheckpointError(
            f"{file} is damaged: its {len(blob):,} bytes have another SHA-256 than {DESCRIPTION} says"
        )
    try:
        return safetensors.torch.load(blob)
    except Exception as error:  # safetensors raises its own kinds
        raise CheckpointError(f"{file} is no safetensors file: {error}") from error


def _check_sites(model: nn.Module, sites: list[Site], folder: Path) -> None:
    wrong = []
    for site in sites:
        part = part_of(model, site.name)
        shape = f"{site.in_features} -> {site.out_features}"
        if part is None:
            wrong.append(f"{site.name} ({shape}) is absent")
        elif part.site != site:
            wrong.append(f"{site.name} is {part.site.in_features} -> {part.site.out_features}, not {shape}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{folder} was trained on another model: in this {type(model).__name__}, {'; '.join(wrong[:5])}{more};"
            " load it on the model that it was saved from"
        )


def _check_head(model: nn.Module, head: dict[str, Tensor], folder: Path) -> None:
    parameters = dict(model.named_parameters())
    for key, value in head.items():
        if key not in parameters or parameters[key].shape != value.shape:
            here = f"of shape {tuple(parameters[key].shape)}" if key in parameters else "absent"
            raise ValueError(
                f"{folder} holds a trained {key} of shape {tuple(value.shape)}; in this model it is {here}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{folder}: {key} holds values that are not finite; save the adapter again")


def _check_values(
    config: Config, sites: list[Site], tensors: dict[str, Tensor], form: str, dtype: torch.dtype, folder: Path
) -> None:
    meta: Method = config.build(sites, dtype=dtype, device="meta")
    wanted = dict(meta.compact_tensors() if form == "compact" else meta.tensors())
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
        largest_index = int(tensors["indices"].long().max())
        if largest_index >= config.num_vectors:
            raise CheckpointError(
                f"{folder}: index {largest_index} points outside the bank of {config.num_vectors} vectors; the file is"
                " damaged"
            )
        weights = tensors["weights"].float()
        if (weights < 0).any() or (weights.sum(dim=-1) > 1.0).any():
            raise CheckpointError(f"{folder}: the weights of a sub-vector are no shares of one; the file is damaged")
