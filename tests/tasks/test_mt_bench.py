"""MT-Bench: answers that can be resumed, the judge's prompts and its scores, and a judge on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from local_data import silent, write
from tiny_models import llama

from vbank import cli
from vbank.tasks import judging, mt_bench, scratch
from vbank.tasks.judging import Endpoint, EndpointError, Refused, judge, requests, score_of, summarise
from vbank.tasks.mt_bench import Question, answer, load, read_answers, write_answers
from vbank.tasks.sources import DataError

KEY = "sk-not-a-real-key-0123456789"
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Make it short."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "And 3 + 3?"], "reference": ["4", "6"]},
    {"question_id": 121, "category": "coding", "turns": ["Reverse a list {a}.", "In place."]},
]
SYSTEM = "You are a judge."
PROMPTS = [
    {"name": "single-v1", "system_prompt": SYSTEM, "prompt_template": "Rate [[rating]].\nQ {question}\nA {answer}"},
    {
        "name": "single-math-v1",
        "system_prompt": SYSTEM,
        "prompt_template": "Q {question}\nR {ref_answer_1}\nA {answer}",
    },
    {
        "name": "single-v1-multi-turn",
        "system_prompt": SYSTEM,
        "prompt_template": "{question_1}|{answer_1}|{question_2}|{answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": SYSTEM,
        "prompt_template": "{ref_answer_1}|{ref_answer_2}|{question_1}|{answer_1}|{question_2}|{answer_2}",
    },
]
ANSWERS = {81: ["Dear all.", "Hi."], 111: ["4", "6"], 121: ["a[::-1]", "a.reverse()"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VBANK_DATA with three questions and the judge's prompts, without reference answers."""
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    write(tmp_path / "mt_bench" / "question.jsonl", QUESTIONS)
    write(tmp_path / "mt_bench" / "judge_prompts.jsonl", PROMPTS)
    return tmp_path / "mt_bench"


def with_references(folder: Path) -> None:
    answers = {key: [f"right {key}", f"right again {key}"] for key in ANSWERS}
    write_answers(folder / "reference_answer" / "gpt-4.jsonl", "gpt-4", answers)


# Questions and where they are from


def test_local_questions_come_first_then_the_hubs_then_our_own(folder: Path, monkeypatch) -> None:
    lines: list[str] = []
    found = load(announce=lines.append)
    assert lines == ["data: mt_bench from local folder mt_bench in VBANK_DATA: 3 questions"]
    assert found.questions[1] == Question(111, "math", ("What is 2 + 2?", "And 3 + 3?")) and found.references == {}
    monkeypatch.delenv("VBANK_DATA")
    asked = []
    monkeypatch.setattr(mt_bench, "hub_rows", lambda path: asked.append(path) or QUESTIONS)
    assert load(announce=silent).source == "Hugging Face Hub lighteval/mt-bench" and asked == ["lighteval/mt-bench"]
    monkeypatch.setattr(mt_bench, "hub_rows", lambda path: None)
    own = load(announce=silent)
    assert own.source == "generated questions (a stand-in, not MT-Bench)" and len(own.questions) == 8
    assert [question.category for question in own.questions] == list(mt_bench.CATEGORIES)


def test_a_question_that_is_there_twice_is_refused(folder: Path) -> None:
    write(folder / "question.jsonl", [*QUESTIONS, QUESTIONS[1] | {"category": "stem"}])
    with pytest.raises(DataError, match=r"question.jsonl:4: question 111 is there twice"):
        load(announce=silent)


