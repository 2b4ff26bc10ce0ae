"""Save and load adapters: one safetensors file and one JSON that names it. Nothing is ever unpickled.

A save writes the tensor file first, under its hash's name, and the JSON last, each aside and then renamed; whatever
happens in between, the folder holds the old adapter or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vbank.adapters import Adapter, adapter_of
from vbank.attachment import check_room, device_of, install, trained_parameters
from vbank.methods import METHODS, Config, Method, Site
from vbank.methods.vb_lora import VBLoRA
from vbank.methods.vera import VeRAMethod
from vbank.targets import Part, part_of

FORMAT_VERSION = 1
DESCRIPTION = "adapter.json"
TENSORS = re.compile(r"adapter-[0-9a-f]{16}\.safetensors")
ASIDE = ".aside-"
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
        frozen: also store VeRA's frozen matrices, for machines whose random generator differs. They are stored in any
            case where this machine does not draw them from the seed, such as after a change of precision.

    Raises:
        ValueError: no such adapter or form, values that are not finite, parameters of several types, or `path` is a
            file. Nothing is written then.
        OSError: the disk is full or not writable. An adapter that was in the folder stays whole.
    """
    model, home, adapter = adapter_of(model, name)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save the adapter in")
    method: Method = adapter.method
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in method.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"the parameters of adapter {adapter.name!r} are of type {', '.join(sorted(dtypes))}; a file holds one of"
            f" {', '.join(DTYPES)}: cast them all with adapter.to(torch.float32)"
        )
    dtype = dtypes.pop()
    tensors = dict(method.compact_tensors() if form == "compact" else method.tensors())
    if isinstance(method, VeRAMethod) and (frozen or not _drawn_here(method, DTYPES[dtype])):
        tensors |= {FROZEN + key: value for key, value in method.frozen_tensors().items()}
    acting = home.active == adapter.name and home.on
    heads = adapter.head(model) if acting else home.idle_heads[adapter.name]
    tensors |= {HEAD + key: value for key, value in heads.items()}
    values = dict(method.named_parameters()) | tensors  # top-1 weights do not show a logit that is NaN
    broken = [k for k, v in values.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)} of adapter {adapter.name!r} is not finite everywhere; nothing is saved")
    blob = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    description = {
        "format_version": FORMAT_VERSION,
        "method": adapter.config.method,
        "config": adapter.config.settings(),
        "form": form,
        "dtype": dtype,
        "targets": adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        "train": adapter.train_modules,
        "sites": {s.name: [s.in_features, s.out_features] for s in adapter.sites},
        "record": method.record(),
        "tensors": f"adapter-{digest[:16]}.safetensors",
        "sha256": digest,
    }
    text = json.dumps(description, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_writer(folder):
            _replace(folder / str(description["tensors"]), blob)
            _replace(folder / DESCRIPTION, text.encode())
            _clean(folder, str(description["tensors"]))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: the adapter is not saved, and one that was in the folder is whole; make room or choose"
            " another folder",
            str(folder),
        ) from error


def _clean(folder: Path, keep: str) -> None:
    """Remove former values, and what killed saves left; files of other names stay."""
    for old in folder.iterdir():
        if (TENSORS.fullmatch(old.name) and old.name != keep) or old.name.startswith(ASIDE):
            with suppress(OSError):  # the next save tries again
                old.unlink()


