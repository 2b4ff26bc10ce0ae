"""MetaMathQA, GSM8K and MATH: where rows come from, what is trained on, and how answers are scored."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from local_data import silent, write

from vbank.recipes import ModelSettings, TaskSettings
from vbank.tasks import find, mathematics, sources
from vbank.tasks.generation import IGNORED
from vbank.tasks.mathematics import METAMATH, PROMPT, answer_of, from_gsm8k, from_math, generated, shares, verdict
from vbank.tasks.mathematics_published import (
    hendrycks_equal,
    metamath_gsm8k,
    metamath_math,
    metamath_number,
    vb_lora_gsm8k,
)
from vbank.tasks.mathematics_scoring import judge
from vbank.tasks.sources import DataError

DATA = os.environ.get("VBANK_DATA")
local_gsm8k = pytest.mark.skipif(not DATA or not Path(DATA, "gsm8k/test.jsonl").is_file(), reason="no GSM8K here")


def gsm8k(number: int) -> dict[str, str]:
    steps = f"There are {number}+1=<<{number}+1={number + 1}>>{number + 1} of them.\n#### {number + 1}"
    return {"question": f"How many are {number} and 1?", "answer": steps}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VBANK_DATA folder with GSM8K alone, and a Hub that has nothing."""
    write(tmp_path / "gsm8k/train.jsonl", [gsm8k(i) for i in range(4)])
    write(tmp_path / "gsm8k/test.jsonl", [gsm8k(i) for i in range(10, 13)])
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    monkeypatch.setattr(mathematics, "load_hub", lambda *args: None)
    return tmp_path


# Where rows come from


def test_gsm8k_stands_in_for_metamathqa_and_the_source_says_so(folder: Path) -> None:
    lines: list[str] = []
    data = METAMATH.load(announce=lines.append)
    assert "stand in for MetaMathQA" in data.source and "not on MATH" in data.source
    assert str(folder) not in data.source and lines == [f"data: metamath from {data.source}: 4 train, 3 test"]
    assert data.train[2] == {
        "query": "How many are 2 and 1?",
        "response": "There are 2+1=3 of them.\n#### 3\nThe answer is: 3",
        "benchmark": "gsm8k",
    }
    assert data.validation[0]["answer"] == "11"
    assert find("metamath") is METAMATH and METAMATH.metric == "gsm8k"


def test_metamathqa_and_math_are_taken_where_they_are(folder: Path) -> None:
    write(folder / "metamath/train.jsonl", [{"query": "q", "response": "r\nThe answer is: 5", "type": "GSM_AnsAug"}])
    write(folder / "math/test.jsonl", [{"problem": "p", "solution": r"so $\boxed{\frac{1}{2}}$."}])
    data = METAMATH.load(announce=silent)
    assert data.source.startswith("local folder metamath") and "and MATH" in data.source
    assert [row["benchmark"] for row in data.validation] == ["gsm8k"] * 3 + ["math"]
    assert data.validation[-1]["answer"] == r"\frac{1}{2}"
    assert answer_of(data.train[0]) == "5"


def test_the_hub_is_asked_for_the_real_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)
    asked = []

    def hub(path, subset, rename, columns, labels, splits):
        asked.append((path, subset, columns, splits))
        rows = {
            "meta-math/MetaMathQA": {"query": "q", "response": "The answer is: 1", "type": "MATH_FOBAR"},
            "openai/gsm8k": gsm8k(1),
            "EleutherAI/hendrycks_math": {"problem": "p", "solution": r"\boxed{2}"},
        }
        return {split: [rows[path]] for split in splits}

    monkeypatch.setattr(mathematics, "load_hub", hub)
    data = METAMATH.load("hub", announce=silent)
    assert asked[:2] == [
        ("meta-math/MetaMathQA", None, ("query", "response", "type"), ("train",)),
        ("openai/gsm8k", "main", ("question", "answer"), ("test",)),
    ]
    assert [subset for _, subset, *_ in asked[2:]] == list(mathematics.MATH_SUBJECTS)
    assert data.train[0]["benchmark"] == "math" and len(data.validation) == 8
    assert "Hub meta-math/MetaMathQA" in data.source and "MATH of EleutherAI/hendrycks_math" in data.source


def test_the_last_resort_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)
    monkeypatch.setattr(mathematics, "load_hub", lambda *args: None)
    data = METAMATH.load(announce=silent)
    assert data.source.startswith("generated") and data.fingerprint == generated().fingerprint
    assert len({row["query"] for row in data.train + data.validation}) == len(data.train) + len(data.validation)
    assert all(judge(row["response"], row["answer"]) for row in data.validation)
    for source, words in (("local", "VBANK_DATA"), ("hub", "does not answer")):
        with pytest.raises(DataError, match=words):
            METAMATH.load(source, announce=silent)
    with pytest.raises(DataError, match="did you mean 'local'"):
        METAMATH.load("locl", announce=silent)


