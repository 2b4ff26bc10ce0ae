"""To PEFT and back: its own formats of LoRA, VeRA and VB-LoRA, and any method as the plain LoRA that it equals."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vbank.adapters import HOME, Adapter, adapter_of, refuse_sharded
from vbank.attachment import check_room
from vbank.checkpoint import ASIDE, one_writer, place, remove_left, write_file
from vbank.hollow import AdaptedLayers
from vbank.layers import features, is_conv1d
from vbank.methods import Method
from vbank.peft_files import CONFIG_FILE, PREFIX, TENSOR_FILE, Folder, read
from vbank.peft_formats import own_format, understand
from vbank.targets import Part, matching, modules_of, part_of

FORMER = "former"  # what an exchange moves aside
VLLM_LARGEST_RANK = 512  # vllm.config.lora.MaxLoRARanks, versions 0.11.1 to 0.22


def to_peft(
    model: nn.Module,
    out: str | os.PathLike[str],
    as_lora: bool = False,
    name: str | None = None,
    compact: bool = False,
    base: str | None = None,
) -> None:
    """Write an adapter and its head as Hugging Face PEFT reads it: `adapter_config.json`, `adapter_model.safetensors`.

    LoRA, VeRA and VB-LoRA have formats of their own there. `as_lora` writes any of the five methods as a plain LoRA of
    the same update: lora_A = A, lora_B = s * B, lora_alpha = rank, in float32. Two slices of a fused projection, such
    as query and value of GPT-2's c_attn, become one LoRA of rank 2r, block by block. Where the rank exceeds in_features
    or out_features, the update itself stands in one factor and the identity in the other, of rank min(in, out).

    vLLM serves plain LoRA up to rank 512 and without a head; VeRA at its usual rank of 1024 stays above that where the
    layers are wider than 512. A warning says what it does not serve.

    Args:
        model: a model with an adapter.
        out: the folder; made if absent. An adapter of PEFT's that stands there is replaced; other files stay. Where the
            file system has no locks, one process at a time must write there: PEFT's two files do not name each other.
        as_lora: write a plain LoRA.
        name: the adapter; None takes the active one.
        compact: for VB-LoRA, indices and weights instead of logits (save_only_topk_weights), which PEFT can merge and
            run but not train on. Here the largest weight is the one left out, so that PEFT never finds its logarithm
            to be NaN. For VeRA, the seed instead of the projections (save_projection=False), unless PEFT would draw
            others from it. LoRA has nothing to leave out.
        base: id or path of the base model, for `base_model_name_or_path`; None takes the model's own.

    Raises:
        ValueError: PEFT has no such method or no such variant of it, an adapted slice, a head that PEFT would store
            otherwise, values that are not finite or spread by FSDP, or `out` is a file. Nothing is written then.
        OSError: the disk is full or not writable. An adapter that was in the folder stays whole. A process killed while
            it renames leaves none that loads; the former files then lie in a folder `.aside-*/former` beside.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = vbank.attach(model, vbank.PRoLoRA(rank=4, share_a=2, share_b=2), targets=["0"])
        >>> vbank.to_peft(model, "lora", as_lora=True)
    """
    model, home, adapter = adapter_of(model, name)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to write the adapter in")
    refuse_sharded(model, adapter)
    if as_lora and compact:
        raise ValueError("compact leaves out what VB-LoRA and VeRA can make anew; a plain LoRA has no such part")
    was_training = adapter.method.training
    adapter.method.eval()
    try:
        with torch.no_grad():
            settings, tensors = _plain_lora(model, adapter) if as_lora else own_format(adapter, compact)
    finally:
        adapter.method.train(was_training)
    acting = home.active == adapter.name and home.on
    heads = adapter.head(model) if acting else home.idle_heads[adapter.name]
    modules, head = _head(model, adapter, heads)
    tensors |= {PREFIX + key: value for key, value in head.items()}
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)} of adapter {adapter.name!r} is not finite everywhere; nothing is saved")
    settings = {
        "base_model_name_or_path": base or getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "target_modules": target_modules(model, adapter.layers),
        "modules_to_save": modules or None,
        "fan_in_fan_out": all(is_conv1d(model.get_submodule(layer)) for layer in adapter.layers),
        **settings,
    }
    blob = safetensors.torch.save(
        {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, {"format": "pt"}
    )
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    _write(folder, {TENSOR_FILE: blob, CONFIG_FILE: text.encode()})
    if settings["peft_type"] == "LORA":
        rank = max(A.shape[0] for key, A in tensors.items() if key.endswith("lora_A.weight"))
        if rank > VLLM_LARGEST_RANK:
            warnings.warn(
                f"this LoRA has rank {rank}; PEFT loads it, vLLM does not: it serves ranks up to {VLLM_LARGEST_RANK}",
                stacklevel=2,
            )
        if modules:
            warnings.warn(
                f"this LoRA has a head, {', '.join(modules)}; PEFT loads it, vLLM does not: it serves none with"
                " modules_to_save",
                stacklevel=2,
            )


def from_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", trainable: bool = False
) -> Adapter:
    """Attach the LoRA, VeRA or VB-LoRA adapter of a folder that PEFT wrote; modules_to_save become its head.

    The layers are those that have tensors in the file. Tensors of several types are read at the widest of them. The
    scale alpha / sqrt(r) of rsLoRA becomes an alpha. Layers of lower rank (rank_pattern) are filled up with zeros,
    which training leaves at zero. Where scales differ (alpha_pattern), each is multiplied into its layer's B. VeRA's
    projections are taken from the file, or drawn from the seed as PEFT draws them. A compact VB-LoRA file whose weights
    PEFT would turn into NaN (k >= 3) is read with a last weight of 0.

    Args:
        model: the base model that the adapter was trained on.
        folder: the folder, with `adapter_config.json` and `adapter_model.safetensors`.
        name: what to call the adapter.
        trainable: give a compact VB-LoRA adapter logits again, as `vbank.load` does.

    Returns:
        The adapter, which is now the active one.

    Raises:
        CheckpointError: files are missing or damaged, a pickle, or links out of the folder; another method than the
            three; DoRA, biases, an initialisation that changed the base model, or another setting that vbank does not
            read; tensors that are unexpected or do not fit the settings.
        ValueError: the model has other layers or shapes, or the name is taken. The model is then as it was.

    Example:
        >>> import torch, vbank
        >>> model, other = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = vbank.attach(model, vbank.LoRA(rank=2, alpha=4), targets=["0"])
        >>> vbank.to_peft(model, "peft")
        >>> vbank.from_peft(other, "peft").config
        LoRA(rank=2, dropout=0.0, alpha=4)
    """
    found = read(Path(folder))
    check_room(model, name)
    found = replace(found, layers=_one_per_weight(model, found))
    every = _names(model)
    stored = understand(found, lambda layer: _size(model, layer), every)
    layers = [site.name for site in stored.sites]
    targets = target_modules(model, layers) if set(layers) <= set(every) else layers
    train = [n for n in every if n.endswith(tuple(found.modules_to_save))]
    return place(model, replace(stored, targets=targets, train=train), name, trainable)


def _size(model: nn.Module, layer: str) -> tuple[int, int] | None:
    part = part_of(model, layer)
    return None if part is None else (part.site.in_features, part.site.out_features)


def _one_per_weight(model: nn.Module, found: Folder) -> dict[str, dict[str, Tensor]]:
    """The folder's layers, those that share one weight once: an update sits on the weight.

    Raises:
        ValueError: PEFT adapts one of two such layers, or each in its own way.
    """
    kept = dict(found.layers)
    for layer in _names(model):
        part = part_of(model, layer) if layer in kept else None
        for other in modules_of(model, part)[1:] if part is not None else []:
            twin = kept.pop(other, None)
            if twin is None or any(not torch.equal(twin[end], v) for end, v in kept[layer].items()):
                raise ValueError(
                    f"{found.path}: {layer} shares its weight with {other}, which PEFT adapts differently; one weight"
                    " takes one update here"
                )
    return kept


def _plain_lora(model: nn.Module, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter as one LoRA a layer, of scale 1. Ranks that differ stand in rank_pattern, and in alpha_pattern."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer, parts in adapter.layers.items():
        A, B = lora_of(adapter.method, parts, *features(model.get_submodule(layer)))
        tensors[f"{PREFIX}{layer}.lora_A.weight"], tensors[f"{PREFIX}{layer}.lora_B.weight"] = A, B
        ranks[layer] = A.shape[0]
    r = max(ranks.values())
    others = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != r}
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": r, "lora_dropout": adapter.config.dropout}
    return settings | {"rank_pattern": others, "alpha_pattern": others}, tensors


def lora_of(method: Method, parts: Iterable[Part], in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
    """A (rank, in_features) and B (out_features, rank) of one layer in float32, the scale in B, its parts in blocks."""
    rows, columns = [], []
    for part in parts:
        A, B = (factor.float() for factor in method.factors(part.site.name))
        block = B.new_zeros(out_features, B.shape[1])  # the rows of the other slices stay zero
        block[part.start : part.stop] = B * method.scale
        rows.append(A)
        columns.append(block)
    A, B = torch.cat(rows), torch.cat(columns, dim=1)
    if A.shape[0] <= min(in_features, out_features):
        return A, B
    delta = (B.double() @ A.double()).float()  # (out_features, in_features), rounded once
    unit = torch.eye(min(in_features, out_features), device=delta.device)
    return (unit, delta) if in_features <= out_features else (delta, unit)


def _head(model: nn.Module, adapter: Adapter, values: Mapping[str, Tensor]) -> tuple[list[str], dict[str, Tensor]]:
    """PEFT's modules_to_save and the parameters in them.

    PEFT takes every module whose name ends with one of the names, "pre_classifier" for "classifier": parameters that
    were not trained then stand there with the values of the base model.

    Raises:
        ValueError: PEFT would not store a trained parameter, for it bears another module's name.
    """
    if not adapter.trained:
        return [], {}
    every = _names(model)
    modules = sorted(matching(model, adapter.train_modules, every, "train module"))
    inside = [n for n in every if n.endswith(tuple(modules))]
    kept = {
        f"{module}.{key}": values.get(f"{module}.{key}", parameter)
        for module in inside
        for key, parameter in model.get_submodule(module).named_parameters()
    }
    lost = [key for key in adapter.trained if key not in kept]
    if lost:
        raise ValueError(
            f"PEFT stores the modules that are trained whole by name ({', '.join(modules)}) and would lose"
            f" {', '.join(lost)}, which they share with another module; save the adapter with vbank.save"
        )
    return modules, kept


def _names(model: nn.Module) -> list[str]:
    """Names of the model's own modules, without those of its adapters."""
    return [n for n, _ in model.named_modules() if n and n.partition(".")[0] != HOME]


