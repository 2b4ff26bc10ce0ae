"""How many scalars an adapter trains and stores, from a live model or from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from vbank.adapters import adapter_of
from vbank.methods.base import Config, Site, Storage


@dataclass(frozen=True)
class Count:
    """Trained and stored scalars of one adapter. Printing it gives a table.

    `trainable`, `stored` and `nbytes` count the method alone, as the papers do; a head that is trained whole is counted
    in `head`.

    Args:
        method: the method's name in print.
        groups: what each parameter group trains and stores.
        head: the same for modules trained whole, or None.
        sites: number of adapted linear maps.
    """

    method: str
    groups: dict[str, Storage] = field(default_factory=dict)
    head: Storage | None = None
    sites: int = 0

    @property
    def trainable(self) -> int:
        """Trained scalars."""
        return sum(group.trained for group in self.groups.values())

    @property
    def stored(self) -> float:
        """Stored scalars in float32 equivalents; a uint8 index counts 1/4, a uint16 index 1/2."""
        return float(sum(group.stored for group in self.groups.values()))

    @property
    def bytes(self) -> int:
        """Bytes of the tensors in a compact file, without its header."""
        return sum(group.nbytes for group in self.groups.values())

    def __str__(self) -> str:
        rows = [(name, g) for name, g in self.groups.items()]
        total = Storage(self.trainable, self.stored, self.bytes)
        rows.append((f"{self.method}, {self.sites} layer{'' if self.sites == 1 else 's'}", total))
        if self.head is not None:
            rows.append(("head, apart", self.head))
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'trained':>13}  {'stored':>15}  {'bytes':>13}"]
        lines += [f"{name:{width}}  {g.trained:>13,}  {g.stored:>15,.1f}  {g.nbytes:>13,}" for name, g in rows]
        lines.insert(-1 if self.head is None else -2, "-" * len(lines[0]))
        return "\n".join(lines)


def count(model: nn.Module, name: str | None = None) -> Count:
    """Count one adapter of a live model (also one on the meta device).

    Args:
        model: a model with an adapter.
        name: the adapter; None takes the active one. Others on the same model do not count.

    Raises:
        ValueError: there is no such adapter.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> adapter = vbank.attach(model, vbank.LoRA(rank=2), targets=["0"], train=["2"])
        >>> print(vbank.count(model))
                             trained           stored          bytes
        A                         16             16.0             64
        B                         16             16.0             64
        ------------------------------------------------------------
        LoRA, 1 layer             32             32.0            128
        head, apart               18             18.0             72
    """
    model, _, adapter = adapter_of(model, name)
    groups = adapter.method.groups()
    itemsize = next(iter(groups.values()))[0].element_size()
    trained = {} if adapter.method.frozen else groups
    live = {key: sum(p.numel() for p in parameters) for key, parameters in trained.items()}
    storage = adapter.config.storage(adapter.sites, itemsize)
    storage = {key: Storage(live.get(key, 0), s.stored, s.nbytes) for key, s in storage.items()}
    head = None
    if adapter.trained:
        parameters = list(adapter.head(model).values())
        scalars = sum(p.numel() for p in parameters)
        head = Storage(scalars, float(scalars), sum(p.numel() * p.element_size() for p in parameters))
    return Count(adapter.config.title, storage, head, len(adapter.sites))


def count_sites(config: Config, sites: Sequence[Site], itemsize: int = 4) -> Count:
    """Count a method on linear maps of given shapes; nothing is allocated.

    Args:
        config: the method.
        sites: the adapted linear maps.
        itemsize: bytes of one stored scalar.

    Raises:
        ValueError: a site's shape does not suit the method.

    Example:
        >>> import vbank
        >>> from vbank import architectures
        >>> sites = architectures.sites("roberta-base", "qv")
        >>> len(sites), vbank.count_sites(vbank.LoRA(rank=8), sites).bytes
        (24, 1179648)
    """
    config.check(sites)
    return Count(config.title, config.storage(sites, itemsize), None, len(sites))
