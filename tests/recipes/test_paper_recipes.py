"""The papers' recipes load at both scales, fit the models that they name, and count what the audit counts."""

import functools
import inspect
import re
import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from vbank import architectures, audits, tasks
from vbank.audits.recipes import evaluate
from vbank.counting import count_sites
from vbank.recipes import SCALES, ModelSettings, Recipe, available, load
from vbank.targets import resolve
from vbank.tasks import digits, scratch

RECIPES = [name for name in available() if name.startswith(("vb-lora-", "vera-", "prolora-"))]
VARIANTS = [f"{name}/{variant}" for name in RECIPES for variant in available()[name]]
ARCHITECTURES = {
    "minilm": "minilm",
    "roberta-base": "roberta-base",
    "roberta-large": "roberta-large",
    "gpt2-medium": "gpt2-medium",
    "gpt2-large": "gpt2-large",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Llama-2-13b-hf": "llama2-13b",
    "huggyllama/llama-7b": "llama2-7b",  # Llama has the shapes of Llama 2
    "huggyllama/llama-13b": "llama2-13b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "google/gemma-7b": "gemma-7b",
    "google/vit-base-patch16-224-in21k": "vit-base",
    "google/vit-large-patch16-224-in21k": "vit-large",
}


@functools.cache
def model_of(name: str, task: str) -> nn.Module:
    """Every shape of a recipe's model, no weights; a scratch model has the sizes that the task asks for."""
    if name in ARCHITECTURES:
        return architectures.build(ARCHITECTURES[name])
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "digits-vit":
            return digits.vision_transformer()
        return scratch.untrained({"kind": name.removeprefix("scratch-")} | sizes_of(task), Vocabulary())


class Vocabulary:
    """As much of a tokenizer as a model's shape depends on."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __len__(self) -> int:
        return 2048


def sizes_of(task: str) -> dict[str, Any]:
    """What a task asks of `scratch.generator`, caught before anything is trained."""
    usual = {key: p.default for key, p in inspect.signature(scratch.generator).parameters.items()}
    found = tasks.find(task)
    with patch(f"{type(found).__module__}.load_generator", lambda settings, texts, **sizes: sizes):
        sizes = usual | found.model(ModelSettings("scratch-llama"))
    sizes["heads"] = sizes["heads"] or sizes["hidden"] // 32
    return sizes | {"key_value_heads": sizes["key_value_heads"] or sizes["heads"]}


@functools.cache
def counted(name: str, scale: str) -> tuple[int, float]:
    """What a recipe trains and stores on its model, head left out."""
    recipe = load(name, scale=scale)
    config = recipe.method.config()
    assert config is not None
    model = model_of(recipe.model.name, recipe.task.name)
    count = count_sites(config, [part.site for part in resolve(model, recipe.method.targets)])
    return count.trainable, count.stored


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", RECIPES)
def test_every_recipe_loads_and_fits_its_model(experiment: str, scale: str) -> None:
    for variant in available()[experiment]:
        recipe = load(f"{experiment}/{variant}", scale=scale)
        if recipe.method.config() is not None:
            trained, stored = counted(recipe.name, scale)
            assert 0 < stored <= trained
        small = recipe.model.name in ("minilm", "scratch-gpt2", "scratch-llama", "digits-vit")
        assert small == (scale == "cpu")
        if scale == "cpu":
            assert recipe.task.train_size or recipe.task.samples_per_class, "few rows"
            assert recipe.train.seeds == 1 and recipe.train.optimizer == "adamw"


# Variant -> the audit's cells, by the ends of their rows; "stored" as VB-LoRA prints, else what is trained.
def audited(name: str) -> tuple[str, str, str] | None:
    """(paper, table, row) of the audit whose figure is the size of a variant's adapter."""
    experiment, variant = name.split("/")
    block = {"base": "BASE", "large": "LARGE", "medium": "MEDIUM"}
    match experiment:
        case "vb-lora-glue":
            _, size, layers = variant.split("-")
            return "vb-lora", "Table 1", f"{block[size]}, VB-LoRA {layers}, # Params"
        case "vb-lora-e2e":
            return "vb-lora", "Table 2", f"{block[variant]}, VB-LoRA, # Params"
        case "vb-lora-alpaca":
            method, size = re.fullmatch(r"(.*)-(\d+b)", variant).groups()
            own = {"lora": "LoRA (own)", "vb-lora": "VB-LoRA"}[method]
            return "vb-lora", "Table 3", f"{size.upper()}, {own}, # Parameters"
        case "vb-lora-math":
            return "vb-lora", "Table 4", f"{variant.capitalize()}-7B, VB-LoRA, # Parameters"
        case "vera-glue":
            return "vera", "Table 2", f"{block[variant.split('-')[1]]}, VeRA, # Trainable Parameters"
        case "vera-e2e":
            *method, size = variant.split("-")
            return "vera", "Table 3", f"{block[size]}, {'LoRA' if method else 'VeRA'}, # Trainable Parameters"
        case "vera-alpaca":
            method, *first, size = variant.split("-")
            model = f"Llama {size.upper()}" if first else f"Llama 2 {size.upper()}"
            return "vera", "Table 4", f"{model}, {'LoRA' if method == 'lora' else 'VeRA'}, # Parameters"
        case "vera-images":
            _, size, method = variant.split("-")
            named = {"vera": "VeRA", "lora": "LoRA"}.get(method)
            return named and ("vera", "Table 5", f"ViT-{size[0].upper()}, {named}, # Trainable Parameters")
        case "prolora-instruct":
            rows = {
                "lora-r2-7b": "LoRA, rank 2",
                "lora-r8-7b": "LoRA, rank 8",
                "lora-r16-7b": "LoRA, rank 16",
                "vera-r256-7b": "VeRA, rank 256",
                "prolora-r8-7b": "PRoLoRA, rank 8",
                "prolora-r4-7b": "PRoLoRA, rank 4/8",
                "prolora-r32-7b": "PRoLoRA, rank 16/32",
                "prolora-r32-7b-no-rotation": "PRoLoRA-r, rank 16/32",
                "prolora-r32-7b-not-rectified": "PRoLoRA-i, rank 16/32",
            }
            return ("prolora", "Table 2", f"{rows[variant]}, Param.") if variant in rows else None
    return None