def test_half_of_the_data_is_not_passed_over(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mathematics, "load_hub", lambda *args: None)
    alone = tmp_path_factory.mktemp("metamath-alone")
    write(alone / "metamath/train.jsonl", [{"query": "q", "response": "The answer is: 5", "type": "GSM_AnsAug"}])
    monkeypatch.setenv("VBANK_DATA", str(alone))
    for source in ("any", "local"):
        with pytest.raises(DataError, match="folder metamath in VBANK_DATA was found, but not gsm8k/test.jsonl"):
            METAMATH.load(source, announce=silent)
    monkeypatch.delenv("VBANK_DATA")
    monkeypatch.setattr(mathematics, "gsm8k_rows", lambda source: ([from_gsm8k(gsm8k(1))], "GSM8K of openai/gsm8k"))
    with pytest.raises(DataError, match="GSM8K of openai/gsm8k was found, but not metamath/train.jsonl"):
        METAMATH.load(announce=silent)


def test_corrupt_data_is_named(folder: Path) -> None:
    (folder / "gsm8k/test.jsonl").write_text("")
    with pytest.raises(DataError, match="test.jsonl: no rows"):
        METAMATH.load(announce=silent)
    write(folder / "gsm8k/test.jsonl", [{"question": "q", "answer": "no mark"}])
    with pytest.raises(DataError, match="expected '#### ' and a number"):
        METAMATH.load(announce=silent)
    write(folder / "gsm8k/test.jsonl", [{"question": "q"}])
    with pytest.raises(DataError, match="field 'answer' is missing"):
        METAMATH.load(announce=silent)
    (folder / "gsm8k/test.jsonl").unlink()
    with pytest.raises(DataError, match="test.jsonl is missing"):
        METAMATH.load(announce=silent)
    with pytest.raises(DataError, match="no .boxed"):
        from_math({"problem": "p", "solution": "five"})


def test_math_verify_is_missed_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbank.tasks.mathematics_symbolic.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="math-verify"):
        METAMATH.load(announce=silent)


# Prompt, training rows, scoring


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A Llama of one layer that has seen a few generated problems, and its tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VBANK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("VBANK_DATA", raising=False)
        patch.setattr(mathematics, "load_hub", lambda *args: None)
        patch.setattr(mathematics, "SMALL", {"vocabulary": 400, "layers": 1, "hidden": 32, "steps": 2, "context": 512})
        return METAMATH.model(ModelSettings(name="scratch-llama", head=[]))


def test_the_prompt_is_metamaths() -> None:
    assert PROMPT.startswith("Below is an instruction that describes a task. ")
    assert PROMPT.endswith("### Instruction:\n{}\n\n### Response: Let's think step by step.")


def test_the_loss_is_on_the_response_alone(small: tuple) -> None:
    _, tokenizer = small
    row = generated().train[0]
    encoded = METAMATH.encode([row], tokenizer, TaskSettings(name="metamath", max_length=512))[0]
    answer = [token for token in encoded["labels"] if token != IGNORED]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == row["response"]
    assert answer[-1] == tokenizer.eos_token_id
    batch = METAMATH.collator(tokenizer)([encoded, {k: v[:9] for k, v in encoded.items()}])
    assert batch["labels"].shape == batch["input_ids"].shape and (batch["labels"][1, 9:] == IGNORED).all()


def test_measuring_writes_every_verdict(small: tuple, tmp_path: Path) -> None:
    model, tokenizer = small
    rows = generated().validation
    math = from_math({"problem": "What is half of 1?", "solution": r"It is $\boxed{\frac12}$."})
    settings = TaskSettings(name="metamath", max_length=512, generate=3, max_new_tokens=4)
    result = METAMATH.measure(model, tokenizer, [*rows, math], settings, tmp_path)
    assert set(result) == {f"{name}{part}" for name in ("gsm8k", "math") for part in ("", "_published", "_format")}
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["gsm8k"] * 3 + ["math"]
    assert lines[0]["query"] == rows[0]["query"] and lines[0]["reference"] == rows[0]["answer"]


