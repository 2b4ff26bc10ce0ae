"""What a run trains: an adapter with its head, or a baseline's part of the model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import vbank
from vbank import quantised, shards
from vbank.recipes import Recipe
from vbank.targets import matching


@dataclass(frozen=True)
class Prepared:
    """A model ready for training, with what is to be trained on it."""

    model: nn.Module
    groups: list[dict[str, Any]]
    parameters: dict[str, Any]


def prepare(model: nn.Module, recipe: Recipe) -> Prepared:
    """Freezes, attaches or trains whole as the recipe says; gives the optimizer's groups and the counts.

    Raises:
        ValueError: an unknown target, head or learning-rate group.
    """
    method, train = recipe.method, recipe.train
    config = method.config()
    if config is not None:
        vbank.attach(model, config, targets=method.targets, train=recipe.model.head)
        quantised.steady_norms(model, autocast=train.precision != "fp32")
        groups = vbank.param_groups(model, lr=method.lr, weight_decay=train.weight_decay)
        count = vbank.count(model)
        parameters = {
            "trainable": count.trainable,
            "stored": count.stored,
            "bytes": count.bytes,
            "head": count.head.trained if count.head else 0,
            "groups": {key: group.trained for key, group in count.groups.items()},
        }
        return Prepared(model, groups, parameters)
    head = recipe.model.head
    inside = matching(model, head, [name for name, _ in model.named_modules() if name], "head") if head else set()
    by_group: dict[str, list[nn.Parameter]] = {"head": [], "body": []}
    for name, parameter in model.named_parameters():
        in_head = any(name.startswith(f"{module}.") for module in inside)
        trained = in_head or method.name == "full" or (method.name == "bitfit" and is_bias(name))
        parameter.requires_grad_(trained)
        if trained:
            by_group["head" if in_head else "body"].append(parameter)
    rates = {"head": method.lr.get("head", method.lr.get("default")), "body": method.lr.get("default")}
    groups = []
    for key, members in by_group.items():
        if members and rates[key] is None:
            raise ValueError(f"{recipe.name}: no learning rate for {key}; set method.lr.default")
        if members:
            groups.append({"name": key, "params": members, "lr": rates[key], "weight_decay": train.weight_decay})
    body, whole = (sum(p.numel() for p in by_group[key]) for key in ("body", "head"))
    size = sum(p.numel() * p.element_size() for p in by_group["body"])
    parameters = {"trainable": body, "stored": float(body), "bytes": size, "head": whole, "groups": {"body": body}}
    return Prepared(model, groups, parameters)


def is_bias(name: str) -> bool:
    """Whether BitFit trains a parameter of the model's body: every bias, those of the normalisations included."""
    return name.endswith(".bias")


def size_on_disk(model: nn.Module, recipe: Recipe, work: Path, write: bool = True) -> int:
    """Bytes of what a user must keep besides the base model, head included. An adapter stays in `work`/adapter.

    Where processes share the model's weights, all must call this; those without `write` get 0.
    """
    folder = work / "adapter"
    if recipe.method.config() is not None:
        shards.gather_root(model)
        trained = {}
    else:
        trained = {name: shards.whole(p.detach()) for name, p in model.named_parameters() if p.requires_grad}
    if not write:
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    if recipe.method.config() is not None:
        vbank.save(model, folder, form="compact")
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(trained, folder / "trained.safetensors")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if recipe.method.name == "full":  # a copy of the whole model: measured, not kept
        shutil.rmtree(folder)
    return size
