"""A judge for MT-Bench: its prompts, the score in its text, and the endpoint that is asked.

The judge is any model behind an OpenAI-compatible endpoint. Its key comes from the environment, and is neither printed
nor written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vbank.tasks.base import Announce
from vbank.tasks.instruct import objects
from vbank.tasks.mt_bench import CATEGORIES, WHOLE, Benchmark, write_objects
from vbank.tasks.sources import DataError

REFERENCED = ("math", "reasoning", "coding")  # categories whose judge sees a reference answer
RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
LOWEST, HIGHEST = 1.0, 10.0
KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"  # environment variables, as the openai package names them


class EndpointError(ValueError):
    """The endpoint did not judge; what was judged before is kept."""


class Refused(EndpointError):
    """The endpoint will not take this one request."""


@dataclass(frozen=True)
class Request:
    """What a judge is asked about one answer.

    Args:
        question: its number.
        category: its category.
        turn: the turn judged, 1 or 2.
        prompt: name of the judge's prompt.
        reference: whether a reference answer is in it.
        messages: system and user message, as the endpoint takes them.
    """

    question: int
    category: str
    turn: int
    prompt: str
    reference: bool
    messages: list[dict[str, str]]

    @property
    def digest(self) -> str:
        """Twelve hex digits of the messages: another answer or prompt is another request."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:12]


def requests(benchmark: Benchmark, answers: Mapping[int, Sequence[str]], turn: int = 1) -> list[Request]:
    """The judge's prompts for all answers to a turn: single-v1, and single-math-v1 where there is a reference answer.

    Math, reasoning and coding need one (Zheng et al. 2023, section 3.4). Where the file of references is absent they
    are judged by single-v1 as the others: `Request.reference` is then false, and `Summary.without_reference` counts it.

    Raises:
        DataError: answers to unknown questions, no answer to this turn, or a prompt that is missing or has other gaps.
    """
    if turn not in (1, 2):
        raise DataError(f"turn is {turn}; MT-Bench has 1 or 2")
    known = {question.id: question for question in benchmark.questions}
    if strange := [key for key in answers if key not in known]:
        raise DataError(f"answers to unknown questions: {', '.join(map(str, strange))}; {benchmark.source} lacks them")
    made = []
    for key, question in known.items():
        given = answers.get(key, ())
        if len(given) < turn:
            continue
        reference = benchmark.references.get(key, ()) if question.category in REFERENCED else ()
        name = ("single-math-v1" if reference else "single-v1") + ("-multi-turn" if turn == 2 else "")
        gaps = {
            "question": question.turns[turn - 1],
            "answer": given[turn - 1],
            **{f"question_{n}": text for n, text in enumerate(question.turns, start=1)},
            **{f"answer_{n}": text for n, text in enumerate(given, start=1)},
            **{f"ref_answer_{n}": text for n, text in enumerate(reference, start=1)},
        }
        if "own" in benchmark.prompts:
            name = "own"
        if name not in benchmark.prompts:
            raise DataError(f"judge prompt {name!r} is missing; judge_prompts.jsonl has {', '.join(benchmark.prompts)}")
        template = benchmark.prompts[name]
        try:
            user = template["prompt_template"].format(**gaps)
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"judge prompt {name!r} has a gap that cannot be filled: {error}") from None
        messages = [{"role": "system", "content": template["system_prompt"]}, {"role": "user", "content": user}]
        made.append(Request(key, question.category, turn, name, bool(reference), messages))
    if not made:
        raise DataError(f"no question has an answer to turn {turn}")
    return made


def write_requests(path: Path, asked: Sequence[Request]) -> None:
    """The dry run: everything that the judge would be asked, one JSON object a line; nobody is called."""
    write_objects(path, (_named(request) | {"messages": request.messages} for request in asked))


def _named(request: Request) -> dict[str, Any]:
    return {
        "question_id": request.question,
        "category": request.category,
        "turn": request.turn,
        "prompt": request.prompt,
        "reference": request.reference,
        "request": request.digest,
    }


def score_of(text: str) -> tuple[float | None, str]:
    """The score in a judge's text, from 1 to 10, or None and the reason why there is none.

    Only what the prompt asks for counts: a number in double square brackets. One rating given several times is one;
    two different ones are none. FastChat takes the first of several and a number in single brackets too.
    """
    ratings = {float(found) for found in RATING.findall(text)}
    if not ratings:
        return None, "no rating" if text.strip() else "empty reply"
    if len(ratings) > 1:
        return None, "several ratings"
    (rating,) = ratings
    if not LOWEST <= rating <= HIGHEST:
        return None, "rating out of range"
    return rating, ""


