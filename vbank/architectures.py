"""The models that the papers adapt, by name: their true linear layers, built without weights and without a download."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from vbank.methods.base import Site
from vbank.suggestions import unknown
from vbank.targets import Targets, resolve

# name -> (transformers' configuration class, settings that differ from its defaults)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": (
        "BertConfig",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "roberta-base": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-large": (
        "RobertaConfig",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "gpt2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt3-175b": ("GPT2Config", {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}),
    "llama2-7b": ("LlamaConfig", {"max_position_embeddings": 4096}),
    "llama2-13b": (
        "LlamaConfig",
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "max_position_embeddings": 4096,
        },
    ),
    "llama2-70b": (
        "LlamaConfig",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
        },
    ),
    "llama3.2-3b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "mistral-7b": ("MistralConfig", {"max_position_embeddings": 32768}),
    "gemma-7b": (
        "GemmaConfig",
        {
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
        },
    ),
    "vit-base": ("ViTConfig", {}),
    "vit-large": (
        "ViTConfig",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
}


def build(name: str, language_model: bool = False, **changes: Any) -> nn.Module:
    """The architecture on the meta device: every shape, no weights.

    Args:
        name: one of `ARCHITECTURES`.
        language_model: with the head that predicts the next token; without, the body alone.
        changes: settings of the configuration that are to differ, such as ``num_hidden_layers=32``.

    Raises:
        ValueError: an unknown name; close ones are suggested.
    """
    if name not in ARCHITECTURES:
        raise ValueError(unknown("architecture", name, ARCHITECTURES))
    import transformers

    kind, settings = ARCHITECTURES[name]
    configuration = getattr(transformers, kind)(**(settings | changes))
    model = transformers.AutoModelForCausalLM if language_model else transformers.AutoModel
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisers complain that meta tensors have no values
        return model.from_config(configuration)


def sites(name: str, targets: Targets, **changes: Any) -> list[Site]:
    """The linear maps that `targets` names in the architecture, with their true sizes.

    Args:
        name: one of `ARCHITECTURES`.
        targets: as for `vbank.attach`.
        changes: as for `build`.

    Raises:
        ValueError: an unknown name, or targets that match nothing.
    """
    return [part.site for part in resolve(build(name, **changes), targets)]
