"""What the runner refuses, and how it says so; nothing is trained or written then."""

import contextlib
import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_task
import torch
from local_data import silent
from tiny_models import bert, gpt2, llama, roberta
from transformers import BertTokenizerFast

from vbank import optimizers, shards, tasks
from vbank.recipes import ModelSettings, Recipe, load
from vbank.run import check_possible, check_rows, load_data, positions, run
from vbank.tasks import weights
from vbank.tasks.sources import DataError
from vbank.training import OutOfMemory


@pytest.fixture
def recipe(recipe_file: str) -> Recipe:
    return load(f"{recipe_file}/lora")


def test_there_is_no_best_epoch_of_a_task_scored_by_generating(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'backwards' is measured once.*set train\.report='last'"):
        run(replace(recipe, train=replace(recipe.train, report="best")), 0, tmp_path, announce=silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_paged_optimizer_needs_cuda_and_the_error_names_the_other_one(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'paged_adamw_32bit'.*no CUDA device; set train\.optimizer='adamw'"):
        run(replace(recipe, train=replace(recipe.train, optimizer="paged_adamw_32bit")), 0, tmp_path, announce=silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"optimizer": "adamw_8bit"}, {"quantise": "nf4"}])
def test_without_bitsandbytes_the_extra_is_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    real = optimizers.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a))
    if "optimizer" in change:
        recipe = replace(recipe, train=replace(recipe.train, **change))
    else:
        recipe = replace(recipe, model=replace(recipe.model, **change))
    with pytest.raises(ValueError, match=r"pip install 'vbank\[qlora\]'"):
        run(recipe, 0, tmp_path, announce=silent)


def test_quantised_weights_are_not_trained_whole(recipe_file: str) -> None:
    recipe = load(f"{recipe_file}/full", ["model.quantise=nf4"])
    with pytest.raises(
        ValueError, match=r"'full' cannot train nf4 weights; take an adapter, or model\.quantise='none'"
    ):
        check_possible(recipe, tasks.find("backwards"))


def test_more_processes_than_rows_in_a_batch(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    with pytest.raises(ValueError, match=r"train\.batch_size=8 leaves nothing for some of 16 processes"):
        check_possible(recipe, tasks.find("backwards"))


@pytest.mark.parametrize(
    ("version", "main_alone", "said"),
    [(1, False, "take --fsdp_version 2"), (2, True, "take --fsdp_cpu_ram_efficient_loading false"), (2, False, None)],
)
def test_fsdp_in_a_form_that_does_not_go_with_adapters(version: int, main_alone: bool, said: str | None) -> None:
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=main_alone)
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        shards.check(plugin)


def test_a_number_of_samples_a_class_is_refused_where_rows_have_no_classes(recipe: Recipe) -> None:
    with pytest.raises(DataError, match=r"'backwards' knows no task.samples_per_class \(it is 3\)"):
        load_data(replace(recipe, task=replace(recipe.task, samples_per_class=3)), announce=None)


def test_at_scale_gpu_a_stand_in_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBANK_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="only generated rows were found for task 'sst2-sentences'"):
        load_data(load("first-finetune/lora", scale="gpu"), announce=None)
    insisted = load("first-finetune/lora", ["task.source=generated"], scale="gpu")
    assert len(load_data(insisted, announce=None).train) == 2400


def test_an_unknown_task_is_named_with_a_close_one(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown task 'colla'; did you mean 'cola'"):
        run(replace(recipe, task=replace(recipe.task, name="colla")), 0, tmp_path, announce=silent)


@pytest.mark.parametrize(
    ("name", "close"),
    [("roberta-bse", "FacebookAI/roberta-base"), ("minilmm", "minilm"), ("meta-llama/Llama-2-7b", "Llama-2-7b-hf")],
)
def test_an_unknown_model_is_named_with_a_close_one(name: str, close: str) -> None:
    with pytest.raises(DataError, match=f"{name!r} is neither a local folder.*did you mean '.*{close}'"):
        weights.load_classifier(name, 2)


def test_a_gated_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://...")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        DataError, match=r"gated: accept its licence on .*meta-llama/Llama-2-7b-hf, .*auth login.*HF_TOKEN"
    ):
        weights.load_generator(ModelSettings("meta-llama/Llama-2-7b-hf"))


