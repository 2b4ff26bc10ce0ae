"""Recipes: every setting of an experiment as TOML, one file an experiment, read strictly.

A file has the sections `[task]`, `[model]`, `[method]`, `[train]` and `[search]`. Over them lie, in this order,
`[cpu.SECTION]` or `[gpu.SECTION]` of the scale, `[variants.NAME.SECTION]` of the variant, the variant's own scale, and
`--set SECTION.KEY=VALUE`. A key that is not known is an error that names the close one.

Variants that share settings name what they are made `from`: a list of `[parts.NAME]`, which look like variants but
cannot be run, or of other variants. Each is laid down with its own scale, in the order of the list, before the variant.
"""

from __future__ import annotations

import fnmatch
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vbank.methods import METHODS
from vbank.recipes.settings import (
    BASELINES,
    CHOICES,
    NOT_RECORDED,
    RANGES,
    MethodSettings,
    ModelSettings,
    SearchSettings,
    TaskSettings,
    TrainSettings,
)
from vbank.suggestions import unknown

FOLDER = Path(__file__).parent
SCALES = ("cpu", "gpu")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the recipe, the key and the way out."""


@dataclass(frozen=True)
class Recipe:
    """Everything that one run depends on, except its seed."""

    experiment: str
    variant: str
    scale: str
    task: TaskSettings
    model: ModelSettings
    method: MethodSettings
    train: TrainSettings
    search: SearchSettings

    @property
    def name(self) -> str:
        """experiment/variant, as `load` takes it."""
        return f"{self.experiment}/{self.variant}"

    def resolved(self) -> dict[str, Any]:
        """What the numbers of a run depend on, as plain JSON values; of a local model folder its last name alone."""
        settings = self._settings()
        settings["model"]["name"] = Path(self.model.name).name if Path(self.model.name).is_dir() else self.model.name
        return settings

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self)
        del settings["search"]
        for key in NOT_RECORDED:
            del settings["train"][key]
        return settings

    def identity(self) -> dict[str, Any]:
        """`resolved` without what stands at its default, so that a setting added later leaves old runs their names."""
        settings = self._settings()
        for section, kind in SECTIONS.items():
            for f in fields(kind):
                default = f.default_factory() if f.default_factory is not MISSING else f.default
                if settings.get(section, {}).get(f.name, MISSING) == default:
                    del settings[section][f.name]
        return settings


SECTIONS = {
    "task": TaskSettings,
    "model": ModelSettings,
    "method": MethodSettings,
    "train": TrainSettings,
    "search": SearchSettings,
}


def available() -> dict[str, list[str]]:
    """Variants of every experiment that comes with the library."""
    return {path.stem: list(_read(path)["variants"]) for path in sorted(FOLDER.glob("*.toml"))}


def load(name: str, overrides: Iterable[str] = (), scale: str | None = None) -> Recipe:
    """The recipe `experiment/variant`; the experiment may be a path to a TOML file of your own.

    Args:
        name: such as "first-finetune/lora".
        overrides: strings "section.key=value".
        scale: "cpu" or "gpu"; None takes VBANK_SCALE, else "cpu".

    Raises:
        RecipeError: unknown experiment, variant, section, key or method, or a value of the wrong type or out of range.
    """
    path, variant = locate(name)
    content = _read(path)
    if variant is None:
        raise RecipeError(f"recipe {name!r} has several variants; name one: {', '.join(variants(name))}")
    if variant not in content["variants"]:
        raise RecipeError(f"{path.stem}: {unknown('variant', variant, content['variants'])}")
    scale = scale or os.environ.get("VBANK_SCALE", "cpu")
    if scale not in SCALES:
        raise RecipeError(unknown("scale", scale, SCALES) + " (VBANK_SCALE)")
    layers = [{key: content[key] for key in SECTIONS if key in content}, content.get(scale, {})]
    for chosen in _lineage(variant, content, path.stem):
        layers += [{key: chosen[key] for key in chosen if key not in (*SCALES, "from")}, chosen.get(scale, {})]
    layers += [parse_override(text) for text in overrides]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = overlay(merged, layer, path.stem)
    parts = {key: _build(key, merged.get(key, {}), path.stem) for key in SECTIONS}
    recipe = Recipe(path.stem, variant, scale, **parts)
    _check_rates(recipe)
    return recipe


def _lineage(name: str, content: Mapping[str, Any], where: str, below: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A variant or part, after all those that it is made `from`."""
    known = content["parts"] | content["variants"]
    if name in below:
        raise RecipeError(f"{where}: {name!r} is made from itself: {' from '.join([*below, name])}")
    if name not in known:
        raise RecipeError(f"{where}: {below[-1]!r} is made from an {unknown('part or variant', name, known)}")
    origins = known[name].get("from", [])
    if not _fits(origins, list[str]):
        raise RecipeError(f"{where}: from of {name!r} is {origins!r}; expected a list of names of parts or variants")
    above = [layer for origin in origins for layer in _lineage(origin, content, where, (*below, name))]
    return [*above, known[name]]


def variants(name: str) -> list[str]:
    """Full names of an experiment's variants: of all, or of those that the last part of `name` fits, such as "top-*".

    Raises:
        RecipeError: an unknown experiment, or a pattern that fits no variant.
    """
    path, pattern = locate(name)
    if pattern is None:
        return [f"{name}/{each}" for each in _read(path)["variants"]]
    known = _read(path)["variants"]
    found = [each for each in known if fnmatch.fnmatchcase(each, pattern)]
    if not found:
        raise RecipeError(f"{path.stem}: {unknown('variant', pattern, known)}")
    return [f"{name.rpartition('/')[0]}/{each}" for each in found]


