"""A folder that PEFT wrote: its settings and tensors, read with distrust. Needs no model and no PEFT.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. A tensor of the layer `encoder.query` bears the
name `base_model.model.encoder.query.lora_A.weight`; a head that is trained whole stands under its own names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vbank.stored import DTYPES, CheckpointError

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
LAYER_TENSORS: dict[str, list[tuple[str, ...]]] = {  # what a layer has, by peft_type: one of these sets, whole
    "LORA": [("lora_A.weight", "lora_B.weight")],
    "VERA": [("vera_lambda_d", "vera_lambda_b")],
    "VBLORA": [
        ("vblora_logits_A", "vblora_logits_B"),
        tuple(f"vblora_logits_{letter}_topk_{part}" for letter in "AB" for part in ("indices", "weights")),
    ],
}
PAIR = ("base_model.vera_A", "base_model.vera_B")
BANK = "base_model.vblora_vector_bank"
SHARED_TENSORS: dict[str, tuple[str, ...]] = {"LORA": (), "VERA": PAIR, "VBLORA": (BANK,)}

# Settings that are read, or that change no output of a trained adapter. The layers are those that have tensors.
READ = {
    *("peft_type", "r", "modules_to_save", "bias", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights", "vera_dropout", "d_initial", "projection_prng_key", "save_projection"),
    *("vblora_dropout", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "init_vector_bank_bound"),
    "init_logits_std",
}
WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_weights"),
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("megatron_core", "qalora_group_size"),
}
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # that leave the base model as it is
WHY = {
    "use_dora": "DoRA rescales the whole weight, which no low-rank update does",
    "lora_bias": "an update with a bias is none of this library's",
    "trainable_token_indices": "single rows of an embedding are trained too",
    "layer_replication": "it was trained on a model with copied layers",
}


@dataclass(frozen=True)
class Folder:
    """What stands in a folder of PEFT's: settings, the layers' tensors, those of the whole model, and the head.

    Attributes:
        path: the folder.
        settings: `adapter_config.json`.
        layers: layer name -> end of the tensor's name -> tensor.
        shared: tensors that all layers share, by their whole names.
        head: parameters of modules trained whole, by their names in the model.
        dtype: the widest type of the adapter's tensors.
    """

    path: Path
    settings: dict[str, Any]
    layers: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]
    head: dict[str, Tensor]
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """LORA, VERA or VBLORA."""
        return str(self.settings["peft_type"])

    @property
    def modules_to_save(self) -> list[str]:
        """Ends of the names of modules that are trained whole."""
        return list(self.settings.get("modules_to_save") or [])

    def number(self, key: str, default: float) -> Any:
        """A setting, or PEFT's default where the file lacks it."""
        return self.settings.get(key, default)

    def expect(self, layer: str, end: str, *shape: int) -> Tensor:
        """A layer's tensor, which must have this shape.

        Raises:
            CheckpointError: it has another one.
        """
        self.check(f"{layer}.{end}", self.layers[layer][end], shape)
        return self.layers[layer][end]

    def check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape."""
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {tuple(value.shape)}; {CONFIG_FILE} needs {shape}")


def read(path: Path) -> Folder:
    """Read a folder that PEFT wrote; nothing is unpickled.

    Raises:
        CheckpointError: a file is missing, damaged or a link out of the folder, the method or a setting is none that
            vbank reads, a tensor is unexpected, lacking or not finite.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; give one that holds {CONFIG_FILE} and {TENSOR_FILE}")
    settings = _settings(path)
    kind = settings["peft_type"]
    tensors = _tensors(path)
    ends = [end for ends in LAYER_TENSORS[kind] for end in ends]
    layers: dict[str, dict[str, Tensor]] = {}
    shared: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unexpected = []
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        end = next((end for end in ends if name.endswith("." + end)), None)
        if key in SHARED_TENSORS[kind]:
            shared[key] = value
        elif name != key and end is not None:
            layers.setdefault(name.removesuffix("." + end), {})[end] = value
        elif name != key and in_saved_module(name, settings.get("modules_to_save") or []):
            head[name] = value
        else:
            unexpected.append(key)
    if unexpected:
        raise CheckpointError(
            f"{path / TENSOR_FILE} holds {some(unexpected)}, which a {kind} adapter with these settings has not; vbank"
            " would lose it, so it does not read the file"
        )
    _refuse_incomplete(path, kind, layers)
    own = [*shared.items(), *((f"{n}.{end}", v) for n, ends in layers.items() for end, v in ends.items())]
    dtype = _widest(path, [(key, v) for key, v in own if not key.endswith("_indices")])
    return Folder(path, settings, layers, shared, head, dtype)


