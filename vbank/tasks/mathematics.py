"""Mathematics: training on MetaMathQA, scoring on GSM8K and MATH by letting the model write."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vbank.suggestions import unknown
from vbank.tasks.base import Announce, Row, TaskData
from vbank.tasks.generation import WritingTask, encode_answers, generate
from vbank.tasks.mathematics_published import MARKER, metamath_math, vb_lora_gsm8k
from vbank.tasks.mathematics_scoring import boxed, equivalent, extract
from vbank.tasks.mathematics_symbolic import require
from vbank.tasks.sources import DataError, load_hub, local_folder, read_jsonl
from vbank.tasks.weights import load_generator

if TYPE_CHECKING:
    from vbank.recipes import ModelSettings, TaskSettings

SOURCES = ("any", "local", "hub", "generated")
# VB-LoRA, section 4.4, footnotes 8 to 10. MATH's own Hub id, hendrycks/competition_math, was taken down in 2025 after a
# complaint of the site that many problems come from; where the copy here goes too, VBANK_DATA/math/test.jsonl serves.
METAMATHQA = "meta-math/MetaMathQA"
GSM8K = "openai/gsm8k"
MATH = "EleutherAI/hendrycks_math"
MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

# MetaMath's prompt, word for word as its evaluation scripts and its model cards have it. The scripts that VB-LoRA's
# authors published train without the last five words and score with them; here both have them.
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response: Let's think step by step."
)
# Of the stand-in that is trained here: 4 heads share 2 keys and values, as Mistral's 32 share 8.
SMALL: dict[str, Any] = {
    "vocabulary": 1024,
    "layers": 2,
    "key_value_heads": 2,
    "context": 512,
    "batch_size": 2,
    "steps": 250,
}
CHUNK = 64  # problems between two writings of predictions.jsonl
# Where a model goes on to a problem of its own: as in MetaMath's evaluation scripts, without their chat names.
STOPS = re.compile(r"(?<!#)###(?!#)|(?:Instruction|Response|Question):")


def prompt(problem: str) -> str:
    """What the model reads before it answers."""
    return PROMPT.format(problem)


class Mathematics(WritingTask):
    """MetaMathQA (Yu et al. 2023) to train on, GSM8K (Cobbe et al. 2021) and MATH (Hendrycks et al. 2021) to measure.

    A row holds `query`, `response`, `benchmark` ("gsm8k" or "math") and, where it is to measure on, `answer`. Without
    MetaMathQA, GSM8K's own training problems stand in, written as MetaMathQA writes; without MATH, GSM8K alone is
    measured. The source line says so. Locally the files are metamath/train.jsonl (else gsm8k/train.jsonl),
    gsm8k/test.jsonl and math/test.jsonl.
    """

    name = "metamath"
    metric = "gsm8k"

    def load(self, source: str = "any", announce: Announce | None = print) -> TaskData:
        """See `Task.load`; the last resort are generated word problems.

        Raises:
            DataError: an unknown source, rows that cannot be read, or of what to train on and what to measure on only
                one is there.
            ModuleNotFoundError: math-verify, which scores the answers, is not installed.
        """
        if source not in SOURCES:
            raise DataError(unknown("source", source, SOURCES))
        require()  # now, not after hours of training
        if source == "generated":
            data = generated()
        else:
            train, trained_on = training_rows(source)
            test, measured_on = gsm8k_rows(source)
            if bool(train) != bool(test):
                there, lacking = (trained_on, "gsm8k/test.jsonl") if train else (measured_on, "metamath/train.jsonl")
                raise DataError(
                    f"task 'metamath': {there} was found, but not {lacking}, which belongs to it; put that into the"
                    " folder VBANK_DATA, or use source 'generated'"
                )
            if not train:
                if source != "any":
                    way = "set VBANK_DATA to a folder with gsm8k" if source == "local" else "the Hub does not answer"
                    raise DataError(f"task 'metamath': source {source!r} is absent; {way}, or use source 'any'")
                data = generated()
            else:
                harder, also = math_rows(source)
                data = TaskData(self.name, f"{trained_on}; measured on {measured_on}{also}", train, test + harder)
        if announce:
            announce(f"data: metamath from {data.source}: {len(data.train):,} train, {len(data.validation):,} test")
        return data

    def model(self, settings: ModelSettings) -> tuple[Any, Any]:
        """A causal language model and its tokenizer; "scratch-llama" is trained on the problems in another form."""
        return load_generator(settings, lambda: other_form(self.load(announce=None).train), **SMALL)

    def encode(self, rows: Sequence[Row], processor: Any, settings: TaskSettings) -> list[Row]:
        """Prompt, response and end of text as token ids; labels on response and end alone."""
        pairs = [(prompt(row["query"]), row["response"]) for row in rows]
        return encode_answers(pairs, processor, settings.max_length, loss_on="answer", too_long="drop")

    def measure(
        self, model: Any, processor: Any, rows: Sequence[Row], settings: TaskSettings, folder: Path
    ) -> dict[str, float]:
        """Writes an answer to the first `settings.generate` problems of each benchmark (0: all) and scores them.

        Returns:
            Of each benchmark: the share right (`gsm8k`), the share right by the published scorer (`gsm8k_published`),
            and the share of answers that end as MetaMathQA's do (`gsm8k_format`); the same of `math`.
        """
        asked: list[Row] = []
        for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
            asked += [row for row in rows if row["benchmark"] == benchmark][: settings.generate or None]
        path = folder / "predictions.jsonl"
        verdicts = finished(path, asked)
        bar = tqdm(total=len(asked), initial=len(verdicts), desc="answers", disable=None)  # on a terminal alone
        with bar, path.open("w", encoding="utf-8") as file:
            for found in verdicts:
                print(json.dumps(found, ensure_ascii=False), file=file)
            for start in range(len(verdicts), len(asked), CHUNK):
                chunk = asked[start : start + CHUNK]
                texts = generate(
                    model,
                    processor,
                    [prompt(row["query"]) for row in chunk],
                    settings.max_new_tokens,
                    num_beams=settings.num_beams,
                    length_penalty=settings.length_penalty,
                    no_repeat_ngram_size=settings.no_repeat_ngram_size,
                    progress=partial(_advance, bar, start),
                )
                for text, row in zip(texts, chunk, strict=True):
                    verdicts.append({"query": row["query"]} | verdict(text, row))
                    print(json.dumps(verdicts[-1], ensure_ascii=False), file=file, flush=True)
        return shares(verdicts)


METAMATH = Mathematics()


def _advance(bar: tqdm, before: int, done: int, total: int) -> None:
    bar.update(before + done - bar.n)


def finished(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Verdicts that a killed attempt left: whole chunks of the same problems, from the first on."""
    found: list[dict[str, Any]] = []
    for line, row in zip(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), rows, strict=False):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # killed while it wrote
            break
        if not isinstance(found[-1], dict) or found[-1].get("query") != row["query"]:
            return []
    return found if len(found) == len(rows) else found[: len(found) // CHUNK * CHUNK]


def verdict(text: str, row: Row) -> dict[str, Any]:
    """What one text of a model is worth: the answer found in it, by which rule, and whether it is right."""
    text = STOPS.split(text)[0].rstrip()
    reference, found = answer_of(row), extract(text)
    published = vb_lora_gsm8k if row["benchmark"] == "gsm8k" else metamath_math
    return {
        "benchmark": row["benchmark"],
        "text": text,
        "reference": reference,
        "answer": found.answer if found else None,
        "rule": found.rule if found else None,
        "right": found is not None and equivalent(found.answer, reference),
        "published": published(text, reference),
        "format": MARKER in text,
    }


def shares(verdicts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Verdicts as shares of each benchmark: right, right by the published scorer, in MetaMathQA's form."""
    result: dict[str, float] = {}
    for benchmark in dict.fromkeys(each["benchmark"] for each in verdicts):
        mine = [each for each in verdicts if each["benchmark"] == benchmark]
        for key, name in (("right", ""), ("published", "_published"), ("format", "_format")):
            result[benchmark + name] = sum(each[key] for each in mine) / len(mine)
    return result


def answer_of(row: Row) -> str:
    """The right answer of a row; of a training row, the one that its response ends with."""
    if "answer" in row:
        return row["answer"]
    found = extract(row["response"])
    return found.answer if found else ""


def training_rows(source: str) -> tuple[list[Row], str]:
    """MetaMathQA, or GSM8K's training problems in its form, and where they are from; no rows where neither is had."""
    local = source in ("any", "local")
    folder = local_folder("metamath") if local else None
    if folder is not None:
        rows = read_jsonl(_file(folder, "train"), ("query", "response"), None)
        return [_typed(row) for row in rows], "local folder metamath in VBANK_DATA"
    if source in ("any", "hub"):
        splits = load_hub(METAMATHQA, None, {}, ("query", "response", "type"), None, ("train",))
        if splits is not None:
            return [_typed(row) for row in splits["train"]], f"Hugging Face Hub {METAMATHQA}"
    folder = local_folder("gsm8k") if local else None
    if folder is not None:
        rows = [from_gsm8k(row) for row in read_jsonl(_file(folder, "train"), ("question", "answer"), None)]
        return [{key: row[key] for key in ("query", "response", "benchmark")} for row in rows], (
            "local folder gsm8k in VBANK_DATA (its own training problems, which stand in for MetaMathQA)"
        )
    return [], ""


def gsm8k_rows(source: str) -> tuple[list[Row], str]:
    """GSM8K's test problems and where they are from; no rows where they cannot be had."""
    folder = local_folder("gsm8k") if source in ("any", "local") else None
    if folder is not None:
        return [from_gsm8k(row) for row in read_jsonl(_file(folder, "test"), ("question", "answer"), None)], "GSM8K"
    splits = load_hub(GSM8K, "main", {}, ("question", "answer"), None, ("test",)) if source != "local" else None
    return ([from_gsm8k(row) for row in splits["test"]], f"GSM8K of {GSM8K}") if splits else ([], "")


def math_rows(source: str) -> tuple[list[Row], str]:
    """MATH's test problems and where they are from, in words that follow GSM8K's."""
    folder = local_folder("math") if source in ("any", "local") else None
    if folder is not None:
        rows = [from_math(row) for row in read_jsonl(_file(folder, "test"), ("problem", "solution"), None)]
        return rows, " and MATH of the local folder math"
    rows = []
    for subject in MATH_SUBJECTS if source != "local" else ():
        splits = load_hub(MATH, subject, {}, ("problem", "solution"), None, ("test",))
        if splits is None:
            return [], ", not on MATH, which cannot be had"
        rows += [from_math(row) for row in splits["test"]]
    return (rows, f" and MATH of {MATH}") if rows else ([], ", not on MATH: there is no folder math")


def _file(folder: Path, split: str) -> Path:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing; the folder {folder.name} needs {split}.jsonl")
    return path


def _typed(row: Row) -> Row:
    """A row of MetaMathQA; its column `type` says which benchmark's training problems it was made from."""
    benchmark = "math" if str(row.get("type", "")).startswith("MATH") else "gsm8k"
    return {"query": row["query"], "response": row["response"], "benchmark": benchmark}


def from_gsm8k(row: Row) -> Row:
    """A row of GSM8K in MetaMathQA's form: without the notes of a calculator, and with the closing sentence.

    Raises:
        DataError: the answer does not end in "#### " and a number.
    """
    steps, hashes, answer = (part.strip() for part in str(row["answer"]).rpartition("####"))
    if not hashes or not re.fullmatch(r"[-+]?[\d,]+(?:\.\d+)?", answer):
        raise DataError(f"a row of GSM8K ends in {str(row['answer'])[-40:]!r}; expected '#### ' and a number")
    answer = answer.replace(",", "")
    steps = re.sub(r"<<[^<>]*>>", "", steps)
    response = f"{steps}\n#### {answer}\n{MARKER}{answer}"
    return {"query": row["question"], "response": response, "answer": answer, "benchmark": "gsm8k"}


def from_math(row: Row) -> Row:
    r"""A row of MATH in MetaMathQA's form; the answer is what its solution has in \boxed{}.

    Raises:
        DataError: the solution has no \boxed{}.
    """
    solution = str(row["solution"])
    answer = boxed(solution)
    if answer is None:
        raise DataError(f"a solution of MATH has no \\boxed{{}}; its problem begins {str(row['problem'])[:60]!r}")
    response = f"{solution}\n{MARKER}{answer}"
    return {"query": row["problem"], "response": response, "answer": answer, "benchmark": "math"}


def other_form(rows: Sequence[Row]) -> list[str]:
    """Problems and their solutions with another prompt and another close: what a small model reads first."""
    pairs = [(row, row["response"].partition("\n####")[0].strip()) for row in rows]
    return [f"### Question\n{row['query']}\n\n### Answer\n{steps}\nResult = {answer_of(row)}" for row, steps in pairs]


NAMES = ("Ada", "Ben", "Carla", "Dev", "Elif", "Femi", "Grace", "Hugo")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps")


def buying(draw: random.Random) -> tuple[str, str, int]:
    name, thing, had, bags, each = draw.choice(NAMES), draw.choice(THINGS), *(draw.randint(2, 20) for _ in range(3))
    bought = bags * each
    question = (
        f"{name} has {had} {thing} and buys {bags} bags with {each} {thing} each. How many {thing} are there now?"
    )
    steps = f"The bags hold {bags}*{each}={bought} {thing}.\nTogether that is {had}+{bought}={had + bought}."
    return question, steps, had + bought


def sharing(draw: random.Random) -> tuple[str, str, int]:
    name, thing, friends, each, left = draw.choice(NAMES), draw.choice(THINGS), *(draw.randint(2, 12) for _ in range(3))
    given = friends * each
    question = (
        f"{name} gives {each} {thing} to each of {friends} friends, of {given + left}. How many {thing} are left?"
    )
    return question, f"The friends get {friends}*{each}={given}.\nThere are {given + left}-{given}={left} left.", left


def earning(draw: random.Random) -> tuple[str, str, int]:
    name, hours, rate, spent = draw.choice(NAMES), draw.randint(3, 12), draw.randint(8, 30), draw.randint(2, 20)
    paid = hours * rate
    question = f"{name} works {hours} hours at ${rate} an hour and spends ${spent}. How many dollars remain?"
    steps = f"The work pays {hours}*{rate}={paid} dollars.\nOf these {paid}-{spent}={paid - spent} remain."
    return question, steps, paid - spent


PROBLEMS: tuple[Callable[[random.Random], tuple[str, str, int]], ...] = (buying, sharing, earning)


def generated(train: int = 1200, test: int = 200, seed: int = 0) -> TaskData:
    """Word problems of three kinds made from a seed; a stand-in so that code runs, not GSM8K."""
    draw, rows = random.Random(f"word problems {seed}"), dict[str, Row]()
    while len(rows) < train + test:
        question, steps, answer = draw.choice(PROBLEMS)(draw)
        rows[question] = from_gsm8k({"question": question, "answer": f"{steps}\n#### {answer}"})
    ordered = list(rows.values())
    return TaskData("metamath", "generated word problems (a stand-in, not GSM8K)", ordered[:train], ordered[train:])
