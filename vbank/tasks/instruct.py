"""Instruction tuning: the cleaned Alpaca data, its prompt and the chat form, and the loss on the answer alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbank.suggestions import unknown
from vbank.tasks.base import Announce, Row, TaskData, subset
from vbank.tasks.generation import WritingTask, encode_answers
from vbank.tasks.sources import DataError, hub_splits, local_folder, read_jsonl, split_of
from vbank.tasks.weights import load_generator

if TYPE_CHECKING:
    from vbank.recipes import ModelSettings, TaskSettings

SOURCES = ("any", "local", "hub", "generated")
STYLES = ("alpaca", "chat")
LOCAL = "alpaca"  # folder under VBANK_DATA
HUB = "yahma/alpaca-cleaned"  # VB-LoRA, section 4.3, footnote 5; one split, train
SPLIT_SEED = 0
VALIDATION = 1024  # rows held out, as `eval_dataset_size` in the scripts that VB-LoRA's authors published

# What a small Llama is trained on where there is no other, and its sizes: half a minute on one CPU core.
OTHER = (
    ("gsm8k", ("question", "answer"), 3000),
    ("glue/sst2", ("sentence",), 3000),
    ("glue/cola", ("sentence",), 3000),
)
SCRATCH = {"hidden": 128, "layers": 2, "vocabulary": 1024, "steps": 160, "lr": 4e-3}

# The prompt of the Alpaca project (Taori et al. 2023), word for word as its training code has it: models tuned on
# Alpaca are compared with this prompt or not at all.
INTRODUCTION = "Below is an instruction that describes a task"
WITHOUT_INPUT = INTRODUCTION + ". Write a response that appropriately completes the request.\n\n"
WITH_INPUT = (
    INTRODUCTION + ", paired with an input that provides further context. Write a response that appropriately"
    " completes the request.\n\n"
)

# PRoLoRA, section 4.1 and appendix A, after Wang et al. (2023a). The papers do not say where lines end: here a tag has
# a line of its own. The tags are plain text unless the tokenizer knows them; no embedding is added.
USER, ASSISTANT = "<|user|>", "<|assistant|>"


def prompt(instruction: str, context: str = "", style: str = "alpaca", end: str = "</s>") -> str:
    """What the model reads before it answers.

    Args:
        instruction: the task.
        context: the row's input, such as a text to summarise; "" if there is none.
        style: "alpaca", or "chat" with <|user|> and <|assistant|>.
        end: the tokenizer's end-of-text token, which in a chat closes what the user said (PRoLoRA, appendix A).

    Raises:
        DataError: an unknown style.
    """
    return conversation([(instruction, context)], [], style, end)


def conversation(
    turns: Sequence[str | tuple[str, str]], answers: Sequence[str], style: str = "alpaca", end: str = "</s>"
) -> str:
    """What the model reads before its answer to the last of several turns.

    Args:
        turns: what the user said, each a text or a pair (instruction, input).
        answers: the model's answers to all turns but the last.
        style, end: as for `prompt`.

    Raises:
        DataError: an unknown style, no turn, or a number of answers that is not one less.
    """
    if style not in STYLES:
        raise DataError(unknown("prompt style", style, STYLES))
    if not turns or len(answers) != len(turns) - 1:
        raise DataError(f"{len(turns)} turns and {len(answers)} answers; a prompt has one turn more than answers")
    pairs = [(turn, "") if isinstance(turn, str) else turn for turn in turns]
    asked = [_chat(*pair, end) if style == "chat" else _alpaca(*pair) for pair in pairs]
    opening = ""
    if style == "alpaca":
        opening = WITH_INPUT if pairs[0][1] else WITHOUT_INPUT
    return opening + "".join(f"{turn}{answer}{end}\n" for turn, answer in zip(asked, answers, strict=False)) + asked[-1]


def _alpaca(instruction: str, context: str) -> str:
    given = f"### Input:\n{context}\n\n" if context else ""
    return f"### Instruction:\n{instruction}\n\n{given}### Response:"


def _chat(instruction: str, context: str, end: str) -> str:
    said = f"{instruction}\n\n{context}" if context else instruction
    return f"{USER}\n{said}{end}\n{ASSISTANT}\n"


class Instructions(WritingTask):
    """The cleaned Alpaca data (VB-LoRA, section 4.3): rows with `instruction`, `input` (may be empty) and `output`.

    Locally a folder with train.jsonl, or with seed_tasks.jsonl, the 175 tasks by people from which Alpaca grew. The
    data has one split; 1,024 rows of it are held out, or a fifth where that is less, by a fixed seed.
    """

    name = "alpaca"
    metric = "validation_loss"  # of the held-out answers; the score of MT-Bench needs a judge and comes later

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """See `Task.load`; the last resort are generated instructions, labelled so.

        MT-Bench is read too, and where it is from is said: a fault in its files shows before the training.
        """
        from vbank.tasks import mt_bench

        if source not in SOURCES:
            raise DataError(unknown("source", source, SOURCES))
        rows, used = None, ""
        if source in ("any", "local"):
            rows, used = local_rows(announce)
        if rows is None and source in ("any", "hub"):
            found = hub_rows(HUB)
            each = [(f"{HUB} row {number}", row) for number, row in enumerate(found or [], start=1)]
            rows, used = found and usable(each, HUB, announce), f"Hugging Face Hub {HUB}"
        if rows is None and source in ("any", "generated"):
            rows, used = generated(), "generated instructions (a stand-in, not Alpaca)"
        if rows is None:
            way = f"set VBANK_DATA to a folder with {LOCAL}" if source == "local" else "the Hub does not answer"
            raise DataError(f"task 'alpaca': source {source!r} is absent; {way}, or use source 'any'")
        if len(rows) < 2:
            raise DataError(f"task 'alpaca': one row cannot be split; {used} needs two or more")
        shuffled, held_out = subset(rows, 0, SPLIT_SEED), min(VALIDATION, max(1, len(rows) // 5))
        data = TaskData(self.name, used, shuffled[:-held_out], shuffled[-held_out:])
        if announce:
            announce(f"data: alpaca from {used}: {len(data.train):,} train, {len(data.validation):,} validation")
        mt_bench.load(announce=announce)
        return data

    def model(self, settings: ModelSettings) -> tuple[Any, Any]:
        """A causal language model and its tokenizer; "scratch-llama" is trained on text that is not Alpaca's."""
        return load_generator(settings, other_texts, **SCRATCH)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> list[Row]:
        """Prompt, answer and end of text as token ids; labels on answer and end alone.

        A row whose prompt leaves no room for its answer within `settings.max_length` is left out, and how many is said.
        """
        end = processor.eos_token
        pairs = [(prompt(row["instruction"], row["input"], settings.prompt, end), row["output"]) for row in rows]
        return encode_answers(pairs, processor, settings.max_length, loss_on="answer", too_long="drop")

    def measure(
        self, model: Any, processor: Any, rows: Sequence[Row], settings: TaskSettings, folder: Path
    ) -> dict[str, float]:
        """Answers the first turn of MT-Bench and leaves the answers in `folder`/predictions.jsonl for `vbank judge`.

        Returns how many there are and the mean number of their words; the score is the judge's.
        """
        from vbank.tasks import mt_bench

        questions = mt_bench.load().questions[: settings.generate or None]
        answers = mt_bench.answer(
            model,
            processor,
            questions,
            folder / "predictions.jsonl",
            name=folder.name,
            style=settings.prompt,
            max_new_tokens=settings.max_new_tokens,
        )
        words = [len(turns[0].split()) for turns in answers.values()]
        return {"mt_bench_answers": len(words), "mt_bench_words": sum(words) / len(words)}


