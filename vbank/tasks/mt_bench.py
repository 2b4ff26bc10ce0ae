"""MT-Bench (Zheng et al. 2023): its 80 questions of two turns, and a model's answers as a file that can be resumed.

What a judge makes of the answers is in `vbank.tasks.judging`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vbank.suggestions import unknown
from vbank.tasks.base import Announce
from vbank.tasks.generation import context_length, generate, prompt_ids
from vbank.tasks.instruct import SOURCES, conversation, hub_rows, objects
from vbank.tasks.sources import DataError, local_folder

LOCAL = "mt_bench"  # folder under VBANK_DATA
HUB = "lighteval/mt-bench"  # the same 80 rows: question_id, category, turns, reference
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
WHOLE = 80  # questions
MAX_NEW_TOKENS = 1024  # of an answer, as MT-Bench's own generation has it


@dataclass(frozen=True)
class Question:
    """One question of MT-Bench.

    Args:
        id: its number, 81 to 160 in MT-Bench.
        category: one of `CATEGORIES`.
        turns: what the user says, the second turn after the answer to the first.
    """

    id: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Questions, the judge's prompts and reference answers, and where they came from.

    Args:
        source: in words; begins with "generated" for a stand-in.
        questions: in the file's order.
        prompts: by name, as in judge_prompts.jsonl: ``system_prompt`` and ``prompt_template``.
        references: the reference answers by question, one a turn; empty where the file is not there.
    """

    source: str
    questions: list[Question]
    prompts: dict[str, dict[str, str]] = field(repr=False)
    references: dict[int, list[str]] = field(default_factory=dict, repr=False)


# Last resort, in words of our own: a score under this prompt is no score of MT-Bench.
OWN_PROMPT = {
    "system_prompt": "You grade answers.",
    "prompt_template": "Grade the answer below from 1 (useless) to 10 (could not be better). Give your reasons in a few"
    " sentences, then the grade in double square brackets, such as [[5]].\n\nQuestion:\n{question}\n\n"
    "Answer:\n{answer}",
}
OWN_QUESTIONS = {
    "writing": "Write a short letter that thanks a neighbour for watering the plants.",
    "roleplay": "You are a lighthouse keeper. Describe your evening.",
    "reasoning": "Anna is taller than Ben, and Ben is taller than Carl. Who is the shortest?",
    "math": "A train covers 180 km in two hours and a half. What is its mean speed?",
    "coding": "Write a Python function that returns the second largest number of a list.",
    "extraction": "List the years in this sentence: the bridge of 1893 was widened in 1931 and closed in 1990.",
    "stem": "Why does ice float on water?",
    "humanities": "What is the difference between a simile and a metaphor?",
}
OWN_SECOND = "Now say the same in a single sentence."


def load(source: str = "any", announce: Announce | None = print) -> Benchmark:
    """Questions from VBANK_DATA/mt_bench/question.jsonl, the Hub, or eight of our own, labelled so.

    The judge's prompts are read from judge_prompts.jsonl beside the questions, the reference answers from
    reference_answer/gpt-4.jsonl, both as in the FastChat repository. The Hub's data set has the questions alone. (The
    field `reference` of some questions is not used: it holds short notes by people, not what MT-Bench's judge sees.)

    Raises:
        DataError: an unknown or absent source, or a line that cannot be used.
    """
    if source not in SOURCES:
        raise DataError(unknown("source", source, SOURCES))
    folder = local_folder(LOCAL)
    rows: list[tuple[str, dict[str, Any]]] = []
    if source in ("any", "local") and folder is not None:
        if not (folder / "question.jsonl").is_file():
            raise DataError(f"{folder / 'question.jsonl'} is missing; take it from the FastChat repository")
        rows, used = list(objects(folder / "question.jsonl")), f"local folder {LOCAL} in VBANK_DATA"
    elif source in ("any", "hub"):
        found = hub_rows(HUB) or []
        rows = [(f"{HUB} row {number}", row) for number, row in enumerate(found, start=1)]
        used = f"Hugging Face Hub {HUB}"
    if rows:
        questions = [_question(row, where) for where, row in rows]
        seen: set[int] = set()
        for (where, _), question in zip(rows, questions, strict=True):
            if question.id in seen:
                raise DataError(f"{where}: question {question.id} is there twice; remove one of them")
            seen.add(question.id)
    elif source in ("any", "generated"):
        questions = [Question(n, name, (text, OWN_SECOND)) for n, (name, text) in enumerate(OWN_QUESTIONS.items(), 1)]
        used = "generated questions (a stand-in, not MT-Bench)"
    else:
        way = f"set VBANK_DATA to a folder with {LOCAL}" if source == "local" else "the Hub does not answer"
        raise DataError(f"mt_bench: source {source!r} is absent; {way}, or use source 'any'")
    benchmark = Benchmark(used, questions, judge_prompts(folder), references(folder))
    if announce:
        own = ", a judge's prompt of our own (a stand-in)" if "own" in benchmark.prompts else ""
        announce(f"data: mt_bench from {used}: {len(questions)} questions{own}")
    return benchmark


