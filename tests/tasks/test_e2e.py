"""The task E2E: where its rows come from, how they are split, prompted, encoded and measured."""

import json
import types

import pytest
import torch

from vbank import tasks
from vbank.recipes import ModelSettings, TaskSettings
from vbank.tasks import e2e, e2e_metrics, sources
from vbank.tasks.base import hold_out
from vbank.tasks.scratch import generator
from vbank.tasks.sources import DataError

MEANING = "name[Blue Spice], eatType[coffee shop], customer rating[5 out of 5], familyFriendly[no]"


@pytest.fixture
def rows():
    return e2e.invented(meanings=20)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Writes splits into a VBANK_DATA of its own."""

    def write(**splits):
        folder = tmp_path / "e2e"
        folder.mkdir(exist_ok=True)
        for name, rows in splits.items():
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return folder

    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return write


def meanings(part):
    return set(e2e.by_meaning(part))


def test_attributes_and_the_line_that_the_model_sees():
    assert e2e.attributes(MEANING)[:2] == [("name", "Blue Spice"), ("eatType", "coffee shop")]
    line = "name : Blue Spice | Type : coffee shop | customer rating : 5 out of 5 | family friendly : no"
    assert e2e.linearise(MEANING) == line
    assert e2e.prompt(MEANING, types.SimpleNamespace(bos_token="<|endoftext|>")) == line + "<|endoftext|>"
    assert e2e.prompt(MEANING, types.SimpleNamespace(bos_token=None)) == line + "\n"


@pytest.mark.parametrize("text", ["Blue Spice", "name[Blue Spice", "name[a] and food[b]", "", "name[a], "])
def test_a_meaning_in_another_notation(text):
    with pytest.raises(DataError, match=r"attribute\[value\]"):
        e2e.attributes(text)


def test_no_meaning_is_in_both_parts(rows):
    first, second = e2e.split_by_meaning(rows)
    assert len(first) + len(second) == len(rows) and len(meanings(second)) == 4
    assert not meanings(first) & meanings(second)
    assert all(len(texts) == 3 for texts in e2e.by_meaning(second).values())  # with all of their references
    assert e2e.split_by_meaning(rows) == (first, second)
    with pytest.raises(DataError, match="4 meanings are too few"):
        e2e.split_by_meaning(rows[:12])


def test_with_the_training_set_the_test_set_is_measured_on(local, rows):
    local(train=rows[:45], test=rows[45:], validation=rows[:3])
    said = []
    data = tasks.find("e2e").load(announce=said.append)
    assert (data.train, data.validation) == (rows[:45], rows[45:])
    assert "local folder e2e" in data.source and "test set" in data.source
    assert "45 train rows of 15 meanings, 15 validation rows of 5" in said[0]


def test_without_it_the_dev_set_is_split_and_the_source_says_so(local, rows):
    local(validation=rows)
    data = tasks.find("e2e").load("local", announce=None)
    assert (data.train, data.validation) == e2e.split_by_meaning(rows)
    assert "dev set split by meaning" in data.source


def test_generated_rows_are_labelled(local):
    data = tasks.find("e2e").load(announce=None)
    assert data.source.startswith("generated")
    assert not meanings(data.train) & meanings(data.validation)
    assert data.fingerprint == tasks.find("e2e").load("generated", announce=None).fingerprint


def test_bad_sources(local, rows):
    with pytest.raises(DataError, match="did you mean 'local'"):
        tasks.find("e2e").load("locl", announce=None)
    with pytest.raises(DataError, match="set VBANK_DATA to a folder with e2e"):
        tasks.find("e2e").load("local", announce=None)
    folder = local(train=rows)
    with pytest.raises(DataError, match=r"test.jsonl is missing"):
        tasks.find("e2e").load(announce=None)
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"validation.jsonl is missing"):
        tasks.find("e2e").load(announce=None)
    local(validation=[{"meaning_representation": MEANING}])
    with pytest.raises(DataError, match=r"validation.jsonl:1: field 'human_reference' is missing"):
        tasks.find("e2e").load(announce=None)
    local(validation=[])
    with pytest.raises(DataError, match="no rows"):
        tasks.find("e2e").load(announce=None)


def test_the_hub_is_read_from_its_parquet_branch(monkeypatch, rows):
    asked = {}

    def load_dataset(path, name, **how):
        asked.update(how, path=path, name=name)
        return {"train": rows[:45], "validation": rows[:3], "test": rows[45:]}

    import datasets

    monkeypatch.delenv("VBANK_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the cache alone, which is the function above
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = tasks.find("e2e").load("hub", announce=None)
    assert asked == {"path": "tuetschek/e2e_nlg", "name": None, "revision": "refs/convert/parquet"}
    assert (data.train, data.validation) == (rows[:45], rows[45:]) and "test set" in data.source
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **how: {"train": rows})
    with pytest.raises(DataError, match="split 'test' is missing"):
        tasks.find("e2e").load("hub", announce=None)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **how: {"train": [{"text": "a"}], "test": rows})
    with pytest.raises(DataError, match="train row 1: field 'meaning_representation' is missing"):
        tasks.find("e2e").load("hub", announce=None)

    def refused(path, name, **how):
        raise datasets.exceptions.DatasetNotFoundError("is a gated dataset on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    with pytest.raises(DataError, match="accept its terms"):  # and not made-up restaurants in its place
        tasks.find("e2e").load("any", announce=None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GPT-2 of a few steps."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VBANK_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    texts = [
        f"{e2e.linearise(r['meaning_representation'])}<|endoftext|> {r['human_reference']}" for r in e2e.invented(40)
    ]
    size = {"vocabulary": 400, "hidden": 32, "layers": 1, "context": 128}
    folder = generator("gpt2", texts, steps=3, announce=lambda line: None, **size)
    task = tasks.find("e2e")
    yield task, *task.model(ModelSettings(str(folder)))
    patch.undo()


def test_loss_is_on_the_sentence_and_its_end(tiny, rows):
    task, _, tokenizer = tiny
    coded = task.encode(rows[:4], tokenizer, TaskSettings("e2e", max_length=128))
    for row, one in zip(rows, coded, strict=False):
        answer = [token for token in one["labels"] if token != -100]
        assert tokenizer.decode(answer) == f" {row['human_reference']}<|endoftext|>"
        before = tokenizer.decode(one["input_ids"][: -len(answer)])
        assert before == e2e.prompt(row["meaning_representation"], tokenizer)
    batch = task.collator(tokenizer)(coded)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    with pytest.raises(DataError, match="max_length 8"):
        task.encode(rows[:1], tokenizer, TaskSettings("e2e", max_length=8))


def test_measure_generates_once_a_meaning_and_keeps_the_predictions(tiny, rows, tmp_path, monkeypatch):
    task, model, tokenizer = tiny
    monkeypatch.setattr(e2e_metrics.shutil, "which", lambda name: None)  # METEOR has its own tests
    settings = TaskSettings("e2e", generate=3, max_new_tokens=8, num_beams=2, no_repeat_ngram_size=3)
    scores = task.measure(model, tokenizer, rows, settings, tmp_path)
    assert set(scores) == {"bleu", "nist"} and task.metric in scores
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["meaning_representation"] for line in lines] == list(e2e.by_meaning(rows))[:3]
    assert all(len(line["references"]) == 3 for line in lines)
    assert [line["prediction"] for line in lines] == e2e.speak(
        model, tokenizer, [line["meaning_representation"] for line in lines], settings
    )


def test_the_scratch_model_learns_from_training_rows_in_the_other_notation(monkeypatch, local, rows):
    local(validation=rows)
    train, validation = e2e.split_by_meaning(rows)
    texts = e2e.first_texts()
    assert len(texts) == len(train) and all("eatType[" in text and "<|endoftext|> " in text for text in texts)
    assert not any(text.startswith(f"{meaning}<") for text in texts for meaning in meanings(validation))


def test_a_holdout_of_training_rows_is_allowed(local, rows):
    local(validation=rows)
    data = hold_out(tasks.find("e2e").load(announce=None), train_size=20, holdout=4)
    assert (len(data.train), len(data.validation)) == (16, 4)


def test_the_task_is_known_without_its_packages():
    assert "e2e" in tasks.names() and tasks.find("e2e").metric == "bleu" and not tasks.find("e2e").scored
    assert tasks.find("e2e").score(torch.zeros(1), torch.zeros(1)) is None
