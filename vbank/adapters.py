"""What is put on a model: the adapters, kept in its submodule `vbank`, and the hooks through which they act.

A forward hook on each adapted layer adds the update, so that the model's modules and the names in its state_dict stay
as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vbank.methods.base import Config, Method, Site
from vbank.targets import Part, Targets

HOME = "vbank"  # the submodule of the model that holds all adapters
WRAPPERS = {  # class -> where it keeps the model; by name, for importing some of them costs seconds
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "DeepSpeedEngine": "module",
}


class Adapter(nn.Module):
    """One named adapter: a method on the sites that its targets named, and the modules trained with it.

    Attributes:
        name: what `activate`, `save`, `merge`, `count` and `detach` take as ``name=``.
        config: the method's settings.
        method: the trainable parameters; ``adapter.method.factors(site.name)`` gives A and B.
        sites: the adapted linear maps.
        targets: as given to `attach`.
        train_modules: as given to `attach` for `train`.
        trained: names of the model's own parameters that are trained and saved with the adapter (the head).
    """

    def __init__(
        self,
        name: str,
        config: Config,
        method: Method,
        parts: Sequence[Part],
        targets: Targets,
        train: Sequence[str] = (),
        trained: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.name, self.config, self.method = name, config, method
        self.targets, self.train_modules = targets, list(train)
        self.sites: tuple[Site, ...] = tuple(part.site for part in parts)
        self.trained = list(trained)
        self.layers: dict[str, list[Part]] = {}  # module name -> its parts
        for part in sorted(parts, key=lambda part: part.start):
            self.layers.setdefault(part.module, []).append(part)

    def head(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's own parameters that are trained with this adapter, by name."""
        return {name: model.get_parameter(name) for name in self.trained}