def _question(row: Mapping[str, Any], where: str) -> Question:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise DataError(f"{where}: field 'turns' must be a list of non-empty strings, found {turns!r}")
    if not isinstance(row.get("question_id"), int):
        raise DataError(f"{where}: field 'question_id' must be an integer, found {row.get('question_id')!r}")
    if row.get("category") not in CATEGORIES:
        raise DataError(f"{where}: {unknown('category', str(row.get('category')), CATEGORIES)}")
    return Question(row["question_id"], row["category"], tuple(turns))


def judge_prompts(folder: Path | None) -> dict[str, dict[str, str]]:
    """The judge's prompts by name; our own where the folder has none."""
    path = folder / "judge_prompts.jsonl" if folder else None
    if path is None or not path.is_file():
        return {"own": OWN_PROMPT}
    prompts = {}
    for where, row in objects(path):
        for key in ("name", "system_prompt", "prompt_template"):
            if not isinstance(row.get(key), str):
                raise DataError(f"{where}: field {key!r} must be a string, found {row.get(key)!r}")
        prompts[row["name"]] = {key: row[key] for key in ("system_prompt", "prompt_template")}
    return prompts


def references(folder: Path | None) -> dict[int, list[str]]:
    """Reference answers by question; none where the folder has no file of them."""
    path = folder / "reference_answer" / "gpt-4.jsonl" if folder else None
    return read_answers(path) if path is not None and path.is_file() else {}


def answer(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    path: Path,
    name: str,
    style: str = "alpaca",
    turns: int = 1,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 8,
    announce: Announce = print,
) -> dict[int, list[str]]:
    """Generates a model's answers, greedily, and keeps them in `path`; questions answered there are not asked again.

    The file has a line a question, in FastChat's layout. It is replaced as a whole after every batch, so that a stop
    costs at most one batch.

    Args:
        model, tokenizer: a causal language model.
        questions: which to answer.
        path: the file of answers.
        name: what to call the model in it.
        style: the prompt's, "alpaca" or "chat"; that of the training.
        turns: 1, as the papers report, or 2.
        max_new_tokens: length of the longest answer; the model's context may leave less.
        batch_size: questions at a time.
        announce: takes lines of text about what is done.

    Returns:
        The answers by question, one a turn. Questions that leave the model no room for an answer are missing, and
        are named to `announce`.

    Raises:
        DataError: the file holds another model's answers, or `turns` is neither 1 nor 2.
    """
    if turns not in (1, 2):
        raise DataError(f"turns is {turns}; MT-Bench has 1 or 2")
    done = read_answers(path, name) if path.is_file() else {}
    for turn in range(turns):
        prompts, room = {}, {}
        for question in questions:
            before = done.get(question.id, [])
            if len(before) == turn < len(question.turns):
                prompts[question.id] = conversation(question.turns[: turn + 1], before, style, tokenizer.eos_token)
                room[question.id] = _room(model, tokenizer, prompts[question.id], max_new_tokens)
        if without := [key for key in prompts if room[key] < 1]:
            announce(f"mt_bench: left out, longer than the model reads: {', '.join(map(str, without))}")
        if short := sum(0 < room[key] < max_new_tokens for key in prompts):
            announce(f"mt_bench: {short} of {len(questions)} answers have room for fewer than {max_new_tokens} tokens")
        waiting = sorted((key for key in prompts if room[key] > 0), key=lambda key: (room[key], len(prompts[key])))
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]  # the first has the least room
            texts = generate(model, tokenizer, [prompts[key] for key in batch], room[batch[0]], batch_size)
            done |= {key: [*done.get(key, []), text] for key, text in zip(batch, texts, strict=True)}
            write_answers(path, name, done)
    return {question.id: done[question.id] for question in questions if question.id in done}


def _room(model: Any, tokenizer: Any, prompt: str, wanted: int) -> int:
    """Tokens that an answer may have within the model's context."""
    context = context_length(model)
    return wanted if context is None else min(wanted, context - len(prompt_ids(prompt, tokenizer)))


def read_answers(path: Path, name: str | None = None) -> dict[int, list[str]]:
    """Answers of a file in FastChat's layout, by question, one a turn.

    Args:
        path: the file; a line is {"question_id", "model_id", "choices": [{"turns": [...]}]}.
        name: refuse the file if the answers are another model's.

    Raises:
        DataError: no such file, a line that is not of this layout, or another model's answers.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of answers")
    answers: dict[int, list[str]] = {}
    for where, row in objects(path):
        try:
            key, turns = int(row["question_id"]), row["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError, ValueError):
            raise DataError(f'{where}: expected {{"question_id": ..., "choices": [{{"turns": [...]}}]}}') from None
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise DataError(f"{where}: 'turns' must be a list of strings, found {turns!r}")
        if name is not None and row.get("model_id") != name:
            raise DataError(f"{where}: answers of model {row.get('model_id')!r}, not of {name!r}; name another file")
        answers[key] = turns
    return answers


def write_answers(path: Path, name: str, answers: Mapping[int, Sequence[str]]) -> None:
    """The answers in FastChat's layout, in the order of the questions."""
    rows = (
        {"question_id": key, "model_id": name, "choices": [{"index": 0, "turns": list(answers[key])}]}
        for key in sorted(answers)
    )
    write_objects(path, rows)


def write_objects(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON-lines file, written aside and renamed: a reader sees the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
