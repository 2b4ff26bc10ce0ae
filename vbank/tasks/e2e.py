"""E2E: say in a sentence what a meaning representation of a restaurant states (Novikova et al. 2017)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbank.suggestions import unknown
from vbank.tasks import e2e_metrics
from vbank.tasks.base import Announce, Row, TaskData, subset
from vbank.tasks.generation import WritingTask, encode_answers, generate
from vbank.tasks.scratch import END
from vbank.tasks.sources import DataError, load_hub, load_local, local_folder
from vbank.tasks.weights import load_generator

if TYPE_CHECKING:
    from torch import nn

    from vbank.recipes import ModelSettings, TaskSettings

Found = tuple[str, list[Row], list[Row]]  # source, training rows, rows to measure on
SOURCES = ("any", "local", "hub", "generated")
COLUMNS = ("meaning_representation", "human_reference")
FOLDER = "e2e"
HUB = "tuetschek/e2e_nlg"
# Its main branch holds a loading script, which `datasets` no longer runs; this branch holds the same rows as Parquet.
HUB_BRANCH = "refs/convert/parquet"
HELD_OUT = 5  # of the dev set, one meaning in five is measured on

# LoRA's published data (examples/NLG/data/e2e) write the attributes so.
NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
# "scratch-gpt2" at a size that learns within half a minute to repeat what the meaning names.
SCRATCH: dict[str, Any] = {
    "steps": 600,
    "vocabulary": 768,
    "hidden": 64,
    "layers": 2,
    "context": 128,
    "batch_size": 8,
    "lr": 8e-3,
}
FIRST_ROWS = 4000
INVENTED = {
    "name": ["The Tin Kettle", "Marlow House", "The Ninth Lantern", "Olive and Ash", "The Slow Heron", "Pepper Row"],
    "eatType": ["restaurant", "coffee shop", "pub"],
    "food": ["Italian", "French", "Indian", "Chinese", "Greek"],
    "area": ["city centre", "riverside"],
    "priceRange": ["cheap", "moderate", "high"],
}
ATTRIBUTE = re.compile(r"\s*([^\[\],]+)\[([^\[\]]*)\]\s*(?:,|$)")


def attributes(meaning: str) -> list[tuple[str, str]]:
    """("name", "Blue Spice"), ... of "name[Blue Spice], eatType[coffee shop]", in the order in which they stand.

    Raises:
        DataError: the text is not a list of attribute[value].
    """
    found, at = [], 0
    while at < len(meaning):
        match = ATTRIBUTE.match(meaning, at)
        if match is None:
            break
        found.append((match[1].strip(), match[2].strip()))
        at = match.end()
    if not found or at < len(meaning):
        raise DataError(f"meaning {meaning!r} is not written as attribute[value], attribute[value], ...")
    return found


def linearise(meaning: str) -> str:
    """A meaning as LoRA's GPT-2 experiments write it: "name : Blue Spice | Type : coffee shop".

    From LoRA's published data; there the values are cut into words as well ("£ 20 - 25"), here they stay as they are.
    """
    return " | ".join(f"{NAMES.get(name, name)} : {value}" for name, value in attributes(meaning))


def prompt(meaning: str, tokenizer: Any) -> str:
    """What the model goes on from: the meaning and a token that ends it, as in LoRA's published code (--add_bos).

    For GPT-2 this is <|endoftext|>, which ends the answer too. A tokenizer without such a token gets a line break.
    """
    return linearise(meaning) + (tokenizer.bos_token or "\n")


def by_meaning(rows: Iterable[Row]) -> dict[str, list[str]]:
    """The references of every meaning; meanings and references in the order of the rows."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["meaning_representation"], []).append(row["human_reference"])
    return groups


