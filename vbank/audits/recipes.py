"""How a printed figure is computed: a recipe from the audit's data, evaluated on the architecture's true shapes.

A recipe is a table. It counts something of an architecture `on`, at the layers `at`, or does arithmetic on recipes:

- lora, vera, tied-lora, prolora, vb-lora = {settings}: a method; `of` says what of it: trained, stored, bytes,
  sub-vectors, pair (VeRA's matrices, which all layers share), or one of its parameter groups, such as bank.
- full = true: all parameters; `head` with the language-model head, `without` leaves out names that hold a word.
- biases = true: all bias vectors.
- adapters = {bottleneck, a_layer, norms}: bottleneck adapters, so many a layer, and trained norms a layer.
- lora-xs = {rank}: r x r a layer.
- ratio, percent, saved = [a, b]: a / b, 100 a / b, 100 (1 - a / b). sum, product, least, most = [...]. floor = a.
- printed = "0.4M": a number as another cell prints it. number = "1.5": a number.

For other ways of counting: `changed` replaces settings of the configuration, `split` takes a fused projection as
query, key and value, `fused` takes these three as one, `parts` = d divides a layer into blocks of d x d, `tied_to`
sets the size of Tied-LoRA's pair, `index_bytes` and `weights` say how VB-LoRA stores a sub-vector.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from vbank import architectures
from vbank.audits.printed import read
from vbank.counting import count_sites
from vbank.methods import METHODS, Site, TiedLoRA, VBLoRA, VeRA
from vbank.methods.base import Config
from vbank.methods.vera import largest

Recipe = Mapping[str, Any]

ARITHMETIC: dict[str, Callable[[list[Fraction]], Fraction]] = {
    "ratio": lambda values: values[0] / values[1],
    "percent": lambda values: 100 * values[0] / values[1],
    "saved": lambda values: 100 * (1 - values[0] / values[1]),
    "sum": lambda values: sum(values, Fraction()),
    "product": lambda values: math.prod(values, start=Fraction(1)),
    "least": min,
    "most": max,
    "floor": lambda values: Fraction(math.floor(values[0])),
}


def evaluate(recipe: Recipe, defaults: Recipe | None = None) -> Fraction:
    """The recipe's value, exactly.

    Args:
        recipe: see this module.
        defaults: `on`, `at` and `of` for recipes that do not say.

    Raises:
        ValueError: the recipe counts nothing that is known here.
    """
    for name, combine in ARITHMETIC.items():
        if name in recipe:
            parts = recipe[name] if isinstance(recipe[name], list) else [recipe[name]]
            return combine([evaluate(part, defaults) for part in parts])
    if "printed" in recipe:
        return read(recipe["printed"]).value
    if "number" in recipe:
        return Fraction(recipe["number"])
    return Fraction(_count({**(defaults or {}), **recipe}))


def counted(recipe: Recipe, defaults: Recipe | None = None) -> Iterator[Recipe]:
    """The recipes inside this one that count something of an architecture, complete with the defaults."""
    for name in ARITHMETIC:
        if name in recipe:
            for part in recipe[name] if isinstance(recipe[name], list) else [recipe[name]]:
                yield from counted(part, defaults)
            return
    if "printed" not in recipe and "number" not in recipe:
        yield {**(defaults or {}), **recipe}


def method_of(recipe: Recipe) -> Config | None:
    """The method that the recipe counts, or None where it counts something else."""
    for name, kind in METHODS.items():
        if name in recipe:
            return kind(**recipe[name])
    return None


def _count(recipe: Recipe) -> float | Fraction:
    config = method_of(recipe)
    if config is not None:
        return _count_method(config, sites_of(recipe), recipe)
    if "full" in recipe:
        return sum(size for name, size in _parameters(recipe) if recipe.get("without", "\n") not in name)
    if "biases" in recipe:
        return sum(size for name, size in _parameters(recipe) if name.endswith("bias"))
    if "adapters" in recipe:
        return _count_adapters(recipe)
    if "lora-xs" in recipe:
        return len(sites_of(recipe)) * recipe["lora-xs"]["rank"] ** 2
    raise ValueError(f"recipe {dict(recipe)} counts nothing that is known here")


def _count_method(config: Config, sites: list[Site], recipe: Recipe) -> float | Fraction:
    count = count_sites(config, sites)
    match recipe.get("of", "trained"):
        case "trained":
            tied = recipe.get("tied_to")
            if tied and isinstance(config, TiedLoRA):
                return count.trainable - config.rank * (sum(largest(sites)) - 2 * tied)
            return count.trainable
        case "stored" if isinstance(config, VBLoRA) and "index_bytes" in recipe:
            k, bank = config.stored_k, count.groups["bank"].stored
            weights = recipe.get("weights", k - 1)
            return Fraction(bank) + _sub_vectors(config, sites) * (weights + k * Fraction(recipe["index_bytes"], 4))
        case "stored":
            return Fraction(count.stored)
        case "bytes":
            return count.bytes
        case "sub-vectors" if isinstance(config, VBLoRA):
            return _sub_vectors(config, sites)
        case "pair" if isinstance(config, VeRA):
            return config.rank * sum(largest(sites))
        case group if group in count.groups:
            return count.groups[group].trained
    raise ValueError(f"of {recipe['of']!r} is nothing that {config.title} has")


def _sub_vectors(config: VBLoRA, sites: list[Site]) -> int:
    return sum(sum(config.sub_vectors(site)) for site in sites)


def _count_adapters(recipe: Recipe) -> int:
    """|theta| = adapters (2 d m + m + d) + norms 2 d (Hu et al. 2022, section 5.1), bottleneck m, both a layer."""
    settings, configuration = recipe["adapters"], _built(recipe["on"], False, ()).config
    m, d = settings["bottleneck"], configuration.hidden_size
    a_layer = settings.get("a_layer", 1) * (2 * d * m + m + d) + settings.get("norms", 0) * 2 * d
    return configuration.num_hidden_layers * a_layer


@functools.cache
def _built(name: str, language_model: bool, changes: tuple[tuple[str, Any], ...]) -> Any:
    return architectures.build(name, language_model, **dict(changes))


@functools.cache
def _sites(name: str, targets: str | tuple[str, ...], changes: tuple[tuple[str, Any], ...]) -> tuple[Site, ...]:
    from vbank.targets import resolve

    named = list(targets) if isinstance(targets, tuple) else targets
    return tuple(part.site for part in resolve(_built(name, False, changes), named))


def sites_of(recipe: Recipe) -> list[Site]:
    """The linear maps that the recipe adapts."""
    at = recipe["at"]
    changes = tuple(sorted(recipe.get("changed", {}).items()))
    sites = list(_sites(recipe["on"], tuple(at) if isinstance(at, list) else at, changes))
    if recipe.get("split"):
        sites = [part for site in sites for part in _apart(site)]
    if recipe.get("parts"):
        sites = [part for site in sites for part in _blocks(site, recipe["parts"])]
    return _together(sites) if recipe.get("fused") else sites


def _apart(site: Site) -> list[Site]:
    """A fused projection as the three layers that it holds; other layers as they are."""
    if not site.name.endswith("c_attn"):
        return [site]
    return [Site(f"{site.name}:{which}", site.in_features, site.out_features // 3) for which in "qkv"]


def _blocks(site: Site, d: int) -> list[Site]:
    """The layer as blocks of d x d (VB-LoRA, section 3.1)."""
    blocks = itertools.product(range(site.out_features // d), range(site.in_features // d))
    return [Site(f"{site.name}:{row},{column}", d, d) for row, column in blocks]


def _together(sites: list[Site]) -> list[Site]:
    """Query, key and value of each layer as one map with three outputs."""
    outputs: dict[tuple[str, int], int] = {}
    for site in sites:
        key = (site.name.rpartition(".")[0], site.in_features)
        outputs[key] = outputs.get(key, 0) + site.out_features
    return [Site(name, size, out) for (name, size), out in outputs.items()]


def _parameters(recipe: Recipe) -> list[tuple[str, int]]:
    model = _built(recipe["on"], recipe.get("head", False), ())
    return [(name, parameter.numel()) for name, parameter in model.named_parameters()]
