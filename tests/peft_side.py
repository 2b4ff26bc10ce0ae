"""PEFT's side of an exchange: adapters that it trains, saves and loads."""

import copy
import json
import warnings
from pathlib import Path

import peft
import safetensors.torch
import torch
from torch import Tensor, nn


def adapted(base: nn.Module, config: peft.PeftConfig, std: float = 0.3, seed: int = 1) -> peft.PeftModel:
    """PEFT's adapter on a copy of the model, its parameters moved away from their start; for evaluation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Specified to not")
        model = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=std)
    return model.eval()


def saved(base: nn.Module, config: peft.PeftConfig, folder: Path) -> peft.PeftModel:
    """An adapter of PEFT's, written to a folder."""
    model = adapted(base, config)
    model.save_pretrained(folder)
    return model


def loaded(base: nn.Module, folder: Path) -> peft.PeftModel:
    """What PEFT makes of a folder; that it finds a tensor missing or a layer of another layout is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Specified to not")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def settings(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def tensors(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


def rewrite(folder: Path, changed: dict | None = None, values: dict[str, Tensor] | None = None) -> None:
    """Change settings of a saved adapter, and exchange its tensors."""
    if changed:
        (folder / "adapter_config.json").write_text(json.dumps(settings(folder) | changed))
    if values is not None:
        safetensors.torch.save_file(
            {key: v.contiguous() for key, v in values.items()}, folder / "adapter_model.safetensors"
        )
