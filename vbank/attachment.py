"""How a method meets a model: attach, activate, detach, and the parameters that an optimizer takes."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vbank.adapters import (
    HOME,
    Adapter,
    Adapters,
    AddUpdate,
    BeginPass,
    EndPass,
    GradientEntry,
    adapter_of,
    refuse_disabled,
    refuse_inactive,
    refuse_merged,
    unwrap,
)
from vbank.layers import restore_layout, to_training_layout
from vbank.methods.base import Config, is_number
from vbank.quantised import admit_to_trainer, declare_dense, withdraw_from_trainer
from vbank.targets import Part, Targets, matching, modules_of, resolve


def attach(
    model: nn.Module,
    config: Config,
    targets: Targets,
    train: Sequence[str] = (),
    name: str = "default",
    dtype: torch.dtype | None = None,
) -> Adapter:
    """Put an adapter on a model, in place, freeze the rest, and make the adapter the active one.

    Each target layer then computes y = base(x) + s * B (A x). The model's modules and the names in its state_dict stay
    as they were; the adapter's parameters are added under ``vbank.<name>``. A state_dict holds the head of the active
    adapter alone, as it stands in the model; `vbank.save` keeps that of any adapter.

    Args:
        model: any module with `nn.Linear`, `Conv1D`, `Linear4bit` or `Linear8bitLt` layers. With bitsandbytes 0.50 both
            quantised kinds also run on the CPU; an 8-bit layer must be on its device before a merge.
        config: the method, such as ``vbank.VBLoRA(rank=4)``.
        targets: names that end module names, "qv", "all-linear", or a regular expression for whole names.
        train: modules of the model, by the ends of their names, that are trained whole and saved with the adapter,
            such as a new classifier.
        name: what to call the adapter.
        dtype: type of the adapter's parameters; float32 by default, also on a half-precision or quantised model.

    Returns:
        The adapter.

    Raises:
        ValueError: a target or train name matches nothing, a layer does not suit the method, the name is taken, the
            model is wrapped or merged, or its layers lie on several devices. The model is then as it was.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> adapter = vbank.attach(model, vbank.LoRA(rank=2), targets=["0"], train=["2"])
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias', 'vbank.default.method.A.0', 'vbank.default.method.B.0']
    """
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype is {dtype!r}; choose torch.float32, bfloat16, float16 or float64, or None for float32")
    if not isinstance(config, Config):
        raise ValueError(f"config is {config!r}; give a method such as vbank.LoRA(rank=8)")
    check_room(model, name)
    parts = resolve(model, targets)
    trained = trained_parameters(model, train, parts)
    config.check([part.site for part in parts])
    device = device_of(model, parts)
    method = config.build([part.site for part in parts], dtype=dtype or torch.float32, device=device)
    return install(model, Adapter(name, config, method, parts, targets, train, trained))


def device_of(model: nn.Module, parts: Sequence[Part]) -> torch.device:
    """The one device of the layers that an update sits on.

    Raises:
        ValueError: they lie on several, as a `device_map` puts them.
    """
    layers: list[Any] = [model.get_submodule(part.module) for part in parts]
    places: dict[torch.device, None] = dict.fromkeys(layer.weight.device for layer in layers)
    if len(places) > 1:
        raise ValueError(
            f"the target layers lie on {', '.join(map(str, places))}; an adapter lies on one device, so put the whole"
            " model on one, such as device_map={'': 0}, and quantise it if it does not fit"
        )
    return next(iter(places))


def check_room(model: nn.Module, name: str) -> None:
    """Refuse a model that cannot take an adapter called `name`.

    Raises:
        ValueError: the model is wrapped or merged, a part of it has adapters of its own, or the name is taken or no
            name.
    """
    if unwrap(model) is not model:
        raise ValueError(
            f"the model is wrapped in {type(model).__name__}; attach to the model itself, then wrap it"
            " (torch.compile, DistributedDataParallel)"
        )
    home = dict(model.named_children()).get(HOME)
    if home is None and hasattr(model, HOME):
        raise ValueError(f"the model has an attribute {HOME!r} of its own, where adapters would be kept; rename it")
    if home is None and any(isinstance(m, Adapters) for m in model.modules()):
        raise ValueError("a part of the model has adapters of its own; attach to that part, or detach them first")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or hasattr(Adapters(set()), name):
        raise ValueError(
            f"adapter name {name!r} cannot be used in a state_dict; use letters, digits, '-' and '_', and no name of an"
            " nn.Module attribute"
        )
    if isinstance(home, Adapters):
        if name in home:
            raise ValueError(
                f"an adapter called {name!r} is attached already; pick another name=, or vbank.detach(model, {name!r})"
            )
        refuse_merged(home)
        refuse_disabled(home)


def install(model: nn.Module, adapter: Adapter, head: Mapping[str, Tensor] | None = None) -> Adapter:
    """Put a finished adapter on a model that `check_room` let pass, and make it the active one.

    Args:
        model: the model.
        adapter: the adapter.
        head: values of the parameters in ``adapter.trained``; None takes the model's.
    """
    home = dict(model.named_children()).get(HOME)
    if not isinstance(home, Adapters):
        home = Adapters({n for n, p in model.named_parameters() if p.requires_grad})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.add_module(HOME, home)
        _hook_root(model, home)
    for part in list(itertools.chain.from_iterable(adapter.layers.values())):
        for layer in modules_of(model, part):
            adapter.layers.setdefault(layer, adapter.layers[part.module])
            if layer not in home.hooked:
                hook = AddUpdate(home, layer)
                home.hooked[layer] = model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True)
    for key, parameter in adapter.head(model).items():
        home.base_heads.setdefault(key, parameter.detach().clone())
    values = home.base_heads if head is None else head
    home.idle_heads[adapter.name] = {key: values[key].clone() for key in adapter.trained}
    adapter.train(model.training)
    home[adapter.name] = adapter
    _make_active(model, home, adapter.name)
    return adapter


def trained_parameters(model: nn.Module, train: Sequence[str], parts: Sequence[Part]) -> list[str]:
    """Names of the model's parameters inside the modules that `train` names, in the model's order.

    Raises:
        ValueError: `train` is a string or matches nothing, a module is adapted too, or holds quantised parameters,
            running statistics or no parameters.
    """
    if isinstance(train, str):
        raise ValueError(f"train is the string {train!r}; give a list of module names, such as [{train!r}]")
    if not train:
        return []
    own = [n for n, _ in model.named_modules() if n and n.partition(".")[0] != HOME]
    modules = matching(model, train, own, "train module")
    whole = {id(p) for m in modules for p in model.get_submodule(m).parameters()}  # a tied one has several names
    names = [n for n, p in model.named_parameters() if id(p) in whole and n.partition(".")[0] != HOME]
    if not names:
        raise ValueError(f"train: {', '.join(sorted(modules))} holds no parameters; name a module that has some")
    clash = [p.module for p in parts if not whole.isdisjoint(map(id, model.get_submodule(p.module).parameters()))]
    if clash:
        both = ", ".join(dict.fromkeys(clash))
        raise ValueError(f"{both} would be both adapted and trained whole; leave it out of targets or train")
    running = [f"{m}.{n}" for m in modules for n, b in model.get_submodule(m).named_buffers() if b.is_floating_point()]
    if running:
        raise ValueError(
            f"train: {', '.join(running)} changes in training without being a parameter, as running statistics do, and"
            " would not be saved; use a head without it, such as one with LayerNorm"
        )
    packed = [n for n in names if not model.get_parameter(n).is_floating_point()]
    if packed:
        raise ValueError(f"train: {', '.join(packed)} is quantised and cannot be trained whole; adapt it instead")
    return names


def _hook_root(model: nn.Module, home: Adapters) -> None:
    home.root_hooks = [
        model.register_forward_pre_hook(BeginPass(home)),
        model.register_forward_hook(EndPass(home), always_call=True),
    ]
    blocks = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    embed, transformer = None, cast(Any, model)
    with contextlib.suppress(AttributeError, NotImplementedError):  # no transformers model, or one without embeddings
        embed = transformer.get_input_embeddings() if blocks else None
    if isinstance(embed, nn.Module):
        home.root_hooks.append(embed.register_forward_hook(GradientEntry(blocks)))
    layouts = [(module, to_training_layout(module)) for module in model.modules()]
    home.layouts = [(module, before) for module, before in layouts if before is not None]
    admit_to_trainer(model)


def _make_active(model: nn.Module, home: Adapters, name: str | None) -> None:
    """Let one adapter act and be trained: its parameters need gradients, its head stands in the model."""
    if home.active is not None:
        before = home.adapter(home.active)
        home.put_head_away(model, before.name)
        for parameter in (*before.parameters(), *before.head(model).values()):
            parameter.requires_grad_(False)
            parameter.grad = None
    home.active = name
    if name is not None:
        adapter = home.adapter(name)
        home.put_head_in(model, name)
        for parameter in (*adapter.method.leaves(), *adapter.head(model).values()):
            parameter.requires_grad_(not adapter.method.frozen)


def activate(model: nn.Module, name: str) -> Adapter:
    """Let the adapter called `name` act instead of the present one, head included.

    Raises:
        ValueError: there is no such adapter, one is merged, or the adapters are disabled.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> for name in ("formal", "brief"):
        ...     adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), ["0"], name=name)
        >>> x = torch.ones(1, 8)
        >>> brief = model(x)
        >>> adapter = vbank.activate(model, "formal")
        >>> torch.equal(model(x), brief)
        False
    """
    model, home, adapter = adapter_of(model, name)
    refuse_merged(home)
    refuse_disabled(home)
    if name != home.active:
        _make_active(model, home, name)
    return adapter


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take an adapter off the model. With the last one, the model is as it was before the first `attach`.

    Where the active one leaves, the first attached of the others becomes active.

    A merged adapter stays in the weights, its head included: `merge` and then `detach` leave a plain model with the
    update built in. transformers then saves a quantised model's merged layers as ordinary ones, and without any
    quantised layer left as an ordinary model.

    Args:
        model: a model with an adapter.
        name: the adapter; None takes the active one.

    Raises:
        ValueError: there is no such adapter, another one is merged, or the adapters are disabled.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> before = list(model.state_dict())
        >>> adapter = vbank.attach(model, vbank.VeRA(rank=4), targets=["0"])
        >>> vbank.detach(model)
        >>> list(model.state_dict()) == before
        True
    """
    model, home, adapter = adapter_of(model, name)
    refuse_disabled(home)
    if home.merged != adapter.name:
        refuse_merged(home)
    dense = any(isinstance(old, nn.Module) for old in home.unmerged.values())  # a merge has dequantised layers
    if home.merged is not None:
        if len(home) > 1:
            others = ", ".join(repr(other) for other in home if other != adapter.name)
            raise ValueError(f"{others} would then act on changed weights; detach the other adapters first, or unmerge")
        home.unmerged.clear()
        home.active = None
    elif home.active == adapter.name:
        _make_active(model, home, None)
    del home[adapter.name]
    del home.idle_heads[adapter.name]
    if home.active is None and len(home):
        _make_active(model, home, next(iter(home)))
    used = {layer for other in home for layer in home.adapter(other).layers}
    for layer in [layer for layer in home.hooked if layer not in used]:
        home.hooked.pop(layer).remove()
    if not len(home):
        _leave(model, home)
        if dense:
            declare_dense(model)