def locate(name: str) -> tuple[Path, str | None]:
    """The TOML file and the variant that a recipe's name stands for."""
    for head, variant in ((name, None), tuple(name.rpartition("/")[::2])):
        if not head:
            continue
        if head.endswith(".toml") and Path(head).is_file():
            return Path(head), variant
        if "/" not in head and (FOLDER / f"{head}.toml").is_file():
            return FOLDER / f"{head}.toml", variant
    raise RecipeError(unknown("recipe", name.partition("/")[0] if ".toml" not in name else name, available()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path.name} is not valid TOML: {error}") from None
    known = (*SECTIONS, *SCALES, "parts", "variants", "title")
    for key in content:
        if key not in known:
            raise RecipeError(f"{path.name}: {unknown('section', key, known)}")
    layers = {"": content}
    for kind in ("parts", "variants"):
        content.setdefault(kind, {})
        _require_sections(content, "", (kind,), path.name)
        _require_sections(content[kind], f"{kind}.", content[kind], path.name)
        layers |= {f"{kind}.{name}.": layer for name, layer in content[kind].items()}
    if both := content["parts"].keys() & content["variants"].keys():
        raise RecipeError(f"{path.name}: {min(both)!r} is a part and a variant; give one of them another name")
    for prefix, layer in layers.items():
        _require_sections(layer, prefix, (*SCALES, *SECTIONS), path.name)
        for scale in SCALES:
            _require_sections(layer.get(scale, {}), f"{prefix}{scale}.", SECTIONS, path.name)
    return content


def _require_sections(table: Mapping[str, Any], prefix: str, keys: Iterable[str], where: str) -> None:
    for key in keys:
        if not isinstance(table.get(key, {}), dict):
            raise RecipeError(f"{where}: {prefix + key!r} must be a section, [{prefix}{key}]")


def parse_override(text: str) -> dict[str, Any]:
    """'train.epochs=3' as nested sections; a value that is no TOML is taken as a string."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) < 2 or not all(path):
        raise RecipeError(f"--set {text!r}: write SECTION.KEY=VALUE, such as train.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(path):
        parsed = {part: parsed}
    return parsed


def overlay(base: Mapping[str, Any], top: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`base` with the sections of `top` laid over it. One learning rate replaces all, a table those it names."""
    merged = {key: dict(value) for key, value in base.items()}
    for section, values in top.items():
        if section not in SECTIONS:
            raise RecipeError(f"{where}: {unknown('section', section, SECTIONS)}")
        values = dict(values)
        rate = values.get("lr") if section == "method" else None
        if isinstance(rate, (int, float)):
            values["lr"] = {"default": rate}
        elif isinstance(rate, dict):
            below = merged.get("method", {}).get("lr")
            values["lr"] = (below if isinstance(below, dict) else {}) | rate
        merged[section] = merged.get(section, {}) | values
    return merged


def _build(section: str, values: dict[str, Any], where: str) -> Any:
    kind = SECTIONS[section]
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}
    if section == "method":
        values = _gather_settings(values, known, where)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}: {unknown(f'key in [{section}]', key, known)}")
        wanted = typing.get_type_hints(kind)[key]
        if not _fits(value, wanted):
            shown = getattr(wanted, "__name__", None) if typing.get_origin(wanted) is None else str(wanted)
            raise RecipeError(f"{where}: {section}.{key} is {value!r}; expected {shown}")
        if value not in CHOICES.get(f"{section}.{key}", (value,)):
            raise RecipeError(f"{where}: {unknown(f'{section}.{key}', value, CHOICES[f'{section}.{key}'])}")
        if f"{section}.{key}" in RANGES:
            expected, inside = RANGES[f"{section}.{key}"]
            if not inside(value):
                raise RecipeError(f"{where}: {section}.{key} is {value!r}; expected {expected}")
    for key, f in known.items():
        if key not in values and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"{where}: [{section}] lacks {key!r}")
    return kind(**values)


def _check_rates(recipe: Recipe) -> None:
    """Learning rates in their range, of groups that there are, and a head where one is named."""
    method = recipe.method
    for where, rates in (("method.lr", method.lr), *(("search.lr", rates) for rates in recipe.search.lr)):
        for group, rate in rates.items():
            if method.name in BASELINES and group not in ("default", "head"):
                known = unknown(f"learning rate in {where} of {method.name}", group, ("default", "head"))
                raise RecipeError(f"{recipe.name}: {known}")
            if not 0 <= rate < math.inf:
                raise RecipeError(f"{recipe.name}: {where}.{group} is {rate!r}; expected a finite number of at least 0")
    if not recipe.model.head and (method.name == "head" or "head" in method.lr):
        raise RecipeError(f"{recipe.name}: model.head is []; expected at least one module, such as 'classifier'")


def _gather_settings(values: dict[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Moves the keys that belong to the method's own configuration into `settings` and checks them there."""
    name = values.get("name")
    names = (*METHODS, *BASELINES)
    if name not in names:
        raise RecipeError(f"{where}: {unknown('method', str(name), names)}")
    own = [] if name in BASELINES else [f.name for f in fields(METHODS[name])]
    outer = {key: value for key, value in values.items() if key in known and key != "settings"}
    settings = {key: value for key, value in values.items() if key not in outer}
    for key in settings:
        if key not in own:
            possible = [*own, *(key for key in known if key != "settings")]
            raise RecipeError(f"{where}: {unknown(f'key in [method] of {name}', key, possible)}")
    if name not in BASELINES:
        try:
            METHODS[name](**settings)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where}: {error}") from None
    return outer | {"settings": settings}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a TOML value has the type of a field; an integer serves as a float, never the reverse."""
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(wanted)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, typing.get_args(wanted)[1]) for item in value.values())
    if wanted is Any:
        return True
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