def test_a_judges_prompt_of_our_own_is_said(folder: Path) -> None:
    (folder / "judge_prompts.jsonl").unlink()
    lines: list[str] = []
    asked = requests(load(announce=lines.append), ANSWERS)
    assert lines[0].endswith("3 questions, a judge's prompt of our own (a stand-in)")
    found = summarise([judging._named(one) | {"score": 5.0, "reason": ""} for one in asked], 3)
    assert found.own_prompt == 3 and "in words of our own, so the mean is not MT-Bench's" in judging.report(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turns": "one"}, "question.jsonl:1: field 'turns' must be a list"),
        ({"turns": ["  "]}, "non-empty strings"),
        ({"turns": []}, "field 'turns'"),
        ({"question_id": "81"}, "'question_id' must be an integer"),
        ({"category": "writting"}, "did you mean 'writing'"),
    ],
)
def test_a_question_that_cannot_be_used_is_named(folder: Path, change: dict, said: str) -> None:
    write(folder / "question.jsonl", [QUESTIONS[0] | change])
    with pytest.raises(DataError) as error:
        load(announce=silent)
    assert said in str(error.value)


def test_missing_files_and_unknown_sources(folder: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="did you mean 'local'"):
        load("locale", silent)
    write(folder / "judge_prompts.jsonl", [{"name": "single-v1"}])
    with pytest.raises(DataError, match=r"judge_prompts.jsonl:1: field 'system_prompt'"):
        load(announce=silent)
    (folder / "question.jsonl").unlink()
    with pytest.raises(DataError, match=r"question.jsonl is missing"):
        load(announce=silent)
    monkeypatch.delenv("VBANK_DATA")
    monkeypatch.setattr(mt_bench, "hub_rows", lambda path: None)
    for source in ("local", "hub"):
        with pytest.raises(DataError, match=f"source {source!r} is absent"):
            load(source, silent)


# Answers


@pytest.fixture(scope="module")
def writer():
    """A tiny Llama that writes nonsense, and its tokenizer."""
    tokenizer = scratch.bpe("llama", ["Below is an instruction. Write a response: 1 2 3"], 300)
    return llama(vocab_size=len(tokenizer), max_position_embeddings=400).eval(), tokenizer


def asked_questions() -> list[Question]:
    return [Question(row["question_id"], row["category"], tuple(row["turns"])) for row in QUESTIONS]


def test_answers_are_kept_in_fastchats_layout_and_never_made_twice(tmp_path: Path, writer, monkeypatch) -> None:
    path = tmp_path / "answers.jsonl"
    first = answer(*writer, asked_questions()[:2], path, "tiny", max_new_tokens=5, announce=silent)
    assert list(first) == [81, 111]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"question_id": 81, "model_id": "tiny", "choices": [{"index": 0, "turns": first[81]}]}
    asked, real = [], mt_bench.generate
    monkeypatch.setattr(
        mt_bench, "generate", lambda m, t, prompts, *rest: asked.extend(prompts) or real(m, t, prompts, *rest)
    )
    both = answer(*writer, asked_questions(), path, "tiny", max_new_tokens=5, announce=silent)
    assert len(asked) == 1 and "Reverse a list {a}." in asked[0] and {key: both[key] for key in first} == first
    answer(*writer, asked_questions(), path, "tiny", max_new_tokens=5, announce=silent)
    assert len(asked) == 1 and not list(tmp_path.glob("*.tmp"))


