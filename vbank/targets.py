"""Which layers receive an update: from what the user wrote to modules and slices of modules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vbank.layers import bypass, features, is_conv1d, is_linear, is_quantised, linear_layers
from vbank.methods.base import Site

Targets = str | Sequence[str]

QUERY = ("query", "q_proj", "q_lin", "q", "query_proj", "to_q", "wq")
VALUE = ("value", "v_proj", "v_lin", "v", "value_proj", "to_v", "wv")
FUSED = ("c_attn", "qkv", "Wqkv")  # query, key and value side by side, in this order
INTERLEAVED = ("query_key_value", "qkv_proj")  # by head, or with fewer keys than queries


@dataclass(frozen=True)
class Part:
    """A site and where it lives: rows start..stop of the output of the module called `module`."""

    site: Site
    module: str
    start: int
    stop: int


def whole(name: str, module: nn.Module) -> Part:
    """The whole layer as one site."""
    in_features, out_features = _sizes(name, module)
    return Part(Site(name, in_features, out_features), name, 0, out_features)


def _slice(name: str, module: nn.Module, which: str) -> Part:
    """The query or value slice of a fused projection (in, 3 * width)."""
    in_features, out_features = _sizes(name, module)
    width, third = out_features // 3, {"query": 0, "value": 2}[which]
    return Part(Site(f"{name}:{which}", in_features, width), name, third * width, (third + 1) * width)


def _sizes(name: str, module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a layer whose weight an update can be added to."""
    dtype = module.weight.dtype
    if dtype.itemsize == 1 and not is_quantised(module):
        raise ValueError(
            f"{name} is a {type(module).__name__} with weights in {dtype}, to which a merge could not add; load the"
            " model dequantised, such as with FineGrainedFP8Config(dequantize=True), or quantised by bitsandbytes"
        )
    return features(module)


def part_of(model: nn.Module, site_name: str) -> Part | None:
    """The part that a site's name stands for, or None where the model has no such layer.

    Raises:
        ValueError: its weight is held in 8 bits by another library than bitsandbytes.
    """
    module_name, _, which = site_name.partition(":")
    module = dict(model.named_modules()).get(module_name)
    if module is None or not is_linear(module) or bypass(model, module_name):
        return None
    if not which:
        return whole(module_name, module)
    return _slice(module_name, module, which) if which in ("query", "value") else None


def resolve(model: nn.Module, targets: Targets) -> list[Part]:
    """The parts that `targets` names, in the model's order; layers that share one weight appear once.

    Args:
        model: any module.
        targets: a list of names that match the ends of module names; ``"qv"``, the query and value projections (in a
            fused projection the two slices); ``"all-linear"``, every linear layer inside the transformer's blocks that
            is called (a Mamba block reads the weights of some layers); any other string is a regular expression that
            matches the whole name.

    Raises:
        ValueError: a name matches nothing (close ones are suggested), or matches something that is no linear layer or
            one that is not called; a weight is held in 8 bits by another library than bitsandbytes.
    """
    linear = {name: module for name, module in linear_layers(model).items() if name}
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer (nn.Linear, Conv1D, bitsandbytes) to adapt")
    if isinstance(targets, str) and targets == "qv":
        parts = _query_value(model, linear)
    elif isinstance(targets, str) and targets == "all-linear":
        parts = [whole(name, linear[name]) for name in _inside_blocks(model, linear)]
    elif isinstance(targets, str):
        parts = [whole(name, linear[name]) for name in _by_pattern(model, targets, linear)]
    else:
        names = matching(model, targets, linear, "target")
        parts = [whole(name, linear[name]) for name in linear if name in names]
    return _one_per_weight(parts, linear)


def matching(model: nn.Module, wanted: Sequence[str], among: Iterable[str], kind: str) -> set[str]:
    """Names in `among` that end with one of `wanted` at a dot.

    Raises:
        ValueError: `wanted` is empty, or one of it matches nothing; names the close ones.
    """
    if not isinstance(wanted, (list, tuple)):
        raise ValueError(f"{kind}s are {wanted!r}; give a list of module names, such as {_examples(among)}")
    if not wanted:
        raise ValueError(f"no {kind} named: give at least one module name, such as {_examples(among)}")
    found: set[str] = set()
    among = list(among)
    for want in wanted:
        if not isinstance(want, str) or not want:
            raise ValueError(f"{kind} {want!r} is no module name; give strings such as {_examples(among)}")
        hits = {name for name in among if name == want or name.endswith("." + want)}
        if not hits:
            raise ValueError(_nothing_matched(model, want, among, kind))
        found |= hits
    return found