def _drawn_here(method: VeRAMethod, dtype: torch.dtype) -> bool:
    """Whether a load on this machine would draw the same frozen pair."""
    return method.config.build(method.sites, dtype=dtype).checksum() == method.checksum()


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Keep other savers out of the folder, where the system has file locks; a killed process gives its lock back."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, then rename, so that `path` is never half-written."""
    aside = path.with_name(ASIDE + secrets.token_hex(8))
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the new name reaches the disk too, where the system can flush a folder
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    head = {k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)}
    parts, trained = _find_places(model, sites, description["train"], head, folder)
    own = {k: v for k, v in tensors.items() if not k.startswith(HEAD)}
    dtype = DTYPES[description["dtype"]]
    _check_values(config, sites, own, description["form"], dtype, folder)
    frozen = {k.removeprefix(FROZEN): v for k, v in own.items() if k.startswith(FROZEN)}
    try:
        with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random numbers alone
            method = config.build(sites, dtype=dtype, device="cpu")
        if frozen and isinstance(method, VeRAMethod):
            method.read_frozen(frozen)
    except RuntimeError as error:  # a rank that no tensor of the file shows, such as VeRA's with b alone
        raise CheckpointError(f"{folder}: {error}") from error
    _check_keys(description["record"], set(method.record()), f"{folder / DESCRIPTION}: record")
    try:
        method.verify(description["record"])
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    method.read({k: v for k, v in own.items() if not k.startswith(FROZEN)}, description["form"])
    method.to(device_of(model, parts))
    adapter = Adapter(name, config, method, parts, description["targets"], description["train"], trained)
    return install(model, adapter, head)


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
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vbank reads version {FORMAT_VERSION}: update vbank, or save"
            " again with this version"
        )
    _check_keys(description, set(KEYS), file)
    for key, kind in KEYS.items():
        value = description[key]
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise CheckpointError(f"{file}: {key} is {value!r}, which is not of its type; restore it from a copy")
    if description["form"] not in FORMS:
        raise CheckpointError(f"{file}: form is {description['form']!r}; it must be one of {', '.join(FORMS)}")
    if description["dtype"] not in DTYPES:
        raise CheckpointError(f"{file}: dtype is {description['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    if not TENSORS.fullmatch(description["tensors"]):
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


def _find_places(
    model: nn.Module, sites: list[Site], train: list[str], head: dict[str, Tensor], folder: Path
) -> tuple[list[Part], list[str]]:
    """The model's parts that the file's sites stand for, and the names of its head in the model's order.

    Raises:
        ValueError: the model lacks some of them or has them in other shapes; all are listed in one message.
        CheckpointError: the head's values are not finite at the model's precision.
    """
    wrong, parts, trained = [], [], []
    for site in sites:
        part = part_of(model, site.name)
        shape = f"{site.in_features} -> {site.out_features}"
        if part is None:
            wrong.append(f"{site.name} ({shape}) is absent")
        elif part.site != site:
            wrong.append(f"{site.name} is {part.site.in_features} -> {part.site.out_features}, not {shape}")
        else:
            parts.append(part)
    try:
        trained = trained_parameters(model, train, parts)
    except ValueError as error:
        wrong.append(str(error))
    else:
        wrong += [f"{key} is trained, but the file lacks it" for key in trained if key not in head]
        wrong += [f"{key} is not part of what is trained ({train})" for key in head if key not in trained]
    for key in trained:
        here, there = tuple(model.get_parameter(key).shape), tuple(head[key].shape) if key in head else None
        if there is not None and here != there:
            wrong.append(f"{key} has shape {here}, not {there}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{folder} was trained on another model: in this {type(model).__name__}, {'; '.join(wrong[:5])}{more};"
            " load it on the model that it was saved from"
        )
    for key in trained:
        value = head[key]
        if not value.is_floating_point() or not torch.isfinite(value.to(model.get_parameter(key).dtype)).all():
            raise CheckpointError(
                f"{folder}: {key} ({value.dtype}) holds values that are not finite floating-point numbers in this"
                f" model's {model.get_parameter(key).dtype}; save the adapter again"
            )
    return parts, trained


def _check_values(
    config: Config, sites: list[Site], tensors: dict[str, Tensor], form: str, dtype: torch.dtype, folder: Path
) -> None:
    """Compare the file's tensors with what these settings make, on the meta device, before anything is allocated."""
    try:
        meta: Method = config.build(sites, dtype=dtype, device="meta")
        wanted = dict(meta.compact_tensors() if form == "compact" else meta.tensors())
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}") from error
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
        largest_index = int(tensors["indices"].long().max())
        if largest_index >= config.num_vectors:
            raise CheckpointError(
                f"{folder}: index {largest_index} points outside the bank of {config.num_vectors} vectors; the file is"
                " damaged"
            )
        weights = tensors["weights"].float()
        if (weights < 0).any() or (weights.sum(dim=-1) > 1.0 + torch.finfo(dtype).eps).any():
            raise CheckpointError(f"{folder}: the weights of a sub-vector are no shares of one; the file is damaged")