def test_a_stop_between_two_batches_costs_one_batch(tmp_path: Path, writer, monkeypatch) -> None:
    path, calls, real = tmp_path / "answers.jsonl", [], mt_bench.generate

    def stopped(model, tokenizer, prompts, *rest):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(mt_bench, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        answer(*writer, asked_questions(), path, "tiny", max_new_tokens=5, batch_size=2, announce=silent)
    assert len(read_answers(path)) == 2
    whole = answer(*writer, asked_questions(), path, "tiny", max_new_tokens=5, batch_size=2, announce=silent)
    assert calls == [2, 1, 1] and whole == read_answers(path) and len(whole) == 3


def test_the_second_turn_sees_the_first(tmp_path: Path, writer, monkeypatch) -> None:
    path, asked, real = tmp_path / "answers.jsonl", [], mt_bench.generate
    monkeypatch.setattr(
        mt_bench, "generate", lambda m, t, prompts, *rest: asked.append(prompts) or real(m, t, prompts, *rest)
    )
    one = asked_questions()[:1]
    answer(*writer, one, path, "tiny", max_new_tokens=5, announce=silent)
    both = answer(*writer, one, path, "tiny", style="chat", turns=2, max_new_tokens=5, announce=silent)
    assert len(both[81]) == 2 and len(asked) == 2
    assert asked[1][0].count("<|user|>") == 2 and f"{both[81][0]}</s>" in asked[1][0]
    with pytest.raises(DataError, match="turns is 3"):
        answer(*writer, one, path, "tiny", turns=3)


def test_what_the_model_has_no_room_for_is_said(tmp_path: Path, writer) -> None:
    long = [Question(1, "writing", ("word " * 500,)), Question(2, "writing", ("short",))]
    lines: list[str] = []
    found = answer(*writer, long, tmp_path / "a.jsonl", "tiny", max_new_tokens=380, announce=lines.append)
    assert list(found) == [2]
    assert lines[0].endswith("longer than the model reads: 1") and "room for fewer than 380" in lines[1]


def test_answers_of_another_model_or_layout_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_answers(path, "a", ANSWERS)
    with pytest.raises(DataError, match="answers of model 'a', not of 'b'"):
        read_answers(path, "b")
    for row, said in (
        ({"question_id": 1}, "expected"),
        ({"question_id": 1, "choices": [{"turns": [3]}]}, "list of strings"),
        ({"question_id": 1, "choices": [{"turns": []}]}, "list of strings"),
        ({"question_id": 1, "choices": [{"turns": "hello"}]}, "list of strings, found 'hello'"),
    ):
        write(path, [row])
        with pytest.raises(DataError, match=said):
            read_answers(path)
    with pytest.raises(DataError, match="no such file of answers"):
        read_answers(tmp_path / "none.jsonl")


# The judge's prompts


def test_without_references_every_question_gets_the_general_prompt_and_that_is_counted(folder: Path) -> None:
    asked = requests(load(announce=silent), ANSWERS)
    assert [(one.question, one.prompt, one.reference) for one in asked] == [
        (81, "single-v1", False),
        (111, "single-v1", False),
        (121, "single-v1", False),
    ]
    assert asked[2].messages == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Rate [[rating]].\nQ Reverse a list {a}.\nA a[::-1]"},
    ]
    rows = [judging._named(one) | {"score": 5.0, "reason": ""} for one in asked]
    assert summarise(rows).without_reference == 2


def test_with_references_math_and_coding_are_judged_beside_them(folder: Path) -> None:
    with_references(folder)
    asked = requests(load(announce=silent), ANSWERS)
    assert [one.prompt for one in asked] == ["single-v1", "single-math-v1", "single-math-v1"]
    assert asked[1].messages[1]["content"] == "Q What is 2 + 2?\nR right 111\nA 4"
    second = requests(load(announce=silent), ANSWERS, turn=2)
    assert [one.prompt for one in second] == ["single-v1-multi-turn"] + ["single-math-v1-multi-turn"] * 2
    assert second[1].messages[1]["content"] == "right 111|right again 111|What is 2 + 2?|4|And 3 + 3?|6"
    assert second[0].digest != asked[0].digest


def test_our_own_prompt_stands_in_for_the_judges(no_folder, monkeypatch) -> None:
    monkeypatch.setattr(mt_bench, "hub_rows", lambda path: None)
    asked = requests(load(announce=silent), {1: ["Dear neighbour"]})
    assert asked[0].prompt == "own" and asked[0].messages[1]["content"].endswith("Answer:\nDear neighbour")


def test_requests_that_cannot_be_made(folder: Path) -> None:
    benchmark = load(announce=silent)
    for answers, turn, said in (
        ({5: ["x"]}, 1, "unknown questions: 5"),
        ({}, 1, "no question has an answer to turn 1"),
        ({81: ["x"]}, 2, "no question has an answer to turn 2"),
        (ANSWERS, 3, "turn is 3"),
    ):
        with pytest.raises(DataError, match=said):
            requests(benchmark, answers, turn)
    write(folder / "judge_prompts.jsonl", [PROMPTS[0] | {"prompt_template": "{quest}"}])
    with pytest.raises(DataError, match="'single-v1' has a gap that cannot be filled: 'quest'"):
        requests(load(announce=silent), ANSWERS)
    write(folder / "judge_prompts.jsonl", [PROMPTS[1]])
    with pytest.raises(DataError, match="'single-v1' is missing; judge_prompts.jsonl has single-math-v1"):
        requests(load(announce=silent), ANSWERS)