def split_by_meaning(rows: Sequence[Row], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows of four meanings in five, and of the fifth; no meaning is in both parts.

    Raises:
        DataError: fewer than five meanings.
    """
    meanings = list(by_meaning(rows))
    if len(meanings) < HELD_OUT:
        raise DataError(f"{len(meanings)} meanings are too few to split by meaning; give at least {HELD_OUT}")
    random.Random(seed).shuffle(meanings)
    held = set(meanings[: len(meanings) // HELD_OUT])
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        parts[row["meaning_representation"] in held].append(row)
    return parts


class E2ETask(WritingTask):
    """Meaning representation -> sentence, measured by five scores against all references of a meaning."""

    name = "e2e"
    metric = "bleu"

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """One row a reference: training rows, and the test set as what is measured on, as in the papers.

        Where the training set is absent, the dev set stands in for both, split by meaning; the source says so.
        Raises DataError for an unknown source, for corrupt rows, and when the source insisted on is absent.
        """
        if source not in SOURCES:
            raise DataError(unknown("source", source, SOURCES))
        found = _local() if source in ("any", "local") else None
        if found is None and source in ("any", "hub"):
            found = _hub()
        if found is None and source in ("any", "generated"):
            parts = split_by_meaning(invented())
            found = "generated restaurants (a stand-in, not the real data set)", *parts
        if found is None:
            way = f"set VBANK_DATA to a folder with {FOLDER}" if source == "local" else "the Hub does not answer"
            raise DataError(f"task {self.name!r}: source {source!r} is absent; {way}, or use source 'any'")
        data = TaskData(self.name, *found)
        if announce:
            meanings = [len(by_meaning(part)) for part in (data.train, data.validation)]
            announce(
                f"data: {self.name} from {data.source}: {len(data.train):,} train rows of {meanings[0]:,} meanings,"
                f" {len(data.validation):,} validation rows of {meanings[1]:,}"
            )
        return data

    def model(self, settings: ModelSettings) -> tuple[nn.Module, Any]:
        """A causal language model; "scratch-gpt2" has learnt from `first_texts`."""
        return load_generator(settings, first_texts, **SCRATCH)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> list[dict[str, list[int]]]:
        """One row a reference; the loss is on the reference and the token that ends it."""
        pairs = [(prompt(row["meaning_representation"], processor), f" {row['human_reference']}") for row in rows]
        return encode_answers(pairs, processor, settings.max_length)

    def measure(
        self, model: nn.Module, processor: Any, rows: Sequence[Row], settings: TaskSettings, folder: Path
    ) -> dict[str, float]:
        """Generates for each meaning of the rows, by beam search as the settings say, and scores the sentences.

        Writes one line a meaning into predictions.jsonl: meaning, prediction, references.
        """
        groups = dict(list(by_meaning(rows).items())[: settings.generate or None])
        outputs = speak(model, processor, list(groups), settings)
        lines = [
            json.dumps({"meaning_representation": meaning, "prediction": said, "references": texts}, ensure_ascii=False)
            for (meaning, texts), said in zip(groups.items(), outputs, strict=True)
        ]
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return e2e_metrics.score(outputs, list(groups.values()))


def speak(model: nn.Module, tokenizer: Any, meanings: Sequence[str], settings: TaskSettings) -> list[str]:
    """A sentence for every meaning."""
    return generate(
        model,
        tokenizer,
        [prompt(meaning, tokenizer) for meaning in meanings],
        settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
    )


def _local() -> Found | None:
    folder = local_folder(FOLDER)
    if folder is None:
        return None
    where = f"local folder {FOLDER} in VBANK_DATA"
    whole = (folder / "train.jsonl").is_file()
    rows = load_local(FOLDER, COLUMNS, None, ("train", "test") if whole else ("validation",)) or {}
    if whole:
        return f"{where}, measured on the test set", rows["train"], rows["test"]
    return f"{where}, the dev set split by meaning (no training set there)", *split_by_meaning(rows["validation"])


def _hub() -> Found | None:
    rows = load_hub(HUB, None, {}, COLUMNS, None, ("train", "test"), HUB_BRANCH)
    if rows is None:
        return None
    return f"Hugging Face Hub {HUB}, measured on the test set", rows["train"], rows["test"]


def first_texts() -> list[str]:
    """What "scratch-gpt2" learns from: training rows in the notation of the data set, "name[Blue Spice], ...".

    So it can say what a meaning states before any fine-tuning, though not in the notation of `prompt`.
    """
    rows = subset(E2E.load(announce=None).train, 0, seed=0)[:FIRST_ROWS]
    return [f"{row['meaning_representation']}{END['gpt2']} {row['human_reference']}" for row in rows]


def invented(meanings: int = 300, seed: int = 0) -> list[Row]:
    """Rows of made-up restaurants, three references a meaning: the last resort where no data set can be had."""
    draw = random.Random(seed)
    rows: dict[str, list[str]] = {}
    while len(rows) < meanings:
        said = {key: draw.choice(values) for key, values in INVENTED.items()}
        name, kind, food, area, price = said.values()
        meaning = ", ".join(f"{key}[{value}]" for key, value in said.items())
        rows[meaning] = [
            f"{name} is a {kind} in the {area} that serves {food} food at {price} prices.",
            f"In the {area} there is a {kind} called {name}. It offers {price} {food} food.",
            f"The {kind} {name} has {price} {food} dishes. You find it in the {area}.",
        ]
    return [
        {"meaning_representation": meaning, "human_reference": text}
        for meaning, texts in rows.items()
        for text in texts
    ]


E2E = E2ETask()