def test_a_checkpoint_with_another_head_or_of_another_shape_is_named(tmp_path: Path) -> None:
    bert(num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(
        DataError,
        match="three': classifier.weight is 3 x 16 in the checkpoint, 2 x 16 is needed; take a checkpoint without a"
        " head, or with a head of 2 outputs",
    ):
        weights.load_classifier(words(tmp_path / "three"), 2)
    assert weights.load_classifier(words(tmp_path / "three"), 3)[0].config.num_labels == 3
    folder = tiny_task.save_llama(tmp_path / "llama")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    with pytest.raises(DataError, match=r"llama': .*weight is 128 x 64 in the checkpoint, 96 x 64 .*do not belong"):
        weights.load_generator(ModelSettings(str(folder)))


def words(folder: Path) -> str:
    """The folder of a classifier, with a tokenizer."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_a_scratch_model_needs_the_texts_of_a_task() -> None:
    with pytest.raises(DataError, match="'scratch-llama' is trained on the texts of a task"):
        weights.load_generator(ModelSettings("scratch-llama"))


def row(length: int = 5, token: int = 3, label: int = 1) -> dict:
    return {"input_ids": [token] * length, "labels": label}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "train split of task 'backwards' is empty"),
        ([row(25)], r"has 25 tokens, but .* has positions for 24; set task\.max_length to 24 or less"),
        ([row(label=2)], "label 2, but .* has 2 classes; labels must be 0 to 1"),
        ([row(), row(label=-1)], "label -1, but"),
        ([row(token=40)], "token 40, but .* knows 40"),
    ],
)
def test_rows_that_the_model_cannot_take(recipe: Recipe, rows: list, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_rows(rows, bert(), recipe, "train")


def test_rows_that_it_can_take_pass(recipe: Recipe) -> None:
    check_rows([row(24), row(1, 39, 0)], bert(), recipe, "train")
    check_rows([row(24) | {"labels": 3.5}], bert(num_labels=1), recipe, "train")  # a regression
    check_rows([row() | {"labels": [-100, 3, 4]}], llama(), recipe, "train")


@pytest.mark.parametrize(("model", "limit"), [(bert, 24), (roberta, 22), (gpt2, 24), (llama, 2048)])
def test_positions_of_a_model(model, limit: int) -> None:
    """RoBERTa's first two positions belong to padding."""
    assert positions(model()) == limit
    assert positions(torch.nn.ModuleDict({"config": torch.nn.Identity()})) is None


def test_a_row_longer_than_the_model_stops_the_run_before_training(recipe: Recipe, tmp_path: Path) -> None:
    short = tiny_task.save_llama(tmp_path / "short", max_position_embeddings=6)
    changed = replace(recipe, model=replace(recipe.model, name=str(short)))
    with pytest.raises(DataError, match=r"positions for 6; set task\.max_length"):
        run(changed, 0, tmp_path / "out", announce=silent)
    assert not list(tmp_path.glob("out/*/*/*.json"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_settings_that_lower_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("vbank.training.AdapterTrainer.training_step", fail)
    with pytest.raises(OutOfMemory) as said:
        run(recipe, 0, tmp_path, announce=silent)
    for knob in ("train.batch_size=8", "task.max_length=16", "train.accumulation", "model.checkpointing=true", "nf4"):
        assert knob in str(said.value)


def test_another_error_in_training_is_not_hidden(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("vbank.training.AdapterTrainer.training_step", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(recipe, 0, tmp_path, announce=silent)


def test_a_checkpoint_of_another_recipe_is_refused(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same shapes, other settings: a folder copied by hand."""
    from vbank import training

    first, other = (load(f"{recipe_file}/lora", [f"method.lr={rate}"]) for rate in (1e-2, 2e-2))
    with monkeypatch.context() as patch:
        patch.setattr(training.AdapterTrainer, "_finalize_training", lambda *a: 1 / 0)
        for each in (first, other):
            with pytest.raises(ZeroDivisionError):
                run(each, 0, tmp_path, announce=silent)
    mine, theirs = sorted(tmp_path.glob(".work/*/checkpoint-*"))
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    failures = []
    for each in (first, other):
        try:
            run(each, 0, tmp_path, announce=silent)
        except ValueError as error:
            failures.append(str(error))
    assert len(failures) == 1 and "belongs to another recipe; remove" in failures[0]
    assert str(mine.parent) in failures[0]


def test_a_folder_without_file_locks_is_named_and_nothing_is_trained(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(OSError, match="No locks available; runs need file locks: choose a folder on a local disk"):
        run(recipe, 0, tmp_path, announce=silent)
    assert not list(tmp_path.rglob("*.json"))