def _leave(model: nn.Module, home: Adapters) -> None:
    for handle in home.root_hooks:
        handle.remove()
    for module, layout in home.layouts:
        restore_layout(module, layout)
    delattr(model, HOME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in home.requires_grad_before)
    withdraw_from_trainer(model)


def param_groups(
    model: nn.Module, lr: float | dict[str, float], weight_decay: float = 0.0, name: str | None = None
) -> list[dict[str, Any]]:
    """The active adapter's parameters in groups, ready for `torch.optim.AdamW`.

    Args:
        model: a model with an adapter.
        lr: one learning rate, or one a group. The groups are the method's (VB-LoRA: bank, logits; LoRA: A, B; VeRA: d,
            b; Tied-LoRA: A, B, u, v; PRoLoRA: A, B) and `head` for the modules trained whole; `default` stands for
            those not named.
        weight_decay: for all groups.
        name: the adapter; None takes the active one.

    Raises:
        ValueError: an unknown group, a group without a rate, a rate below zero, or an adapter that cannot be trained.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4), ["0"], train=["2"])
        >>> groups = vbank.param_groups(model, lr=dict(bank=1e-3, logits=1e-2, head=4e-3))
        >>> [(group["name"], group["lr"]) for group in groups]
        [('bank', 0.001), ('logits', 0.01), ('head', 0.004)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    model, home, adapter = adapter_of(model, name)
    if adapter.method.frozen:
        raise ValueError(
            f"adapter {adapter.name!r} comes from a compact file, which holds no logits; load it with trainable=True,"
            " or load the resumable form"
        )
    refuse_inactive(home, adapter)
    groups: dict[str, list[nn.Parameter]] = adapter.method.groups()
    if not {id(p) for parameters in groups.values() for p in parameters} <= {id(p) for p in adapter.method.leaves()}:
        raise ValueError(
            f"a SelectedAdamW trains the logits of adapter {adapter.name!r}; call its release() first. A copy of the"
            f" model has none: call model.vbank[{adapter.name!r}].method.train_chosen(False) there"
        )
    if adapter.trained:
        groups = groups | {"head": list(adapter.head(model).values())}
    rates = dict(lr) if isinstance(lr, dict) else {"default": lr}
    unknown = [key for key in rates if key not in groups and key != "default"]
    if unknown:
        raise ValueError(
            f"learning rate for {', '.join(map(repr, unknown))}, but the groups of this adapter are {', '.join(groups)}"
        )
    missing = [key for key in groups if key not in rates and "default" not in rates]
    if missing:
        raise ValueError(f"no learning rate for {', '.join(missing)}; name it in lr, or give lr a 'default'")
    for key, rate in rates.items():
        if not (is_number(rate) and 0.0 <= rate < math.inf):
            raise ValueError(f"learning rate of {key!r} is {rate!r}; it must be a finite number of at least 0")
    if not (is_number(weight_decay) and 0.0 <= weight_decay < math.inf):
        raise ValueError(f"weight_decay is {weight_decay!r}; it must be a finite number of at least 0")
    return [
        {"name": key, "params": parameters, "lr": rates.get(key, rates.get("default")), "weight_decay": weight_decay}
        for key, parameters in groups.items()
    ]