class Adapters(nn.ModuleDict):
    """All adapters of one model, which of them acts, and what must be put back when they leave."""

    def __init__(self, requires_grad: set[str]) -> None:
        super().__init__()
        self.active: str | None = None
        self.on = True
        self.merged: str | None = None
        self.requires_grad_before = requires_grad
        self.base_heads: dict[str, Tensor] = {}  # values of trained parameters in the base model
        self.idle_heads: dict[str, dict[str, Tensor]] = {}  # adapter -> values of its head while another one acts
        self.unmerged: dict[str, Any] = {}  # module name -> weight data, or the quantised layer, before the merge
        self.hooked: dict[str, Any] = {}  # module name -> handle of its hook
        self.root_hooks: list[Any] = []
        self.layouts: list[tuple[nn.Module, Any]] = []  # 4-bit layers and what `restore_layout` gives back to them

    def forward(self, input: Any) -> Any:
        """The input: an `nn.Sequential` calls all its submodules in turn, and so also this one."""
        return input

    def adapter(self, name: str) -> Adapter:
        """The adapter called `name`, which exists."""
        adapter = self[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def current(self) -> Adapter | None:
        """The adapter whose update is to be added now."""
        if not self.on or self.merged is not None or self.active is None:
            return None
        return self.adapter(self.active)

    def put_head_in(self, model: nn.Module, name: str) -> None:
        """Give the model the adapter's values of the parameters that are trained with it.

        The tensors are exchanged, not overwritten: a graph built before `enabled(model, False)` stays valid after it.
        Nor are they made in inference mode, from where no later backward would pass them.
        """
        with torch.inference_mode(False), torch.no_grad():
            for key, parameter in self.adapter(name).head(model).items():
                parameter.data = self.idle_heads[name].pop(key).to(parameter)

    def put_head_away(self, model: nn.Module, name: str) -> None:
        """Keep the adapter's values of those parameters and give the model the base model's."""
        with torch.inference_mode(False), torch.no_grad():
            for key, parameter in self.adapter(name).head(model).items():
                self.idle_heads[name][key] = parameter.data
                parameter.data = self.base_heads[key].to(parameter, copy=True)


class AddUpdate:
    """Forward hook of an adapted layer: output + s * B (A x)."""

    def __init__(self, adapters: Adapters, layer: str) -> None:
        self.adapters, self.layer = adapters, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        adapter = self.adapters.current()
        parts = adapter.layers.get(self.layer, ()) if adapter is not None else ()
        if adapter is None or not parts:
            return output
        x = args[0] if args else next(iter(kwargs.values()))
        if parts[0].stop - parts[0].start == output.shape[-1]:
            return adapter.method.update(x, parts[0].site.name, output)
        pieces, end = [], 0  # slices of a fused projection, and what lies between them
        for part in parts:
            onto = output[..., part.start : part.stop]
            pieces += [output[..., end : part.start], adapter.method.update(x, part.site.name, onto)]
            end = part.stop
        return torch.cat([*pieces, output[..., end:]], dim=-1)


class BeginPass:
    """Forward pre-hook of the model: the active method may prepare what its sites share."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        adapter = self.adapters.current()
        if adapter is not None:
            adapter.method.begin_pass()


class EndPass(BeginPass):
    """Forward hook of the model, called also where the forward failed."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        adapter = self.adapters.current()
        if adapter is not None:
            adapter.method.end_pass()


class GradientEntry:
    """Forward hook of the input embedding, for gradient checkpointing on a frozen model.

    A reentrant checkpoint gives gradients only where one of its inputs needs them, and a frozen embedding's output
    does not.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = list(blocks)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        checkpointed = any(getattr(block, "gradient_checkpointing", False) for block in self.blocks)
        if checkpointed and torch.is_grad_enabled() and isinstance(output, Tensor) and output.is_leaf:
            output.requires_grad_(True)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of torch.compile and data parallelism."""
    for cls in type(model).__mro__:
        inner = getattr(model, WRAPPERS.get(cls.__name__, ""), None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return model


def adapters_of(model: nn.Module) -> tuple[nn.Module, Adapters]:
    """The model without wrappers and its adapters.

    Raises:
        ValueError: the model has none.
    """
    model = unwrap(model)
    home = dict(model.named_children()).get(HOME)
    if not isinstance(home, Adapters):
        parts = [name.rpartition(".")[0] for name, module in model.named_modules() if isinstance(module, Adapters)]
        raise ValueError(
            f"{type(model).__name__} has no adapter of its own, its part {parts[0]!r} has; give that part instead"
            if parts
            else f"{type(model).__name__} has no adapter; attach one with vbank.attach or vbank.load"
        )
    return model, home


def adapter_of(model: nn.Module, name: str | None = None) -> tuple[nn.Module, Adapters, Adapter]:
    """The model, its adapters, and the one called `name` (None: the active one).

    Raises:
        ValueError: there is no such adapter.
    """
    model, home = adapters_of(model)
    name = home.active if name is None else name
    if name is None or name not in home:
        raise ValueError(f"no adapter is called {name!r}; there are {', '.join(map(repr, home))}")
    return model, home, home.adapter(name)


def refuse_spread(parameters: Iterable[Tensor], words: str) -> None:
    """Raise a ValueError where FSDP2 has spread parameters over processes.

    It tells by the name of their class, which costs a second to import.
    """
    if any(cls.__name__ == "DTensor" for parameter in parameters for cls in type(parameter).__mro__):
        raise ValueError(words)


def refuse_sharded(model: nn.Module, adapter: Adapter) -> None:
    """Raise a ValueError where the adapter, or the head trained with it, is spread over processes."""
    parameters = [*adapter.method.parameters(), *adapter.head(model).values()]
    way = "call model.unshard() in all of them, then save in one"
    refuse_spread(parameters, f"FSDP has spread adapter {adapter.name!r} over processes; {way}")


def refuse_inactive(home: Adapters, adapter: Adapter) -> None:
    """Raise a ValueError where another adapter acts."""
    if adapter.name != home.active:
        raise ValueError(f"{adapter.name!r} is not the active adapter; call vbank.activate(model, {adapter.name!r})")


def refuse_disabled(home: Adapters) -> None:
    """Raise a ValueError inside `enabled(model, False)`."""
    if not home.on:
        raise ValueError("the adapters are disabled; leave the block of vbank.enabled(model, False) first")


def refuse_merged(home: Adapters) -> None:
    """Raise a ValueError where an adapter is merged into the weights."""
    if home.merged is not None:
        raise ValueError(f"adapter {home.merged!r} is merged into the weights; call vbank.unmerge(model) first")
