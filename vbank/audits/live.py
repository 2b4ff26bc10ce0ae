"""The same counts from live models: attached, and counted parameter by parameter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

import vbank
from vbank import architectures
from vbank.audits import PAPERS, cells, defaults
from vbank.audits.recipes import Recipe, counted, evaluate, method_of

MODELS = ("roberta-base", "roberta-large", "gpt2-medium", "vit-base", "vit-large")  # at most 1.5 GB
WHAT_IF = ("changed", "split", "fused", "parts", "tied_to", "index_bytes", "weights")


class Pair(NamedTuple):
    """One count from shapes and from a live model."""

    model: str
    method: str
    of: str
    shapes: float
    live: float


def compare(paper: str | None = None) -> list[Pair]:
    """Every count of the audit whose model fits in memory, from shapes and from that model with the method attached.

    Counts that stand beside others in the notes are among them.

    Args:
        paper: as for `vbank.audit`.
    """
    found = {json.dumps(recipe, sort_keys=True): recipe for recipe in _recipes(paper)}
    pairs = []
    for name in MODELS:
        mine = [recipe for recipe in found.values() if recipe["on"] == name]
        if not mine:
            continue
        model = architectures.build(name).to_empty(device="cpu")  # counting reads no weights
        for recipe in mine:
            config = method_of(recipe)
            assert config is not None
            vbank.attach(model, config, targets=recipe["at"])
            of = recipe.get("of", "trained")
            live = _live(model, of)
            vbank.detach(model)
            pairs.append(Pair(name, config.title, of, float(evaluate(recipe)), live))
    return pairs


def _recipes(paper: str | None) -> Iterator[Recipe]:
    for name in PAPERS if paper is None else (paper,):
        for cell in cells(name):
            for one in [cell["count"], *cell.get("also", ())] if "count" in cell else ():
                for recipe in counted(one, defaults(cell)):
                    plain = not any(key in recipe for key in WHAT_IF)
                    if plain and method_of(recipe) and recipe.get("of", "trained") in ("trained", "stored", "bytes"):
                        yield recipe


def _live(model: nn.Module, of: str) -> float:
    if of == "trained":
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    count = vbank.count(model)
    return count.stored if of == "stored" else count.bytes