# The score in a text


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("Good. Rating: [[8]]", 8.0, ""),
        ("[[8.5]]", 8.5, ""),
        ("Rating: [[10]]", 10.0, ""),
        ("Rating: [[1]]\n", 1.0, ""),
        ("Rating: [[ 7 ]]", 7.0, ""),
        ("[[7]], that is [[7.0]]", 7.0, ""),  # the same rating twice
        ("Rating: [[11]]", None, "rating out of range"),
        ("Rating: [[0]]", None, "rating out of range"),
        ("Rating: [[0.5]]", None, "rating out of range"),
        ("Assistant A [[3]], assistant B [[4]]", None, "several ratings"),
        ("I would give it an 8 out of 10.", None, "no rating"),
        ("Rating: [8]", None, "no rating"),
        ("Rating: [[8/10]]", None, "no rating"),
        ("Rating: [[-3]]", None, "no rating"),
        ("Rating: [[rating]]", None, "no rating"),
        (" \n", None, "empty reply"),
    ],
)
def test_a_score_is_read_or_its_absence_explained(text: str, score: float | None, reason: str) -> None:
    assert score_of(text) == (score, reason)


def test_means_leave_out_what_is_not_scored_and_say_how_much() -> None:
    rows = [
        {"category": "writing", "reference": False, "score": 8.0, "reason": ""},
        {"category": "writing", "reference": False, "score": 5.0, "reason": ""},
        {"category": "math", "reference": True, "score": None, "reason": "no rating"},
        {"category": "coding", "reference": False, "score": 2.0, "reason": ""},
    ]
    rows = [row | {"prompt": "single-v1"} for row in rows]
    found = summarise(rows, questions=6)
    assert found.mean == 5.0 and found.error == pytest.approx(3.0 / 3**0.5)
    assert found.categories == {"writing": (6.5, 2, 0), "math": (None, 0, 1), "coding": (2.0, 1, 0)}
    assert (found.scored, found.unscored, found.unanswered, found.without_reference) == (3, 1, 2, 1)
    assert found.reasons == {"no rating": 1}
    text = judging.report(found)
    assert "mean 5.00 of 3 scores, standard error 1.73; 1 unscored" in text and "1 no rating" in text
    nothing = summarise([rows[2]])
    assert nothing.mean is None and nothing.error is None and "mean none of 0 scores" in judging.report(nothing)


# A judge on this machine