# Of these the audit has no figure: PRoLoRA's Table 3 prints no counts, rank 64 and rank 16 stand in no row, and
# Tied-LoRA is not tied as the paper ties it.
UNCOUNTED = {
    "prolora-instruct/lora-r64-7b",
    "prolora-instruct/prolora-r16-7b",
    "prolora-instruct/tied-lora-r256-7b",
    "prolora-instruct/lora-r2-13b",
    "prolora-instruct/prolora-r4-13b",
    "prolora-instruct/prolora-r8-13b",
}


def test_counts_are_those_of_the_audit() -> None:
    cells = {(paper, cell["table"], cell["row"]): cell for paper in audits.PAPERS for cell in audits.cells(paper)}
    without = set()
    for name in VARIANTS:
        found = audited(name)
        if found is None:
            without.add(name)
            continue
        cell = cells[found]
        recipe = cell["count"]
        if name.startswith("vb-lora-e2e"):  # the figure takes GPT-2's fused projection as three layers, a run as one
            recipe = cell["also"][0]
        trained, stored = counted(name, "gpu")
        expected = evaluate(recipe, audits.defaults(cell))
        assert expected == (stored if found[0] == "vb-lora" else trained), (name, found)
    baselines = {name for name in VARIANTS if name.endswith(("-head", "-full"))}
    assert without == UNCOUNTED | baselines


def test_prolora_keeps_the_budget_of_lora() -> None:
    """Section 4.2: rank 4 or 8 as LoRA of rank 2, rank 16 or 32 as LoRA of rank 8; the last chunk is trimmed."""
    for lora, others in (("lora-r2-7b", ("r4", "r8")), ("lora-r8-7b", ("r16", "r32"))):
        budget, _ = counted(f"prolora-instruct/{lora}", "gpu")
        for rank in others:
            trained, _ = counted(f"prolora-instruct/prolora-{rank}-7b", "gpu")
            assert trained == pytest.approx(budget, rel=2e-3)


def test_a_recipe_differs_between_targets_in_nothing_else() -> None:
    def settings(name: str) -> Recipe:
        return load(f"vb-lora-glue/{name}", scale="gpu")

    for variant in available()["vb-lora-glue"]:
        if variant.endswith("-qv"):
            qv, everywhere = settings(variant).resolved(), settings(variant.replace("-qv", "-all")).resolved()
            assert (qv["method"].pop("targets"), everywhere["method"].pop("targets")) == ("qv", "all-linear")
            assert qv.pop("variant") != everywhere.pop("variant") and qv == everywhere