ALPACA = Instructions()


def local_rows(announce: Announce | None = print) -> tuple[list[Row] | None, str]:
    """Rows of VBANK_DATA/alpaca and where they are from; None where there is no such folder.

    Raises:
        DataError: the folder holds neither file, or a line of it cannot be used.
    """
    folder = local_folder(LOCAL)
    if folder is None:
        return None, ""
    if (folder / "train.jsonl").is_file():
        rows = usable(list(objects(folder / "train.jsonl")), f"{LOCAL}/train.jsonl", announce)
        return rows, f"local folder {LOCAL} in VBANK_DATA"
    path = folder / "seed_tasks.jsonl"
    if not path.is_file():
        raise DataError(f"{folder} holds neither train.jsonl nor seed_tasks.jsonl; add one of them")
    given: list[tuple[str, dict[str, Any]]] = []
    for where, task in objects(path):
        instances = task.get("instances")
        if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
            raise DataError(f"{where}: field 'instances' must be a list of objects, found {instances!r}")
        given += [(where, {"instruction": task.get("instruction")} | instance) for instance in instances]
    return usable(given, f"{LOCAL}/seed_tasks.jsonl", announce), f"local folder {LOCAL} in VBANK_DATA (the seed tasks)"


def usable(rows: Sequence[tuple[str, Mapping[str, Any]]], name: str, announce: Announce | None = print) -> list[Row]:
    """Rows with their three fields checked; rows with an empty output, which both versions of Alpaca have, left out.

    Args:
        rows: where each is from, and the row.
        name: of all of them.
        announce: takes a line that says how many were left out.

    Raises:
        DataError: a field is missing or no text; the message names the row. Or no row is left.
    """
    checked = [_row(row, where) for where, row in rows]
    kept = [row for row in checked if row["output"].strip()]
    if not kept:
        raise DataError(f"{name}: no row with an output; expected objects with instruction, input and output")
    if announce and len(kept) < len(checked):
        announce(f"left out {len(checked) - len(kept):,} of {len(checked):,} rows: empty output")
    return kept