def test_a_killed_measurement_goes_on(small: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = small
    monkeypatch.setattr(mathematics, "CHUNK", 2)
    rows, asked = generated().validation, []
    settings = TaskSettings(name="metamath", max_length=512, generate=5, max_new_tokens=3)
    whole = METAMATH.measure(model, tokenizer, rows, settings, tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 5
    (tmp_path / "predictions.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # killed in the second chunk
    real = mathematics.generate
    monkeypatch.setattr(mathematics, "generate", lambda *args, **kw: asked.append(args[2]) or real(*args, **kw))
    assert METAMATH.measure(model, tokenizer, rows, settings, tmp_path) == whole
    assert [len(prompts) for prompts in asked] == [2, 1]
    assert (tmp_path / "predictions.jsonl").read_text() == "".join(lines)
    assert METAMATH.measure(model, tokenizer, rows, settings, tmp_path) == whole and len(asked) == 2
    other = METAMATH.measure(model, tokenizer, rows[5:], settings, tmp_path)  # other problems: from the start
    assert set(other) == set(whole) and len(asked) == 5


def test_a_verdict_names_the_rule_and_stops_before_a_new_problem() -> None:
    row = from_gsm8k(gsm8k(6))
    good = verdict("6+1=7.\n#### 7\nThe answer is: 7\n\n### Instruction:\nThe answer is: 9", row)
    assert good["right"] and good["published"] and good["format"] and good["rule"] == "the answer is"
    plain = verdict("That makes 7.", row)
    assert plain["right"] and not plain["published"] and not plain["format"] and plain["rule"] == "last number"
    silence = verdict("", row)
    assert not silence["right"] and silence["answer"] is None
    assert shares([good, plain, silence]) == {"gsm8k": 2 / 3, "gsm8k_published": 1 / 3, "gsm8k_format": 1 / 3}


# The scorers of published tables


def test_metamaths_reading_of_an_answer() -> None:
    cases = {"18": 18, "$18 in all": 18, "17.6": 18, "1,234": 1234, "1,234,567": 1234, "x": None, "1/2": 0, "7/0": 7}
    for text, value in cases.items():
        assert metamath_number(f"The answer is: {text}") == value, text
    assert metamath_number("The answer is 18") is None  # without the colon
    assert metamath_gsm8k("The answer is: 18", "18") and not metamath_gsm8k("The answer is: 1800", "18")


def test_the_scorer_of_table_4_forgives_a_factor_of_a_hundred() -> None:
    for text, right in (("18", True), ("1800", True), ("17.6", True), ("180", False), ("19", False)):
        assert vb_lora_gsm8k(f"The answer is: {text}", "18") is right
    assert vb_lora_gsm8k("The answer is: 5", "500") and not judge("The answer is: 5", "500")
    assert vb_lora_gsm8k("The answer is: 99999", "100000") and not judge("The answer is: 99999", "100000")
    assert not vb_lora_gsm8k("#### 18", "18")


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        (r"\frac12", r"\frac{1}{2}", True),
        (r"\frac1{72}", r"\frac{1}{72}", True),
        ("1/2", r"\dfrac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\sqrt3", r"\sqrt{3}", True),
        ("x = 5", "5", True),
        (r"18\text{ cm}", "18", True),
        (r"90^\circ", "90", True),
        (r"\left(1, 2\right)", "(1,2)", True),
        (r"50\%", "50", True),
        (".5", "0.5", True),
        (r"2\sqrt{3}", r"\sqrt{12}", False),
        ("0.25", r"\frac{1}{4}", False),
        ("2,1", "1,2", False),
    ],
)
def test_hendrycks_equality_of_strings(answer: str, reference: str, same: bool) -> None:
    assert hendrycks_equal(answer, reference) is same
    assert metamath_math(f"So.\nThe answer is: {answer}.\n", reference) is same


# GSM8K itself

FORMS = {
    "as MetaMathQA writes": "So that makes {0}.\n#### {0}\nThe answer is: {0}",
    "as GSM8K writes": "First 3, then 4.\n#### {0}",
    "boxed": r"Since 3 < 4, the total is $\boxed{{{0}}}$.",
    "a sentence": "After 2 steps she has ${0} in all.",
    "with commas and decimals": "**The answer is ${1:,}.00.**",
    "with a unit": r"The answer is: ${1:,}\text{{ apples}}$",
    "named": "The answer is: $x = {0}$.",
}


@local_gsm8k
@pytest.mark.parametrize("form", FORMS)
def test_all_of_gsm8ks_answers_are_right_in_every_form_and_wrong_when_shuffled(form: str) -> None:
    rows = METAMATH.load("local", announce=silent).validation
    answers = [row["answer"] for row in rows]
    texts = [FORMS[form].format(answer, int(answer)) for answer in answers]
    assert sum(judge(text, answer) for text, answer in zip(texts, answers, strict=True)) == len(rows) == 1319
    order = random.Random(0).sample(range(len(rows)), len(rows))
    shuffled = [answers[i] for i in order]
    chance = sum(one == other for one, other in zip(answers, shuffled, strict=True))
    assert sum(judge(text, answer) for text, answer in zip(texts, shuffled, strict=True)) == chance
    # What coincidence alone would give: the chance that two answers drawn at random are equal.
    expected = sum(n * n for n in Counter(answers).values()) / len(answers)
    assert abs(chance - expected) < 5 * expected**0.5


@local_gsm8k
def test_table_4s_scorer_passes_more_of_the_shuffled_answers() -> None:
    rows = METAMATH.load("local", announce=silent).validation
    answers = [row["answer"] for row in rows]
    texts = [row["response"] for row in rows]
    assert all(vb_lora_gsm8k(text, answer) for text, answer in zip(texts, answers, strict=True))
    shuffled = random.Random(0).sample(answers, len(answers))
    ours, theirs = (
        sum(scorer(text, answer) for text, answer in zip(texts, shuffled, strict=True))
        for scorer in (judge, vb_lora_gsm8k)
    )
    assert theirs > ours


def test_rows_of_the_model_and_of_scoring_are_the_same(small: tuple) -> None:
    model, tokenizer = small
    assert model.config.num_key_value_heads <= model.config.num_attention_heads
    ids = tokenizer(PROMPT.format("How many?"), return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_offline_the_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)
    monkeypatch.setattr(sources, "offline", lambda: False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    assert METAMATH.load(announce=silent).source.startswith("generated")
