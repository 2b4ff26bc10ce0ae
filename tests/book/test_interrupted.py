"""A cell that is interrupted and run again: the chapter's own code, with what takes long replaced."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch

import vbank

ROOT = Path(__file__).resolve().parents[2]


def cell_with(notebook: str, words: str) -> str:
    """The one code cell of a notebook that holds these words."""
    cells = nbformat.read(ROOT / "book" / notebook, as_version=4).cells
    (source,) = [cell.source for cell in cells if cell.cell_type == "code" and words in cell.source]
    return source


def test_training_that_is_interrupted_leaves_the_base_model() -> None:
    """Mathematics trains two methods on one model that an earlier cell made, one after the other."""
    training, _, _ = cell_with("finetuning/mathematics.ipynb", "train(model, lr, name)").partition("\nprint(")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    x = torch.randn(3, 8)
    before, attempts = model(x), []

    def train(model: torch.nn.Module, lr: Any, label: str) -> None:
        attempts.append(label)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(1.0)
        if attempts == ["LoRA", "VB-LoRA"]:
            raise KeyboardInterrupt

    page: dict[str, Any] = {
        "model": model,
        "METHODS": {"LoRA": (vbank.LoRA(2), {}), "VB-LoRA": (vbank.VBLoRA(2, 4, 4), {})},
        "recipe": SimpleNamespace(method=SimpleNamespace(targets=["0"])),
        "train": train,
        "generate": lambda model, *_: [],
        "losses": lambda model: [model(x).square().sum().item()],
        "unseen": [],
        "tokenizer": None,
    }
    exec("import math, torch, vbank", page)
    with pytest.raises(KeyboardInterrupt):
        exec(training, page)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert "vbank" not in dict(model.named_children()), "an adapter is left on the model"
    exec(training, page)
    assert attempts == ["LoRA", "VB-LoRA", "LoRA", "VB-LoRA"]
    base, lora, vb = (page["results"][name][0][0] for name in ("before", "LoRA", "VB-LoRA"))
    assert base == before.square().sum().item() and len({base, lora, vb}) == 3


def test_exchanges_that_are_interrupted_do_not_stay() -> None:
    """A thousand adapters: one is replaced and another away when the cell stops; run again, it begins with all."""
    source = cell_with("shipping/thousand_adapters.ipynb", "ThreadPoolExecutor(4)")
    begin = source[source.index("for name in folders") : source.index("alone =")]
    folders = {f"{kind}-{i}": f"folder {kind} {i}" for kind in ("vb", "vera") for i in range(3)}
    held = dict(folders) | {"vb-0": "folder vb 1"}
    del held["vera-2"]

    def add(name: str, folder: str) -> None:
        assert name not in held
        held[name] = folder

    def replace(name: str, folder: str) -> None:
        assert name in held
        held[name] = folder

    server = SimpleNamespace(names=lambda: list(held), add=add, replace=replace)
    exec(begin, {"server": server, "folders": folders})
    assert held == folders
