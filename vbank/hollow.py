"""A model of an adapter's layers alone, without their weights: enough to read an adapter and write it otherwise.

A hollow layer has the right shape and one zero for all its weights, so a 7B model's layers take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vbank.layers import features, is_conv1d
from vbank.methods import Site
from vbank.stored import CheckpointError
from vbank.targets import part_of


class AdaptedLayers(nn.Module):
    """Stands in for a model of which only an adapter's layers and head are known.

    Args:
        names: names of all modules of the model; empty where they are not known.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.names = [name for name in names if name]


def hollow(
    sites: Iterable[Site], head: Mapping[str, Tensor], base: nn.Module | None = None, train: Sequence[str] = ()
) -> nn.Module:
    """A model with these layers and these parameters of its own, under their names.

    Args:
        sites: the adapted linear maps; ``name:query`` and ``name:value`` make a fused layer of three such widths.
        head: parameters that are trained whole.
        base: the base model, for its layers' kinds and its modules' names; None makes all layers `nn.Linear`.
        train: names of the modules that are trained whole. A file names a tied parameter once, such as GPT-2's
            `lm_head` as `transformer.wte.weight`; it is tied to its second name here.

    Raises:
        CheckpointError: a name cannot be that of a module, or stands for two things.
        ValueError: the base model lacks some of the layers, or has them in other shapes; all are listed.
    """
    sites = list(sites)
    if base is not None:
        _refuse_other(sites, base)
    model = AdaptedLayers(() if base is None else [name for name, _ in base.named_modules()])
    shapes: dict[str, tuple[int, int]] = {}
    for site in sites:
        layer, _, which = site.name.partition(":")
        shape = (site.in_features, site.out_features * (3 if which else 1))
        if shapes.setdefault(layer, shape) != shape:
            raise CheckpointError(f"{layer} is {shapes[layer]} and {shape} in one file; the file is damaged")
    tied = [key for key in head if train and not any(f".{want}." in f".{key}" for want in train)]
    try:
        for key in filter(lambda key: "." in key, tied):  # first, so that the model's parameters bear the file's names
            _home(model, key.rpartition(".")[0])
        for layer, shape in shapes.items():
            _home(model, layer, _layer(shape, base is not None and is_conv1d(base.get_submodule(layer))))
        for name, value in head.items():
            module, _, key = name.rpartition(".")
            owner = _home(model, module) if module else model
            owner.register_parameter(key, nn.Parameter(torch.zeros_like(value), requires_grad=False))
        _tie(model, tied, train)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the adapter's names do not fit one model: {error}; the file is damaged") from error
    return model


def _tie(model: nn.Module, tied: Sequence[str], train: Sequence[str]) -> None:
    """Put parameters that lie in no trained module into one that lacks its own, under any name."""
    names = [name for name, _ in model.named_modules() if name]
    trained = {want: [name for name in names if name == want or name.endswith("." + want)] for want in train}
    absent = [want for want, found in trained.items() if not found]
    for want in absent or list(train)[:1] if tied else []:
        owner = _home(model, next(iter(trained[want]), want))
        for i, key in enumerate(tied):
            owner.register_parameter(f"tied_{i}", model.get_parameter(key))


def base_model(name: str, layer: str) -> nn.Module:
    """A transformers model from its configuration alone, on the meta device: no weight is read.

    Args:
        name: folder or Hub id.
        layer: a layer of the adapter. Where the configuration is of a bare model, such as BertModel, and the adapter
            was trained on one with a head, the layer's name begins with "bert.": the names are then made to begin so.

    Raises:
        ValueError: there is no configuration, or no such architecture.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        kind: Any = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config) if kind is None else kind(config)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"base model {name!r} cannot be built: {error}") from error
    outer = nn.Module()
    outer.add_module(model.base_model_prefix or "model", model)
    return outer if part_of(model, layer) is None and part_of(outer, layer) is not None else model


def size(base: nn.Module | None, layer: str) -> tuple[int, int] | None:
    """(in_features, out_features) of a layer of the base model; None where there is none."""
    part = None if base is None else part_of(base, layer)
    return None if part is None else (part.site.in_features, part.site.out_features)


def _refuse_other(sites: Iterable[Site], base: nn.Module) -> None:
    wrong = []
    for site in sites:
        here, there = size(base, site.name), (site.in_features, site.out_features)
        if here != there:
            found = "is absent" if here is None else f"is {here[0]} -> {here[1]}"
            wrong.append(f"{site.name} {found}, not {there[0]} -> {there[1]}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"the adapter belongs to another base model than --base: {'; '.join(wrong[:5])}{more}")


def _layer(shape: tuple[int, int], conv1d: bool) -> nn.Module:
    in_features, out_features = shape
    layer: Any
    with torch.device("meta"):
        if conv1d:
            from transformers.pytorch_utils import Conv1D

            layer = Conv1D(out_features, in_features)
        else:
            layer = nn.Linear(in_features, out_features, bias=False)
    layer.weight = nn.Parameter(torch.zeros(1).expand(layer.weight.shape), requires_grad=False)
    layer.bias = None
    assert features(layer) == shape
    return layer


def _home(model: nn.Module, name: str, last: nn.Module | None = None) -> nn.Module:
    """The module called `name`, made where it is absent, with all that it lies in."""
    *above, end = name.split(".")
    for word in above:
        if word not in model._modules:
            model.add_module(word, nn.Module())
        model = model.get_submodule(word)
    if last is not None or end not in model._modules:
        model.add_module(end, nn.Module() if last is None else last)
    return model.get_submodule(end)