def _row(row: Mapping[str, Any], where: str) -> Row:
    found = {"input": ""} | dict(row)
    for field in ("instruction", "input", "output"):
        if field not in found:
            raise DataError(f"{where}: field {field!r} is missing; the row has {', '.join(map(repr, row))}")
        text, may_be_empty = found[field], field != "instruction"
        if not isinstance(text, str) or not (text.strip() or may_be_empty):
            raise DataError(
                f"{where}: field {field!r} must be {'a' if may_be_empty else 'a non-empty'} string, found {text!r}"
            )
    return {field: found[field] for field in ("instruction", "input", "output")}


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, each with file and line for messages.

    Raises:
        DataError: a line is no JSON object, or the file has none.
    """
    found = False
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            found, where = True, f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not valid JSON ({error.msg}); mend or remove this line") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object like {{...}}, found {type(row).__name__}")
            yield where, row
    if not found:
        raise DataError(f"{path}: no rows; expected one JSON object a line")


def hub_rows(path: str) -> list[dict[str, Any]] | None:
    """The split train of a Hub data set as it is, lists and empty texts included; None when it cannot be had.

    Raises:
        DataError: the Hub has the data set and cannot give it, or the data set has no split train.
    """
    loaded = hub_splits(path)
    return None if loaded is None else [dict(row) for row in split_of(loaded, "train", path)]


def other_texts() -> list[str]:
    """Real text at hand without a line of Alpaca: GSM8K, SST-2 and CoLA from VBANK_DATA; else generated instructions.

    What "scratch-llama" is trained on before it meets the first instruction.
    """
    texts = []
    for relative, columns, most in OTHER:
        folder = local_folder(relative)
        if folder is not None and (folder / "train.jsonl").is_file():
            rows = read_jsonl(folder / "train.jsonl", columns, None)[:most]
            texts += ["\n".join(str(row[column]) for column in columns) for row in rows]
    return texts or ["\n".join(row.values()) for row in generated(3000, seed=1)]


WORDS = "apple river stone cloud lamp garden window bread horse letter winter music paper green quiet early".split()
OPPOSITES = [("hot", "cold"), ("up", "down"), ("early", "late"), ("open", "closed"), ("near", "far"), ("loud", "quiet")]


def generated(rows: int = 600, seed: int = 0) -> list[Row]:
    """Small tasks with computed answers, the same for the same seed on every machine; the last resort.

    They stand in for Alpaca so that code runs; a loss on them says nothing about Alpaca.
    """
    draw = random.Random(f"instructions {seed}")
    made: dict[str, Row] = {}
    while len(made) < rows:
        words = draw.sample(WORDS, draw.randint(3, 6))
        a, b, (one, other) = draw.randint(2, 99), draw.randint(2, 99), draw.choice(OPPOSITES)
        text, number = " ".join(words), str(len(words))
        instruction, context, output = draw.choice(
            [
                ("Reverse the order of the words.", text, " ".join(reversed(words))),
                ("Put the words in alphabetical order.", text, " ".join(sorted(words))),
                ("How many words are in the input?", text, f"There are {number} words in the input."),
                ("Write the input in capital letters.", text, text.upper()),
                (f"What is {a} plus {b}?", "", f"{a} plus {b} is {a + b}."),
                (f"Which is larger, {a} or {b}?", "", f"The larger number is {max(a, b)}."),
                (f"Name the opposite of {one}, then repeat the number {a}.", "", f"{other}, {a}"),
            ]
        )
        row = {"instruction": instruction, "input": context, "output": output}
        made.setdefault(instruction + context, row)
    return list(made.values())