def target_modules(model: nn.Module, layers: Iterable[str]) -> list[str] | str:
    """The shortest ends of names that match these layers of the model and no other module, as PEFT matches them; a
    regular expression where a layer's whole name is the end of another's. Whole names where the model's are not known.
    """
    layers, every = list(layers), _names(model)
    if isinstance(model, AdaptedLayers):
        every = model.names
        if not every:
            return layers
    found: dict[str, bool] = {}  # end -> whether all that it matches is adapted
    chosen: dict[str, None] = {}
    for layer in layers:
        words = layer.split(".")
        for n in range(1, len(words) + 1):
            end = ".".join(words[-n:])
            if end not in found:
                found[end] = {m for m in every if m == end or m.endswith("." + end)} <= set(layers)
            if found[end] and not words[-n].isdigit():
                chosen[end] = None
                break
        else:
            return "|".join(map(re.escape, layers))
    return list(chosen)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put the files into the folder, the last one named last. All are written aside first; an error changes nothing.

    Raises:
        OSError: the files cannot be written or exchanged. The former ones are back, or the message says where they are.
    """
    aside = folder / (ASIDE + secrets.token_hex(8))
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_writer(folder) as alone:
            try:
                aside.mkdir()
                for name, content in files.items():
                    write_file(aside / name, content)
                _exchange(folder, aside, list(files))
                remove_left(folder, alone)
            finally:
                if not _former(aside):
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if made:
            with suppress(OSError):  # another process may have put files there meanwhile
                folder.rmdir()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        whole = "one that was in the folder is whole"
        raise OSError(
            error.errno,
            f"{error.strerror}: the adapter is not saved, and"
            f" {f'the former files lie in {aside / FORMER}' if _former(aside) else whole};"
            f" {'make room' if full else 'see that its files are free and may be written'} or choose another folder",
            str(folder),
        ) from error


def _exchange(folder: Path, aside: Path, names: Sequence[str]) -> None:
    """Rename the files of `aside` into the folder; on any error the former ones come back.

    The last file is the first to leave and the last to come. No loader reads the others without it, so old and new are
    never mixed, even where the process is killed; the former files then lie aside.
    """
    blocked = next((folder / name for name in names if (folder / name).is_dir()), None)
    if blocked is not None:
        raise IsADirectoryError(errno.EISDIR, f"{blocked.name} is a folder")
    former = aside / FORMER
    former.mkdir()
    try:
        for name in reversed(names):
            with suppress(FileNotFoundError):
                os.replace(folder / name, former / name)
        for name in names:
            os.replace(aside / name, folder / name)
    except BaseException:
        for name in reversed(names):
            if not (aside / name).exists():  # it stands in the folder
                os.replace(folder / name, aside / name)
        for name in names:
            with suppress(FileNotFoundError):
                os.replace(former / name, folder / name)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _former(aside: Path) -> bool:
    """Whether files of a former adapter lie aside."""
    return (aside / FORMER).is_dir() and any((aside / FORMER).iterdir())
