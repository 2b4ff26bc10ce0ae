"""Alpaca's prompt, the chat form, the split, the loss on the answer alone, and rows that cannot be used."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from local_data import silent, write
from tiny_models import llama

from vbank.recipes import TaskSettings
from vbank.tasks import find, instruct, mt_bench, scratch
from vbank.tasks.instruct import ALPACA, conversation, generated, prompt
from vbank.tasks.sources import DataError

ROWS = [{"instruction": f"Say {i}.", "input": "" if i % 2 else "text", "output": f"{i}"} for i in range(40)]
SEEDS = [
    {"id": f"seed_task_{i}", "instruction": f"Name {i}.", "instances": [{"input": "", "output": f"answer {i}"}]}
    for i in range(10)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    (tmp_path / "alpaca").mkdir()
    write(tmp_path / "mt_bench" / "question.jsonl", [{"question_id": 81, "category": "stem", "turns": ["Why?"]}])
    return tmp_path / "alpaca"


@pytest.fixture
def no_folder(no_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor questions of the Hub."""
    monkeypatch.setattr(mt_bench, "hub_rows", lambda path: None)


@pytest.fixture(scope="module")
def tokenizer():
    return scratch.bpe("llama", [prompt("Say it.", "text"), "one two three 1 2 3"], 400, ["<|user|>", "<|assistant|>"])


def test_the_prompt_is_alpacas_with_and_without_input() -> None:
    """The two templates of Taori et al. (2023), typed here a second time."""
    assert prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### "
        "Response:"
    )
    assert prompt("Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Response:"
    )
    assert prompt("Use {braces}.", "{input}").count("{") == 2


def test_the_chat_form_marks_who_speaks_and_where_each_ends() -> None:
    assert prompt("Add.", "1 2", "chat") == "<|user|>\nAdd.\n\n1 2</s>\n<|assistant|>\n"
    assert conversation(["a", "b"], ["x"], "chat", "<end>") == (
        "<|user|>\na<end>\n<|assistant|>\nx<end>\n<|user|>\nb<end>\n<|assistant|>\n"
    )
    two = conversation(["a", "b"], ["x"])
    assert two.startswith(prompt("a") + "x</s>\n") and two.endswith("### Instruction:\nb\n\n### Response:")
    assert two.count("Below is an instruction") == 1


def test_a_prompt_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'alpaca'"):
        prompt("Add.", style="alpca")
    for turns, answers in (([], []), (["a"], ["x"]), (["a", "b"], [])):
        with pytest.raises(DataError, match="one turn more than answers"):
            conversation(turns, answers)


@pytest.mark.parametrize("style", ["alpaca", "chat"])
def test_the_loss_is_on_the_answer_and_the_end_of_text_alone(style: str, tokenizer) -> None:
    rows = [{"instruction": "Say it.", "input": "text", "output": "one two three"}]
    (row,) = ALPACA.encode(rows, tokenizer, TaskSettings("alpaca", prompt=style, max_length=300))
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == "one two three</s>" and learned[-1] == tokenizer.eos_token_id
    read = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(read[1:]) == prompt("Say it.", "text", style) and read[0] == tokenizer.bos_token_id
    assert row["labels"][: -len(learned)] == [-100] * len(read)
    assert row["labels"][-len(learned) :] == learned


def test_the_loss_of_a_batch_is_the_mean_over_the_answers_tokens(tokenizer) -> None:
    """By hand: the cross-entropy of each answer token, whatever the padding and the prompts' lengths."""
    rows = [ROWS[0] | {"output": "one"}, ROWS[1] | {"instruction": "Say one two three.", "output": "two three 1"}]
    coded = ALPACA.encode(rows, tokenizer, TaskSettings("alpaca", max_length=300))
    batch = ALPACA.collator(tokenizer)(coded)
    model = llama(vocab_size=len(tokenizer), max_position_embeddings=400).eval()
    with torch.no_grad():
        loss = model(**batch).loss
        losses = []
        for row in coded:
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            losses += [-logits[i - 1, t] for i, t in enumerate(row["labels"]) if t != -100]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_a_prompt_without_room_for_its_answer_is_left_out_and_counted(tokenizer, capsys) -> None:
    rows = [ROWS[0], {"instruction": "one two three " * 200, "input": "", "output": "x"}]
    assert len(ALPACA.encode(rows, tokenizer, TaskSettings("alpaca", max_length=300))) == 1
    assert "left out 1 of 2 rows" in capsys.readouterr().out