def inside(folder: Path, name: str) -> Path:
    """The file called `name` in a folder; a link may lead to another file of the folder, or into the blobs of a hub's
    cache, whose snapshots are links.

    Raises:
        CheckpointError: it leads elsewhere.
    """
    file = folder / name
    target, home = file.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if target.parent not in (home, blobs):
        raise CheckpointError(f"{file} is a link that leaves the folder, to {target}; copy the file into the folder")
    return file


def in_saved_module(name: str, modules_to_save: Iterable[str]) -> bool:
    """Whether a parameter lies in a module whose name ends with one of `modules_to_save`, as PEFT matches them."""
    words, ends = name.split("."), tuple(modules_to_save)
    return any(".".join(words[:n]).endswith(ends) for n in range(1, len(words)))


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _settings(path: Path) -> dict[str, Any]:
    file = inside(path, CONFIG_FILE)
    if not file.is_file():
        raise CheckpointError(f"{path} holds no {CONFIG_FILE}; give a folder that PEFT's save_pretrained wrote")
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; restore it from a copy") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} holds a {type(settings).__name__}, not an object; restore it from a copy")
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in LAYER_TENSORS:
        raise CheckpointError(f"{file}: peft_type is {kind!r}; vbank reads {', '.join(LAYER_TENSORS)}")
    if settings.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias is {settings['bias']!r}; vbank trains no biases, so it reads 'none' alone")
    for key, value in settings.items():
        if value and key not in READ and key not in WITHOUT_EFFECT:
            why = WHY.get(key, "it may change the outputs")
            raise CheckpointError(f"{file}: {key} is {value!r}, which vbank does not read: {why}")
    start = settings.get("init_lora_weights", True)
    if start not in STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights is {start!r}, which changes the weights of the base model; save the adapter"
            " with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    saved = settings.get("modules_to_save")
    if saved is not None and not (isinstance(saved, list) and all(isinstance(m, str) and m for m in saved)):
        raise CheckpointError(f"{file}: modules_to_save is {saved!r}; it must be a list of module names")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, dict):
            raise CheckpointError(f"{file}: {key} is {settings[key]!r}; it must be an object of names and numbers")
    return settings


def _tensors(path: Path) -> dict[str, Tensor]:
    file = inside(path, TENSOR_FILE)
    if not file.is_file():
        if (path / PICKLE).exists():
            raise CheckpointError(
                f"{path / PICKLE} is a pickle, which can run any code, so vbank never opens one; load it with PEFT and"
                " save it again, which writes safetensors"
            )
        raise CheckpointError(f"{path} lacks {TENSOR_FILE}; copy both files")
    try:
        return dict(sorted(safetensors.torch.load(file.read_bytes()).items()))  # a file gives them in any order
    except Exception as error:  # safetensors raises its own kinds
        raise CheckpointError(f"{file} is no safetensors file: {error}") from error


def _refuse_incomplete(path: Path, kind: str, layers: dict[str, dict[str, Tensor]]) -> None:
    if not layers:
        raise CheckpointError(f"{path / TENSOR_FILE} holds no tensor of a {kind} layer; save the adapter again")
    sets = [set(ends) for ends in LAYER_TENSORS[kind]]
    whole = max(sets, key=lambda s: sum(set(ends) == s for ends in layers.values()))  # what most layers have
    broken = [name for name, ends in layers.items() if set(ends) != whole]
    if broken:
        wanted = " or ".join(" and ".join(sorted(s)) for s in sets)
        raise CheckpointError(f"{path / TENSOR_FILE}: {some(broken)} must have {wanted}, all layers the same")


def _widest(path: Path, own: Sequence[tuple[str, Tensor]]) -> torch.dtype:
    """The type that holds all values unchanged.

    Raises:
        CheckpointError: a tensor is of a type that vbank does not read, or holds values that are not finite.
    """
    wide = own[0][1].dtype
    for key, value in own:
        if value.dtype not in DTYPES.values():
            raise CheckpointError(f"{path}: {key} is {value.dtype}; vbank reads {', '.join(DTYPES)}")
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path}: {key} holds NaN or infinite values, as PEFT writes them where it loaded a compact VB-LoRA"
                " file and saved it in full; save the adapter again from where it was trained"
            )
        wide = torch.promote_types(wide, value.dtype)
    return wide