class Judge(ThreadingHTTPServer):
    """Speaks enough of the protocol; `script` says how it answers, one entry a request, the last for all others."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list = [(200, "Rating: [[7]]")]
        self.asked: list[dict] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        status, text = self.server.script[0] if len(self.server.script) == 1 else self.server.script.pop(0)
        sent = self.headers["Authorization"]
        if sent != f"Bearer {KEY}":
            status, text = 401, f"wrong key {sent}"
        if status == 200 and text is not None:
            reply = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
        else:
            reply = {"error": {"message": text}} if text else "<html>not this page</html>"
        data = (json.dumps(reply) if isinstance(reply, dict) else reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if isinstance(reply, dict) else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = Judge()
    thread = threading.Thread(target=judge.serve_forever, daemon=True)
    thread.start()
    yield judge
    judge.shutdown()
    judge.server_close()


def test_a_judge_is_asked_once_a_question_and_its_words_are_kept(folder: Path, tmp_path: Path, server: Judge) -> None:
    server.script = [(200, "Fine. [[8]]"), (200, "no number at all"), (200, f"Your key is {KEY}. [[6.5]]")]
    path, asked = tmp_path / "verdicts.jsonl", requests(load(announce=silent), ANSWERS)
    found = judge(asked, "grader", Endpoint("grader", server.url).ask, path, silent)
    assert [row["score"] for row in found] == [8.0, None, 6.5] and found[1]["reason"] == "no rating"
    assert found[1]["judgment"] == "no number at all"
    assert server.asked[0]["model"] == "grader" and server.asked[0]["temperature"] == 0
    assert server.asked[0]["messages"] == asked[0].messages
    assert KEY not in path.read_text() and "Your key is ***." in path.read_text()
    again = judge(asked, "grader", Endpoint("grader", server.url).ask, path, silent)
    assert again == found and len(server.asked) == 3  # the unscored one is not asked for again


def test_a_rate_limit_or_a_fault_of_the_server_is_outlasted(folder: Path, tmp_path: Path, server: Judge) -> None:
    server.script = [(429, "slow down"), (503, "busy"), (200, "[[7]]")]
    found = judge(
        requests(load(announce=silent), {81: ["x"]}), "g", Endpoint("g", server.url).ask, tmp_path / "v.jsonl", silent
    )
    assert [row["score"] for row in found] == [7.0] and len(server.asked) == 3


def test_a_fault_that_lasts_stops_and_the_same_call_goes_on_from_there(folder: Path, tmp_path: Path, server) -> None:
    path, asked = tmp_path / "v.jsonl", requests(load(announce=silent), ANSWERS)
    server.script = [(200, "[[7]]"), (500, "broken")]
    with pytest.raises(EndpointError, match=r"the endpoint failed \(500\)"):
        judge(asked, "g", Endpoint("g", server.url, retries=0).ask, path, silent)
    assert len(path.read_text().splitlines()) == 1
    server.script, lines = [(200, "[[9]]")], []
    found = judge(asked, "g", Endpoint("g", server.url).ask, path, lines.append)
    assert [row["score"] for row in found] == [7.0, 9.0, 9.0]
    assert [body["messages"][1]["content"][-9:] for body in server.asked].count("Dear all.") == 1
    assert lines == [f"judge: 1 of 3 judged before, see {path}"]


def test_a_changed_answer_or_another_judge_is_asked_about_again(folder: Path, tmp_path: Path) -> None:
    path, benchmark = tmp_path / "v.jsonl", load(announce=silent)
    replies = iter(["[[1]]", "[[2]]", "[[3]]"])
    judge(requests(benchmark, {81: ["old"]}), "g", lambda messages: next(replies), path, silent)
    judge(requests(benchmark, {81: ["old"]}), "other", lambda messages: next(replies), path, silent)
    new = judge(requests(benchmark, {81: ["new"]}), "g", lambda messages: next(replies), path, silent)
    assert new[0]["score"] == 3.0
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["judge"], row["score"]) for row in kept] == [("other", 2.0), ("g", 3.0)]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "Incorrect key", "refused the key in OPENAI_API_KEY (401)"),
        (403, "no", "refused the key in OPENAI_API_KEY (403)"),
        (404, "no such model", "knows no model 'g', or its URL is wrong (404)"),
        (200, None, "no chat completion; is the URL right?"),
        (400, f"bad temperature, {KEY}", "refused the request (400): "),
    ],
)
def test_a_mistake_of_the_user_stops_at_once_without_showing_the_key(
    folder: Path, tmp_path: Path, server: Judge, status: int, text: str | None, said: str
) -> None:
    server.script = [(status, text)]
    asked = requests(load(announce=silent), ANSWERS)
    with pytest.raises(EndpointError) as error:
        judge(asked, "g", Endpoint("g", server.url).ask, tmp_path / "v.jsonl", silent)
    assert said in str(error.value) and KEY not in str(error.value)
    assert len(server.asked) == 1 and not (tmp_path / "v.jsonl").exists()


def test_a_wrong_key_is_not_repeated_in_the_message(folder: Path, tmp_path: Path, server: Judge, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(EndpointError) as error:
        Endpoint("g", server.url).ask([{"role": "user", "content": "x"}])
    assert "OPENAI_API_KEY (401)" in str(error.value) and "sk-another" not in str(error.value)
    assert "sk-another" not in repr(vars(error.value)) and error.value.__suppress_context__


def test_one_refused_request_among_others_is_unscored(folder: Path, tmp_path: Path, server: Judge) -> None:
    server.script = [(200, "[[4]]"), (400, "content filter"), (200, "[[6]]")]
    asked = requests(load(announce=silent), ANSWERS)
    found = judge(asked, "g", Endpoint("g", server.url).ask, tmp_path / "v.jsonl", silent)
    assert [row["score"] for row in found] == [4.0, None, 6.0] and found[1]["reason"] == "refused"
    assert issubclass(Refused, EndpointError)


def test_an_endpoint_that_is_not_there_or_not_named(server: Judge, monkeypatch) -> None:
    nobody = Endpoint("g", "http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(EndpointError, match="cannot be reached"):
        nobody.ask([{"role": "user", "content": "x"}])
    with pytest.raises(EndpointError, match="'localhost:8000' is no URL"):
        Endpoint("g", "localhost:8000")
    with pytest.raises(EndpointError, match="a number is too small"):
        Endpoint("g", server.url, timeout=0)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EndpointError, match="no key: set OPENAI_API_KEY"):
        Endpoint("g", server.url)


def test_a_slow_endpoint_is_given_up(server: Judge, monkeypatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(Handler, "do_POST", lambda self: waiting.wait(5))
    with pytest.raises(EndpointError, match="did not answer in time"):
        Endpoint("g", server.url, timeout=0.3, retries=0).ask([{"role": "user", "content": "x"}])
    waiting.set()


def test_no_more_requests_a_minute_than_allowed(server: Judge, monkeypatch) -> None:
    slept = []
    monkeypatch.setattr(judging.time, "sleep", slept.append)
    endpoint = Endpoint("g", server.url, per_minute=30)
    for _ in range(3):
        endpoint.ask([{"role": "user", "content": "x"}])
    assert slept[0] == 0 and all(1.5 < seconds <= 2.0 for seconds in slept[1:])


# From the command line


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_a_dry_run_writes_the_prompts_and_asks_nobody(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(judging, "Endpoint", lambda *args, **kwargs: pytest.fail("the endpoint was asked"))
    answers, prompts = tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    write_answers(answers, "tiny", ANSWERS)
    code, out, _ = call(capsys, "judge", answers, "--dry-run", prompts)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert code == 0 and "3 prompts in" in out and "nobody was asked" in out and len(rows) == 3
    assert rows[1]["messages"][1]["content"].endswith("Q What is 2 + 2?\nA 4")
    assert (rows[1]["question_id"], rows[1]["prompt"], rows[1]["reference"]) == (111, "single-v1", False)


def test_the_command_judges_prints_and_writes_into_the_ledger(folder: Path, tmp_path: Path, capsys, server) -> None:
    whole(folder)
    server.script = [(200, "[[8]]"), (200, "none"), (200, "[[4]]")]
    answers, run = tmp_path / "predictions.jsonl", tmp_path / "run.json"
    write_answers(answers, "tiny", {key: ["x"] for key in range(81, 161)})
    run.write_text(json.dumps({"run": "tiny", "metric": "validation_loss", "metrics": {"validation_loss": 1.0}}))
    code, out, err = call(capsys, "judge", answers, "--judge", "g", "--url", server.url, "--record", run)
    assert code == 0 and KEY not in out + err
    mean = (8 + 78 * 4) / 79
    assert f"mean {mean:.2f} of 79 scores" in out and "1 unscored" in out
    record = json.loads(run.read_text())
    assert record["metrics"] == {"validation_loss": 1.0, "mt_bench": pytest.approx(mean)}
    assert record["judged"]["judge"] == "g" and record["judged"]["unscored"] == 1
    assert (tmp_path / "predictions.judged.jsonl").is_file()
    code, out, _ = call(capsys, "judge", answers, "--judge", "g", "--url", server.url, "--json")
    assert json.loads(out)["mean"] == pytest.approx(mean) and len(server.asked) == 80
    write_answers(answers, "another", {key: ["x"] for key in range(81, 161)})
    code, _, err = call(capsys, "judge", answers, "--judge", "g", "--url", server.url, "--record", run)
    assert code == 2 and "answers of model 'another', not of 'tiny'" in err and len(server.asked) == 80


def whole(folder: Path) -> None:
    """80 questions, of which 30 need a reference answer, and have one."""
    names = [name for name in mt_bench.CATEGORIES for _ in range(10)]
    rows = [{"question_id": key, "category": name, "turns": ["Why?", "How?"]} for key, name in enumerate(names, 81)]
    write(folder / "question.jsonl", rows)
    write_answers(folder / "reference_answer" / "gpt-4.jsonl", "gpt-4", {key: ["a", "b"] for key in range(81, 161)})


def test_a_mean_that_is_not_mt_benchs_stays_out_of_the_ledger(folder: Path, tmp_path: Path, capsys, server) -> None:
    whole(folder)
    run, text = tmp_path / "run.json", json.dumps({"run": "tiny", "metrics": {"validation_loss": 1.0}})
    run.write_text(text)
    complete = {key: ["x", "y"] for key in range(81, 161)}
    with pytest.raises(ValueError, match="4 of 80 questions are answered"):
        few = requests(load(announce=silent), {key: ["x"] for key in range(81, 85)})
        judging.refuse_incomparable(few)
    with pytest.raises(ValueError, match="report the first turn"):
        judging.refuse_incomparable(requests(load(announce=silent), complete, turn=2))
    judging.refuse_incomparable(requests(load(announce=silent), complete))
    (folder / "reference_answer" / "gpt-4.jsonl").unlink()
    with pytest.raises(ValueError, match="30 questions lack a reference answer"):
        judging.refuse_incomparable(requests(load(announce=silent), complete))
    (folder / "judge_prompts.jsonl").unlink()
    with pytest.raises(ValueError, match="judge_prompts.jsonl is missing"):
        judging.refuse_incomparable(requests(load(announce=silent), complete))
    answers = tmp_path / "answers.jsonl"
    write_answers(answers, "tiny", complete)
    code, _, err = call(capsys, "judge", answers, "--judge", "g", "--url", server.url, "--record", run)
    assert code == 2 and "judge without --record" in err and not server.asked and run.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the judge with --judge"),
        (["--judge", "g", "--turn", "3"], "--turn"),
        (["--judge", "g", "--url", "nowhere"], "'nowhere' is no URL"),
        (["--judge", "g", "--record", "absent.json"], "absent.json is no run of the ledger"),
    ],
)
def test_mistakes_end_in_one_line(
    folder: Path, tmp_path: Path, capsys, server, arguments: list[str], said: str
) -> None:
    answers = tmp_path / "answers.jsonl"
    write_answers(answers, "tiny", ANSWERS)
    url = [] if "--url" in arguments else ["--url", server.url]
    code, _, err = call(capsys, "judge", answers, *url, *arguments)
    assert code == 2 and err.count("\n") == 1 and said in err
    code, _, err = call(capsys, "judge", tmp_path / "absent.jsonl", "--judge", "g")
    assert code == 2 and "no such file of answers" in err


def test_a_run_without_a_score_is_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    whole(folder)
    asked = requests(load(announce=silent), {key: ["x"] for key in range(81, 161)})
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"run": "tiny", "metrics": {}}))
    with pytest.raises(ValueError, match="nothing was scored"):
        judging.add_to_record(run, asked, summarise([]), "g")
    assert json.loads(run.read_text()) == {"run": "tiny", "metrics": {}}


def test_help_shows_an_example(capsys) -> None:
    code, out, _ = call(capsys, "judge", "--help")
    assert code == 0 and "vbank judge" in out.partition("Example:")[2] and "--dry-run" in out