def _ends(names: Iterable[str]) -> list[str]:
    """What a user would write: the last parts of the names, without numbers, in order of appearance."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()))


def _examples(names: Iterable[str]) -> str:
    return ", ".join(repr(end) for end in _ends(names)[:6]) or "its full name"


def _nothing_matched(model: nn.Module, want: str, among: Sequence[str], kind: str) -> str:
    for name, module in model.named_modules():
        if kind == "target" and (name == want or name.endswith("." + want)):
            why = bypass(model, name) if is_linear(module) else None
            if why:
                return f"{kind} {name!r}: {why}"
            return f"{kind} {name!r} is a {type(module).__name__}, not a linear layer; name linear layers such as " + (
                _examples(among)
            )
    close = difflib.get_close_matches(want, list(dict.fromkeys([*_ends(among), *among])), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {_examples(among)}"
    return f"{kind} {want!r} matches no module of {type(model).__name__}; {hint}"


def _by_pattern(model: nn.Module, pattern: str, linear: dict[str, nn.Module]) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"targets {pattern!r} is no regular expression: {error}") from error
    names = [name for name in linear if expression.fullmatch(name)]
    if names:
        return names
    _refuse_bypassed(model, f"targets {pattern!r}", expression.fullmatch)
    close = difflib.get_close_matches(pattern, ["qv", "all-linear", *_ends(linear)], n=3, cutoff=0.5)
    hint = f"did you mean [{close[0]!r}]" if close else f"for names such as {_examples(linear)} pass a list"
    if close and close[0] in ("qv", "all-linear"):
        hint = f"did you mean {close[0]!r}"
    raise ValueError(
        f"targets {pattern!r}, read as a regular expression for whole names such as {next(iter(linear))!r}, matches no"
        f" linear layer; {hint}?"
    )


def _refuse_bypassed(model: nn.Module, targets: str, fits: Callable[[str], Any]) -> None:
    """Say so where all that `targets` names are layers that the model does not call."""
    for name, module in model.named_modules():
        why = bypass(model, name) if is_linear(module) and fits(name) else None
        if why:
            raise ValueError(f"{targets} names only layers such as {name!r}: {why}")


def _query_value(model: nn.Module, linear: dict[str, nn.Module]) -> list[Part]:
    parts = []
    for name, module in linear.items():
        end = name.rsplit(".", 1)[-1]
        if end in (*QUERY, *VALUE):
            parts.append(whole(name, module))
        elif end in FUSED and features(module)[1] == 3 * features(module)[0]:
            parts += [_slice(name, module, "query"), _slice(name, module, "value")]
        elif end in INTERLEAVED or (end in FUSED and not is_conv1d(module)):
            raise ValueError(
                f'targets "qv": {name} holds query, key and value in one layer whose rows are not three equal blocks;'
                f" adapt it whole with targets=[{end!r}]"
            )
    if not parts:
        _refuse_bypassed(model, 'targets "qv"', lambda name: name.rpartition(".")[2] in (*QUERY, *VALUE))
        raise ValueError(
            f'targets "qv": {type(model).__name__} has no layers with a known query or value name; name them in a list,'
            f" such as {_examples(linear)}"
        )
    return parts


def _inside_blocks(model: nn.Module, linear: dict[str, nn.Module]) -> list[str]:
    """Linear layers below a list of equal blocks, which is how transformers stack their layers."""
    prefixes = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            kinds = {type(child) for child in module}
            has_linear = any(is_linear(m) for child in module for m in child.modules())
            if len(kinds) == 1 and has_linear and not is_linear(module[0]):
                prefixes.append(name + "." if name else "")
    names = [name for name in linear if any(name.startswith(prefix) for prefix in prefixes)]
    if not names:
        raise ValueError(
            f'targets "all-linear": {type(model).__name__} has no list of equal blocks, so "inside the blocks" means'
            f" nothing here; name the layers in a list, such as {_examples(linear)}"
        )
    return names


def _one_per_weight(parts: list[Part], linear: dict[str, nn.Module]) -> list[Part]:
    """Two modules with one weight get one update, on the weight: the first name stands for both."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for part in parts:
        key = (id(linear[part.module].weight), part.start)
        if key not in seen:
            seen.add(key)
            kept.append(part)
    return kept


def modules_of(model: nn.Module, part: Part) -> list[str]:
    """Names of all modules that hold the part's weight and are called, the part's own first."""
    modules = dict(model.named_modules())
    weight = modules[part.module].weight
    rest = [n for n, m in modules.items() if is_linear(m) and n != part.module and m.weight is weight]
    return [part.module, *(name for name in rest if not bypass(model, name))]
