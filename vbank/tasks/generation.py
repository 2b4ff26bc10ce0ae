"""Prompts and answers of a model that writes: how pairs become training rows, and how answers are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vbank.live import WIDE, Line, live
from vbank.suggestions import unknown
from vbank.tasks.base import Task
from vbank.tasks.sources import DataError
from vbank.tasks.weights import quiet

IGNORED = -100  # a label that torch's cross-entropy leaves out
LOSS_ON = ("answer", "all")
TOO_LONG = ("refuse", "drop")


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Tokens of a prompt as training and generation both see them: with the beginning, without an end of text."""
    ids = list(tokenizer(prompt)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()
    return ids


def encode_answers(
    pairs: Sequence[tuple[str, str]],
    tokenizer: Any,
    max_length: int,
    loss_on: str = "answer",
    too_long: str = "refuse",
    announce: Callable[[str], object] = print,
) -> list[dict[str, list[int]]]:
    """Pairs (prompt, answer) as rows for training: tokens of prompt, answer and end of text, labels on the answer.

    Prompt and answer are tokenised apart and joined, so that training sees the prompt's tokens as generation will. A
    row longer than `max_length` loses its end, end of text included: the model is not taught to stop at the cut.

    Args:
        pairs: prompt and answer; a space between them belongs to one of the two.
        tokenizer: with an end-of-text token.
        max_length: tokens of a row.
        loss_on: "answer", or "all" to train on the prompt's tokens too.
        too_long: what to do with a prompt that leaves no room for any of its answer: "refuse", or "drop" the row.
        announce: takes a line that says how many rows were dropped, if any.

    Returns:
        A dictionary a row with ``input_ids`` and ``labels``, both of the same length; a label -100 counts in no loss.

    Raises:
        DataError: an empty answer, a prompt that fills `max_length`, no row left, a tokenizer without end of text, or
            an unknown `loss_on` or `too_long`.
    """
    for kind, value, known in (("loss_on", loss_on, LOSS_ON), ("too_long", too_long, TOO_LONG)):
        if value not in known:
            raise DataError(unknown(kind, value, known))
    end = _end(tokenizer)
    rows, dropped = [], 0
    for number, (prompt, answer) in enumerate(pairs):
        before = prompt_ids(prompt, tokenizer)
        after = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
        if not after:
            raise DataError(f"row {number} has an empty answer; leave the row out. Its prompt: {_start(prompt)}")
        if len(before) >= max_length:
            if too_long == "refuse":
                raise DataError(
                    f"row {number}: its prompt has {len(before)} tokens, which leaves no room for the answer within"
                    f" max_length {max_length}; raise task.max_length or leave the row out. It begins {_start(prompt)}"
                )
            dropped += 1
            continue
        ids = [*before, *after, end][:max_length]
        hidden = len(before) if loss_on == "answer" else 0
        rows.append({"input_ids": ids, "labels": [IGNORED] * hidden + ids[hidden:]})
    if pairs and not rows:
        raise DataError(f"all {dropped} prompts fill max_length {max_length}; raise task.max_length")
    if dropped:
        announce(f"left out {dropped:,} of {len(pairs):,} rows: prompt longer than max_length {max_length}")
    return rows


class PadRight:
    """Rows of `encode_answers` as one batch: padded at the right, labels with -100.

    Gives ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, longest row).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.pad = _padding(tokenizer)

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, :length] = torch.tensor(row["labels"])
            mask[i, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class WritingTask(Task):
    """A task whose model writes: what the three of them share."""

    def collator(self, processor: Any) -> PadRight:
        """Pads at the right."""
        return PadRight(processor)


def context_length(model: nn.Module) -> int | None:
    """The most tokens that a model reads, prompt and answer together; None if it does not say."""
    config: Any = model.config
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """An answer to every prompt, in the order of the prompts, without white space at its ends.

    Prompts of like length share a batch, padded at the left. An answer ends at the end of text or after
    `max_new_tokens`.

    Args:
        model: any causal language model of transformers, with or without an adapter.
        tokenizer: its tokenizer.
        prompts: what to go on from.
        max_new_tokens: length of the longest answer.
        batch_size: prompts at a time.
        num_beams, length_penalty, no_repeat_ngram_size: of the beam search; one beam takes the likeliest token.
        progress: called with the number of answers done and of all; None: on a terminal and at a
            live notebook, a bar with the time left.

    Raises:
        DataError: a number below 1, or a prompt that is empty or too long for its answer to fit the model.
    """
    from tqdm import tqdm

    if max_new_tokens < 1 or batch_size < 1 or num_beams < 1:
        raise DataError(f"max_new_tokens {max_new_tokens}, batch_size {batch_size}, num_beams {num_beams}: all from 1")
    coded = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    _check_prompts(prompts, coded, max_new_tokens, context_length(model))
    order = sorted(range(len(prompts)), key=lambda i: -len(coded[i]))  # the longest first: memory runs out at once
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": False,
        "pad_token_id": _padding(tokenizer),
        "eos_token_id": _end(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
    }
    if num_beams > 1:
        settings["length_penalty"] = length_penalty
    if no_repeat_ngram_size:
        settings["no_repeat_ngram_size"] = no_repeat_ngram_size
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    try:
        place: dict[str, Any] = {"file": Line(), "ncols": WIDE} if live() else {"disable": None}  # None: not in a file
        place |= {"disable": True} if progress else {}
        with torch.no_grad(), tqdm(total=len(order), desc="answers", leave=False, **place) as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                found = _answers(model, tokenizer, [coded[i] for i in batch], settings)
                for i, answer in zip(batch, found, strict=True):
                    answers[i] = answer
                bar.update(len(batch))
                if progress:
                    progress(start + len(batch), len(order))
    finally:
        model.train(training)
    return answers


def _answers(model: Any, tokenizer: Any, rows: list[list[int]], settings: dict[str, Any]) -> list[str]:
    """Answers of one batch; `rows` are the prompts' tokens."""
    from transformers import GenerationConfig

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), settings["pad_token_id"])  # (rows, longest), prompts at the right
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    device = model.get_input_embeddings().weight.device
    own, model.generation_config = model.generation_config, GenerationConfig(**settings)  # nothing from a model's file
    try:
        with quiet():  # it misses the mask of rows that have ended, which count for nothing
            out = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=True)
    finally:
        model.generation_config = own
    return [text.strip() for text in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]


def _check_prompts(prompts: Sequence[str], coded: list[list[int]], new: int, context: int | None) -> None:
    for number, (prompt, ids) in enumerate(zip(prompts, coded, strict=True)):
        if not ids:
            raise DataError(f"prompt {number} has no tokens; give at least one word to go on from")
        if context is not None and len(ids) + new > context:
            raise DataError(
                f"prompt {number} has {len(ids)} tokens, its answer up to {new}, and the model reads {context}; shorten"
                f" the prompt or lower max_new_tokens. It begins {_start(prompt)}"
            )


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token, so an answer would never end; set its eos_token")
    return tokenizer.eos_token_id


def _padding(tokenizer: Any) -> int:
    """What fills the gaps; masked, so that any token will do where the tokenizer has none of its own."""
    return _end(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _start(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