class Endpoint:
    """A judge behind an OpenAI-compatible endpoint.

    Args:
        model: what the endpoint calls the judge, such as "gpt-4-0613".
        url: of the endpoint, up to and with /v1; None takes OPENAI_BASE_URL, else OpenAI's own.
        timeout: seconds for one reply.
        retries: of a request that met a rate limit, a timeout or a fault of the server; the waits grow, and the
            server's Retry-After is heeded.
        per_minute: requests a minute at most; 0 sets no limit.

    Raises:
        EndpointError: no key in OPENAI_API_KEY, a URL that is none, or the package openai is missing.
    """

    def __init__(
        self, model: str, url: str | None = None, timeout: float = 120.0, retries: int = 6, per_minute: float = 0.0
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise EndpointError("the judge needs the package openai: pip install 'vbank[judge]'") from None
        self.key = os.environ.get(KEY, "").strip()
        if not self.key:
            raise EndpointError(f"no key: set {KEY} (to any text for a server that wants none), or use --dry-run")
        url = url or os.environ.get(URL) or None
        if url is not None and not re.match(r"https?://\w", url):
            raise EndpointError(f"{url!r} is no URL of an endpoint; give one such as http://localhost:8000/v1")
        if timeout <= 0 or retries < 0 or per_minute < 0:
            raise EndpointError(f"timeout {timeout}, retries {retries}, per_minute {per_minute}: a number is too small")
        self.model, self.pause, self.last = model, 60.0 / per_minute if per_minute else 0.0, 0.0
        self.client = openai.OpenAI(api_key=self.key, base_url=url, timeout=timeout, max_retries=retries)

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The judge's text, at temperature 0.

        Raises:
            Refused: the endpoint will not take this request (400, 422).
            EndpointError: a wrong key, an unknown model or URL, a reply that is no chat completion, or a fault that the
                retries did not outlast.
        """
        import openai

        time.sleep(max(0.0, self.last + self.pause - time.monotonic()))
        self.last = time.monotonic()
        chat: Any = self.client.chat.completions
        try:
            reply = chat.create(model=self.model, messages=messages, temperature=0.0)
            text = reply.choices[0].message.content or ""
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(f"the endpoint refused the key in {KEY} ({error.status_code})") from None
        except openai.NotFoundError:
            raise EndpointError(f"the endpoint knows no model {self.model!r}, or its URL is wrong (404)") from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise Refused(f"the endpoint refused the request ({error.status_code}): {self._said(error)}") from None
        except openai.APITimeoutError:
            raise EndpointError("the endpoint did not answer in time; raise --timeout, or go on later") from None
        except openai.APIConnectionError:
            raise EndpointError("the endpoint cannot be reached; is its URL right?") from None
        except openai.APIStatusError as error:
            raise EndpointError(f"the endpoint failed ({error.status_code}): {self._said(error)}") from None
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError):
            raise EndpointError("the reply is no chat completion; is the URL right? It often ends in /v1") from None
        return self._without_key(text)

    def _said(self, error: Any) -> str:
        return self._without_key(" ".join(str(error.message).split()))[:200]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***")


def judge(
    asked: Sequence[Request],
    name: str,
    ask: Callable[[list[dict[str, str]]], str],
    path: Path,
    announce: Announce = print,
) -> list[dict[str, Any]]:
    """Asks a judge about every request that `path` has no verdict on, and keeps each verdict there at once.

    A text without a score is kept as unscored, with the reason, and is not asked for again. So is a request that the
    endpoint refuses, unless it is the judge's first: then the fault is likely to lie in all of them.

    Args:
        asked: as `requests` gives them.
        name: the judge's model; one file may hold verdicts of several.
        ask: takes messages, gives the judge's text; `Endpoint.ask`.
        path: the file of verdicts, one JSON object a line, replaced as a whole after every reply.
        announce: takes lines of text about what is done.

    Returns:
        The judge's verdicts on `asked`, in their order.

    Raises:
        EndpointError: as `Endpoint.ask`. The verdicts so far are kept; the same call goes on from there.
    """
    from tqdm import tqdm

    kept = [row for _, row in objects(path)] if path.is_file() else []
    current = {(request.question, request.turn): request.digest for request in asked}
    others, mine = [], {}
    for row in kept:
        key = row.get("question_id"), row.get("turn")
        if row.get("judge") != name or key not in current:
            others.append(row)
        elif row.get("request") == current[key]:  # else the answer has changed since
            mine[key] = row
    if mine:
        announce(f"judge: {len(mine)} of {len(asked)} judged before, see {path}")
    waiting = [request for request in asked if (request.question, request.turn) not in mine]
    for request in tqdm(waiting, desc=f"judge {name}", disable=None):  # no bar where the output is a file
        key = request.question, request.turn
        try:
            text = ask(request.messages)
            score, reason = score_of(text)
        except Refused as refusal:
            if not mine:
                raise
            text, score, reason = str(refusal), None, "refused"
        mine[key] = _named(request) | {"judge": name, "score": score, "reason": reason, "judgment": text}
        write_objects(path, [*others, *(mine[each] for each in current if each in mine)])
    return [mine[key] for key in current]


@dataclass(frozen=True)
class Summary:
    """What a judge made of a model's answers.

    Args:
        mean: of all scores, the figure that the papers report; None without a score.
        error: its standard error over questions, sd / sqrt(n); None for fewer than two scores.
        scored, unscored: verdicts with and without a score. The mean leaves the latter out; it does not count them 0.
        unanswered: questions of the benchmark without a verdict.
        without_reference: verdicts on math, reasoning and coding that were made without a reference answer.
        own_prompt: verdicts made with a prompt of our own instead of MT-Bench's.
        categories: by category its mean, or None, and how many scored and unscored.
        reasons: how often each reason for a missing score occurred.
    """

    mean: float | None
    error: float | None
    scored: int
    unscored: int
    unanswered: int
    without_reference: int
    own_prompt: int
    categories: dict[str, tuple[float | None, int, int]]
    reasons: dict[str, int]


def summarise(verdicts: Sequence[Mapping[str, Any]], questions: int = 0) -> Summary:
    """Mean by category and over all, with what is missing from it; `questions` is how many the benchmark has."""
    scores = [row["score"] for row in verdicts if row["score"] is not None]
    categories: dict[str, tuple[float | None, int, int]] = {}
    for name in CATEGORIES:
        found = [row["score"] for row in verdicts if row["category"] == name]
        given = [score for score in found if score is not None]
        if found:
            categories[name] = statistics.fmean(given) if given else None, len(given), len(found) - len(given)
    reasons = [row["reason"] for row in verdicts if row["score"] is None]
    return Summary(
        mean=statistics.fmean(scores) if scores else None,
        error=statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
        scored=len(scores),
        unscored=len(reasons),
        unanswered=max(0, questions - len(verdicts)),
        without_reference=sum(row["category"] in REFERENCED and not row["reference"] for row in verdicts),
        own_prompt=sum(row["prompt"] == "own" for row in verdicts),
        categories=categories,
        reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )


def report(summary: Summary) -> str:
    """The summary as lines of text."""
    lines = [f"{'category':12}{'mean':>6}{'scored':>8}{'unscored':>10}"]
    for name, (mean, scored, unscored) in summary.categories.items():
        lines.append(f"{name:12}{'' if mean is None else f'{mean:.2f}':>6}{scored:8}{unscored:10}")
    over_all = "none" if summary.mean is None else f"{summary.mean:.2f}"
    error = "" if summary.error is None else f", standard error {summary.error:.2f}"
    lines.append(f"mean {over_all} of {summary.scored} scores{error}; {summary.unscored} unscored")
    if summary.reasons:
        lines.append("unscored: " + ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items()))
    if summary.unanswered:
        lines.append(f"{summary.unanswered} questions of the benchmark have no verdict, so the mean is not MT-Bench's")
    if summary.without_reference:
        lines.append(
            f"{summary.without_reference} verdicts on {', '.join(REFERENCED)} were made without a reference answer, so"
            " the mean does not compare with published ones; put reference_answer/gpt-4.jsonl beside the questions"
        )
    if summary.own_prompt:
        lines.append(
            f"{summary.own_prompt} verdicts were asked for in words of our own, so the mean is not MT-Bench's; put"
            " judge_prompts.jsonl beside the questions"
        )
    return "\n".join(lines)


def refuse_incomparable(asked: Sequence[Request]) -> None:
    """Refuse to put a mean beside published ones unless it is over what they are over; ask before a judge is paid.

    Raises:
        ValueError: not all 80 questions, not the first turn, a prompt of our own, or references that are missing.
    """
    lacking = sum(request.category in REFERENCED and not request.reference for request in asked)
    reason = ""
    if len(asked) != WHOLE:
        reason = f"{len(asked)} of {WHOLE} questions are answered"
    elif any(request.turn != 1 for request in asked):
        reason = "the papers report the first turn"
    elif any(request.prompt == "own" for request in asked):
        reason = "judge_prompts.jsonl is missing beside the questions"
    elif lacking:
        reason = f"{lacking} questions lack a reference answer, reference_answer/gpt-4.jsonl"
    if reason:
        raise ValueError(f"the ledger takes a score on the whole of MT-Bench: {reason}; judge without --record")


def load_record(path: Path) -> dict[str, Any]:
    """A run of the ledger by its file.

    Raises:
        ValueError: no such run.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["metrics"], dict) and isinstance(record["run"], str):
            return record
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no run of the ledger; give its JSON file")


def add_to_record(path: Path, asked: Sequence[Request], summary: Summary, judge_name: str) -> None:
    """Writes a score into a run of the ledger: `metrics.mt_bench`, and how it came about under `judged`.

    Raises:
        ValueError: no such run, nothing was scored, or see `refuse_incomparable`.
    """
    record = load_record(path)
    refuse_incomparable(asked)
    if summary.mean is None:
        raise ValueError(f"nothing was scored, so {path.name} stays as it is")
    record["metrics"]["mt_bench"] = summary.mean
    record["judged"] = asdict(summary) | {"judge": judge_name, "turn": asked[0].turn}
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
