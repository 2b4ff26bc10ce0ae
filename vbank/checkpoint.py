"""Save and load adapters: one safetensors file and one JSON that names it.

A save writes the tensor file first, under its hash's name, and the JSON last, each aside and then renamed; whatever
happens in between, the folder holds the old adapter or the new one, whole, also for one who reads it meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from vbank.adapters import Adapter, adapter_of, refuse_sharded
from vbank.attachment import check_room, device_of, install, trained_parameters
from vbank.methods import Method
from vbank.methods.vb_lora import VBLoRA, VBLoRAMethod
from vbank.methods.vera import VeRAMethod
from vbank.stored import (
    DESCRIPTION,
    DTYPES,
    FORMAT_VERSION,
    FORMS,
    FROZEN,
    HALF,
    HEAD,
    TENSORS,
    CheckpointError,
    Stored,
    check_record,
    may_draw,
    read,
)
from vbank.targets import Part, part_of

ASIDE = ".aside-"
HOUR = 3600.0  # seconds; no saver needs as long between its first file and its last


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    form: str = "compact",
    name: str | None = None,
    frozen: bool = False,
    half: bool = False,
) -> None:
    """Write an adapter and its trained head to a folder, replacing the one there in one step.

    For VB-LoRA, "compact" holds the bank, k indices of the smallest unsigned type and k - 1 weights a sub-vector (Li
    et al. 2024, section 3.4), which is all that inference needs; "resumable" holds all logits. For the other methods
    both forms hold the parameters. VeRA's frozen pair is stored as its seed and a checksum.

    Args:
        model: a model with an adapter.
        path: the folder; made if absent.
        form: "compact" or "resumable".
        name: the adapter; None takes the active one.
        frozen: also store VeRA's frozen matrices, for machines whose random generator differs. They are stored in any
            case where a load here would not draw them from the seed, such as after a change of precision, or where they
            are larger than 64 MiB and than twice the adapted layers.
        half: store the numbers of the compact form, head included, in float16, each off by at most 2^-11 of itself (or
            2^-25 below 6e-5). They load as the adapter's own type. Frozen matrices keep theirs, for their checksum.

    Raises:
        ValueError: no such adapter or form, values that are not finite or beyond float16's 65,504, parameters of
            several types or spread by FSDP, `half` with the resumable form, or `path` is a file. Nothing is written
            then.
        OSError: the disk is full or not writable. An adapter that was in the folder stays whole.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> vbank.save(model, "adapter")
        >>> vbank.save(model, "to-train-on", form="resumable")
    """
    model, home, adapter = adapter_of(model, name)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
    if half and form != "compact":
        raise ValueError('half rounds, and form="resumable" gives back every bit; save one without the other')
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save the adapter in")
    refuse_sharded(model, adapter)
    method: Method = adapter.method
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in method.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"the parameters of adapter {adapter.name!r} are of type {', '.join(sorted(dtypes))}; a file holds one of"
            f" {', '.join(DTYPES)}: cast them all with adapter.to(torch.float32)"
        )
    dtype = stored = dtypes.pop()
    tensors = dict(method.compact_tensors() if form == "compact" else method.tensors())
    if isinstance(method, VeRAMethod) and (frozen or not drawn_here(method, DTYPES[dtype])):
        tensors |= {FROZEN + key: value for key, value in method.frozen_tensors().items()}
    acting = home.active == adapter.name and home.on
    heads = adapter.head(model) if acting else home.idle_heads[adapter.name]
    tensors |= {HEAD + key: value for key, value in heads.items()}
    values = dict(method.named_parameters()) | tensors  # top-1 weights do not show a logit that is NaN
    broken = [k for k, v in values.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)} of adapter {adapter.name!r} is not finite everywhere; nothing is saved")
    if half:
        stored = HALF if DTYPES[dtype].itemsize > 2 else dtype
        tensors = {k: v if k.startswith(FROZEN) else _halved(v, k, adapter.name) for k, v in tensors.items()}
    blob = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    description = {
        "format_version": FORMAT_VERSION,
        "method": adapter.config.method,
        "config": adapter.config.settings(),
        "form": form,
        "dtype": dtype,
        "stored": stored,
        "targets": adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        "train": adapter.train_modules,
        "sites": {s.name: [s.in_features, s.out_features] for s in adapter.sites},
        "record": method.record(),
        "tensors": f"adapter-{digest[:16]}.safetensors",
        "sha256": digest,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in description.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_writer(folder) as alone:
            write_file(folder / str(description["tensors"]), blob)
            write_file(folder / DESCRIPTION, text.encode())
            others = [file for file in folder.iterdir() if TENSORS.fullmatch(file.name)]
            remove_left(folder, alone, [file for file in others if file.name != description["tensors"]])
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: the adapter is not saved, and one that was in the folder is whole; make room or choose"
            " another folder",
            str(folder),
        ) from error


def _halved(value: Tensor, key: str, name: str) -> Tensor:
    """The tensor in float16, if its numbers are wider.

    Raises:
        ValueError: one of them is beyond float16's range.
    """
    if not value.is_floating_point() or value.element_size() <= 2:
        return value
    half = value.detach().half()
    if not torch.isfinite(half).all():
        raise ValueError(
            f"{key} of adapter {name!r} holds {value.abs().max().item():,.0f}, and float16 ends at 65,504; nothing is"
            " saved: save it with half=False"
        )
    return half


def remove_left(folder: Path, alone: bool, former: Iterable[Path] = ()) -> None:
    """Remove what killed writers left, and the `former` files, after a write; files of other names stay.

    Args:
        folder: where the adapter stands.
        alone: whether the lock is held. If not, another writer may be at work, and what it needs must stay: what goes
            is then an hour older than this write, by the file system's clock.
        former: further files to remove.
    """
    for left in (*folder.glob(ASIDE + "*"), *former):
        with suppress(OSError):  # the next save tries again
            if not alone and left.lstat().st_mtime > folder.stat().st_mtime - HOUR:
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def drawn_here(method: VeRAMethod, dtype: torch.dtype) -> bool:
    """Whether a load on this machine would draw the same frozen pair."""
    numbers, limit = may_draw(method.config, method.sites)
    return numbers <= limit and method.config.build(method.sites, dtype=dtype).checksum() == method.checksum()


@contextmanager
def one_writer(folder: Path) -> Iterator[bool]:
    """Keep other savers out of the folder; a killed process gives its lock back. Yields whether the lock is held:
    Windows has none of this kind, and some network file systems none at all.
    """
    if os.name != "posix":
        yield False
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
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


def load(model: nn.Module, path: str | os.PathLike[str], name: str = "default", trainable: bool = False) -> Adapter:
    """Attach the adapter of a folder to a model: settings, layers and values come from the files.

    An adapter from the resumable form is bit for bit what was saved. A VB-LoRA adapter from the compact form gives the
    outputs that it was saved with. It cannot be trained unless `trainable` makes it logits again: those of the chosen
    vectors come back from their weights (`VBLoRAMethod.reopened`), those of the others are drawn as at the start, from
    torch's global generator, whose state stays as it was. No form holds the optimizer's state.

    Args:
        model: the base model that the adapter was trained on.
        path: the folder.
        name: what to call the adapter.
        trainable: give a VB-LoRA adapter from the compact form logits; others can be trained in any case.

    Returns:
        The adapter, which is now the active one.

    Raises:
        CheckpointError: the files are missing, damaged, of an unknown version, or hold values out of range.
        ValueError: the model has other layers or shapes, or the name is taken. The model is then as it was.

    Example:
        >>> import copy, torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> fresh = copy.deepcopy(model)
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), targets=["0"])
        >>> vbank.save(model, "adapter")
        >>> adapter = vbank.load(fresh, "adapter")
        >>> x = torch.ones(1, 8)
        >>> torch.allclose(fresh(x), model(x))
        True
    """
    stored = read(Path(path))
    check_room(model, name)
    return place(model, stored, name, trainable)


def place(model: nn.Module, stored: Stored, name: str, trainable: bool) -> Adapter:
    """Attach an adapter that was read from files to a model that `check_room` let pass; `load` says how.

    Raises:
        CheckpointError: the file's record is not what this machine makes of it.
        ValueError: the model has other layers or shapes. The model is then as it was.
    """
    parts, trained = find_places(model, stored)
    method = method_of(stored, trainable).to(device_of(model, parts))
    adapter = Adapter(name, stored.config, method, parts, stored.targets, stored.train, trained)
    return install(model, adapter, stored.head)


def method_of(stored: Stored, trainable: bool = False) -> Method:
    """The method with the values of a file, on the CPU.

    Args:
        stored: what was read.
        trainable: give a VB-LoRA method from the compact form logits, as `load` does.

    Raises:
        CheckpointError: the file's record is not what this machine makes of it.
    """
    chosen_alone = isinstance(stored.config, VBLoRA) and stored.form == "compact"  # the file holds no logits
    device = "meta" if chosen_alone and not trainable else "cpu"  # logits that nobody trains take no memory
    try:
        with torch.random.fork_rng(devices=[]):  # reading leaves the caller's random numbers alone
            method = stored.config.build(stored.sites, dtype=stored.dtype, device=device)
        if stored.frozen and isinstance(method, VeRAMethod):
            method.read_frozen(stored.frozen)
    except RuntimeError as error:  # no memory for it
        raise CheckpointError(f"{stored.folder}: {error}") from error
    check_record(stored, method)
    if chosen_alone and trainable and isinstance(method, VBLoRAMethod):
        method.read(method.reopened(stored.tensors), "resumable")
    else:
        method.read(stored.tensors, stored.form)
    return method


def find_places(model: nn.Module, stored: Stored) -> tuple[list[Part], list[str]]:
    """The model's parts that the file's sites stand for, and the names of its head in the model's order.

    Raises:
        ValueError: the model lacks some of them or has them in other shapes; all are listed in one message.
        CheckpointError: the head's values are not finite at the model's precision.
    """
    train, head, folder = stored.train, stored.head, stored.folder
    wrong, parts, trained = [], [], []
    for site in stored.sites:
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