def test_a_train_file_is_split_by_a_fixed_seed(folder: Path) -> None:
    write(folder / "train.jsonl", ROWS)
    lines: list[str] = []
    data = ALPACA.load(announce=lines.append)
    assert lines[0] == "data: alpaca from local folder alpaca in VBANK_DATA: 32 train, 8 validation"
    assert data == ALPACA.load(announce=silent) and data.fingerprint == ALPACA.load(announce=silent).fingerprint
    assert sorted(map(str, data.train + data.validation)) == sorted(map(str, ROWS))
    assert data.validation != ROWS[-8:]
    assert find("alpaca") is ALPACA


def test_seed_tasks_become_rows_one_an_instance(folder: Path) -> None:
    two = SEEDS[0] | {"instances": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}
    write(folder / "seed_tasks.jsonl", [two, *SEEDS[1:]])
    data = ALPACA.load(announce=silent)
    assert len(data.train) == 9 and len(data.validation) == 2 and "seed tasks" in data.source
    assert {"instruction": "Name 0.", "input": "c", "output": "d"} in data.train + data.validation


def test_a_fault_of_mt_bench_and_a_stand_in_for_it_show_before_the_training(folder: Path, monkeypatch) -> None:
    write(folder / "train.jsonl", ROWS)
    lines: list[str] = []
    ALPACA.load(announce=lines.append)
    assert lines[1].endswith("1 questions, a judge's prompt of our own (a stand-in)")
    (folder.parent / "mt_bench" / "question.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"question.jsonl:1: field 'turns'"):
        ALPACA.load(announce=silent)


def test_an_empty_output_is_left_out_of_the_seed_tasks_too(folder: Path) -> None:
    blank = SEEDS[0] | {"instances": [{"input": "a", "output": ""}]}
    write(folder / "seed_tasks.jsonl", [blank, *SEEDS[1:]])
    lines: list[str] = []
    data = ALPACA.load(announce=lines.append)
    assert len(data.train + data.validation) == 9 and lines[0] == "left out 1 of 10 rows: empty output"


def test_the_hub_comes_next_and_a_row_without_output_is_left_out(no_folder, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(instruct, "hub_rows", lambda path: asked.append(path) or [*ROWS, ROWS[0] | {"output": " "}])
    lines: list[str] = []
    data = ALPACA.load(announce=lines.append)
    assert asked == ["yahma/alpaca-cleaned"] and len(data.train) + len(data.validation) == 40
    assert lines[0] == "left out 1 of 41 rows: empty output" and "Hugging Face Hub" in lines[1]


def test_a_thousand_and_24_rows_are_held_out_of_many(no_folder, monkeypatch) -> None:
    many = [ROWS[0] | {"instruction": f"{i}"} for i in range(6000)]
    monkeypatch.setattr(instruct, "hub_rows", lambda path: many)
    assert len(ALPACA.load(announce=silent).validation) == 1024  # VB-LoRA's scripts: eval_dataset_size


def test_the_last_resort_is_labelled_and_has_right_answers(no_folder, monkeypatch) -> None:
    monkeypatch.setattr(instruct, "hub_rows", lambda path: None)
    data = ALPACA.load(announce=silent)
    assert data.source == "generated instructions (a stand-in, not Alpaca)"
    assert generated() == generated() != generated(seed=1)
    rows = data.train + data.validation
    assert len(rows) == 600 and len({row["instruction"] + row["input"] for row in rows}) == 600
    for row in rows:
        if row["instruction"].startswith("Reverse"):
            assert row["output"].split() == row["input"].split()[::-1]
        if row["instruction"].startswith("Put"):
            assert row["output"].split() == sorted(row["input"].split())


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("train.jsonl", ['{"instruction": "a", "output": '], "train.jsonl:1: not valid JSON"),
        ("train.jsonl", ["[1]"], "expected an object"),
        ("train.jsonl", [""], "no rows"),
        ("train.jsonl", ['{"instruction": "a", "input": ""}'], "train.jsonl:1: field 'output' is missing"),
        ("train.jsonl", ['{"instruction": "", "output": "a"}'], "'instruction' must be a non-empty string"),
        ("train.jsonl", ['{"instruction": "a", "input": null, "output": "b"}'], "'input' must be"),
        ("train.jsonl", ['{"instruction": "a", "output": ""}'], "no row with an output"),
        ("train.jsonl", ['{"instruction": "a", "output": "b"}'], "one row cannot be split"),
        ("seed_tasks.jsonl", ['{"instruction": "a"}'], "seed_tasks.jsonl:1: field 'instances' must be a list"),
        ("seed_tasks.jsonl", ['{"instruction": "a", "instances": ["b"]}'], "list of objects"),
        ("seed_tasks.jsonl", ['{"instances": [{"input": "", "output": "b"}]}'], "field 'instruction'"),
        ("other.jsonl", ["{}"], "neither train.jsonl nor seed_tasks.jsonl"),
    ],
)
def test_rows_that_cannot_be_used_are_named(folder: Path, name: str, lines: list[str], said: str) -> None:
    (folder / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as error:
        ALPACA.load(announce=silent)
    assert said in str(error.value)


def test_sources_that_are_absent_or_unknown(no_folder, monkeypatch) -> None:
    monkeypatch.setattr(instruct, "hub_rows", lambda path: None)
    with pytest.raises(DataError, match="set VBANK_DATA to a folder with alpaca"):
        ALPACA.load("local", silent)
    with pytest.raises(DataError, match="the Hub does not answer"):
        ALPACA.load("hub", silent)
    with pytest.raises(DataError, match="did you mean 'local'"):
        ALPACA.load("locale", silent)


def test_the_hub_gives_rows_as_they_are_or_nothing(monkeypatch) -> None:
    for found in ([{"turns": ["a"], "input": ""}], None):
        monkeypatch.setattr(instruct, "hub_splits", lambda path, found=found: found and {"train": found})
        assert instruct.hub_rows("a/b") == found
    monkeypatch.setattr(instruct, "hub_splits", lambda path: {"test": []})
    with pytest.raises(DataError, match="a/b: split 'train' is missing; the data set has 'test'"):
        instruct.hub_rows("a/b")


def test_the_small_llama_reads_no_line_of_alpaca(folder: Path, monkeypatch) -> None:
    write(folder / "train.jsonl", ROWS)
    write(folder.parent / "gsm8k" / "train.jsonl", [{"question": "How many?", "answer": "Two.\n#### 2"}])
    assert instruct.other_texts() == ["How many?\nTwo.\n#### 2"]
    monkeypatch.delenv("VBANK_DATA")
    stand_in = instruct.other_texts()
    assert len(stand_in) == 3000 and not set(stand_in) & {"\n".join(row.values()) for row in ROWS}


def test_after_training_the_model_answers_mt_bench(tmp_path: Path, no_folder, tokenizer) -> None:
    model = llama(vocab_size=len(tokenizer), max_position_embeddings=600).eval()
    settings = TaskSettings("alpaca", generate=3, max_new_tokens=4)
    found = ALPACA.measure(model, tokenizer, ROWS, settings, tmp_path / "ab12-seed0")
    assert found["mt_bench_answers"] == 3 and set(found) == {"mt_bench_answers", "mt_bench_words"}
    answers = mt_bench.read_answers(tmp_path / "ab12-seed0" / "predictions.jsonl", "ab12-seed0")
    assert list(answers) == [1, 2, 3] and all(len(turns) == 1 for turns in answers.values())


def test_the_model_comes_through_the_weights(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(instruct, "load_generator", lambda *args, **sizes: asked.append((args, sizes)) or ("m", "t"))
    settings = SimpleNamespace(name="scratch-llama")
    assert ALPACA.model(settings) == ("m", "t")
    assert asked == [((settings, instruct.other_texts), instruct.SCRATCH)]
