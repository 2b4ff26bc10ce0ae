"""One run: recipe -> data -> model -> attach -> train -> measure -> ledger."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vbank import ledger, optimizers, processes, quantised, selections_log, tasks
from vbank.adapters import adapter_of
from vbank.recipes import Recipe
from vbank.tasks.base import Announce, Task, TaskData
from vbank.tasks.sources import DataError
from vbank.trainable import prepare, size_on_disk


def run_id(recipe: Recipe, data: TaskData, seed: int) -> str:
    """Eight hex digits of settings and rows, and the seed: another setting or another data source is another run."""
    settings = json.dumps([recipe.identity(), data.fingerprint], sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:8]}-seed{seed}"


def load_data(recipe: Recipe, announce: Announce | None = print) -> TaskData:
    """The rows of a recipe: task, subset, held-out part.

    Raises:
        vbank.tasks.sources.DataError: an unknown task, corrupt rows, an absent source, or fewer rows than asked for.
    """
    settings = recipe.task
    task = tasks.find(settings.name)
    data = task.load(settings.source, announce)
    if data.source.startswith("generated"):  # a stand-in so that code runs; it need not have as many rows as asked for
        if recipe.scale == "gpu" and settings.source != "generated":
            raise DataError(
                f"{recipe.name}: only generated rows were found for task {task.name!r}, and at scale gpu they would be"
                " taken for the benchmark; set VBANK_DATA, reach the Hub, or insist with task.source='generated'"
            )
        settings = replace(settings, train_size=min(settings.train_size, len(data.train)))
    return task.select(data, settings)


def check_possible(recipe: Recipe, task: Task) -> None:
    """Refuse, before anything is read, what this machine or this task cannot do.

    Raises:
        ValueError: the best epoch of a task without a score an epoch, an optimizer or quantisation that cannot work
            here, or fewer rows in a batch than processes.
    """
    train = recipe.train
    if train.report == "best" and not task.scored:
        raise ValueError(
            f"{recipe.name}: task {task.name!r} is measured once, by generating after the last epoch, so there is no"
            " best epoch; set train.report='last'"
        )
    optimizers.refuse_impossible(train.optimizer)
    quantised.refuse_impossible(recipe)
    if train.log_selections:
        selections_log.refuse_impossible(recipe)
    if train.batch_size < processes.count():
        raise ValueError(
            f"{recipe.name}: train.batch_size={train.batch_size} leaves nothing for some of {processes.count()}"
            " processes; it counts the rows of all of them together, so raise it or start fewer"
        )


def check_rows(rows: Any, model: Any, recipe: Recipe, split: str) -> None:
    """Refuse encoded rows that the model cannot take, before training starts.

    Raises:
        DataError: no rows, a label that the head does not have, a token outside the vocabulary, or a row longer than
            the model's positions.
    """
    if not len(rows):
        raise DataError(f"{recipe.name}: the {split} split of task {recipe.task.name!r} is empty; give it rows")
    if not isinstance(rows, list):
        return
    classes = model.config.num_labels
    labels = {row["labels"] for row in rows if isinstance(row["labels"], int)}
    if labels and not (0 <= min(labels) and max(labels) < classes):
        outside = max(labels) if max(labels) >= classes else min(labels)
        raise DataError(
            f"{recipe.name}: a {split} row has the label {outside}, but {recipe.model.name} has {classes} classes;"
            f" labels must be 0 to {classes - 1}"
        )
    if "input_ids" not in rows[0]:
        return
    limit, longest = positions(model), max(len(row["input_ids"]) for row in rows)
    if limit is not None and longest > limit:
        raise DataError(
            f"{recipe.name}: a {split} row has {longest:,} tokens, but {recipe.model.name} has positions for {limit:,};"
            f" set task.max_length to {limit} or less"
        )
    known, largest = model.get_input_embeddings().num_embeddings, max(max(row["input_ids"]) for row in rows)
    if largest >= known:
        raise DataError(
            f"{recipe.name}: a {split} row has the token {largest:,}, but {recipe.model.name} knows {known:,}; its"
            " tokenizer belongs to another model"
        )


def positions(model: Any) -> int | None:
    """The most tokens a model has positions for; None if it does not say."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            return module.num_embeddings - reserved
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def run(
    recipe: Recipe, seed: int, out: Path | str = "results", kind: str = "final", announce: Announce = print
) -> ledger.Record:
    """Trains one seed of a recipe, or reads it from the ledger if it is there; resumes from the last checkpoint.

    Args:
        recipe: as `vbank.recipes.load` gives it.
        seed: of the head, the adapter, the order of the rows and dropout.
        out: the ledger's folder. Checkpoints lie in its subfolder `.work` until the run is finished.
        kind: "final" or "search"; search runs stay in the ledger too.
        announce: takes lines of text about what is done.

    Returns:
        The ledger's record; where several processes train together, the first one writes it and all return it.

    Raises:
        vbank.ledger.Busy: another process is making the same run.
        ValueError: an unknown target, head or learning-rate group, data or weights that cannot be read, or a
            checkpoint of another recipe.
        FloatingPointError: the loss is no longer a number.
    """
    out, main = Path(out), processes.rank() == 0
    announce = announce if main else lambda line: None
    task = tasks.find(recipe.task.name)
    check_possible(recipe, task)
    data = load_data(recipe, announce)
    identity = {"experiment": recipe.experiment, "variant": recipe.variant, "run": run_id(recipe, data, seed)}
    path = ledger.path_of(out, identity)
    with ExitStack() as held:
        record, busy = None, ""
        if main:
            record = ledger.load(path) if path.is_file() else None
            work = ledger.work_folder(out, identity["run"])
            if record is None or _checkpoints(work):
                try:
                    held.enter_context(ledger.claim(work))
                except ledger.Busy as error:
                    busy = str(error)
                if path.is_file():  # by another process, between the first look and the claim
                    record = ledger.load(path)
                if record is not None and not busy:  # of a process that was killed when it had written the record
                    _remove_checkpoints(work)
        record, busy = processes.agreed((record, busy))
        if record is not None:
            announce(f"{recipe.name} seed {seed}: finished before, see {path}")
            if recipe.train.log_selections and not ledger.log_of(path).is_file():
                announce(f"no selections were logged then; remove {path} and run again for a log")
            return record
        if busy:
            raise ledger.Busy(busy)
        work = out / ledger.WORK / identity["run"]
        named = {"format": ledger.FORMAT} | identity | {"kind": kind, "seed": seed}
        try:
            record = named | _train(recipe, seed, task, data, work)
        except (RuntimeError, MemoryError) as error:
            from vbank.training import OutOfMemory, is_out_of_memory

            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(out_of_memory(recipe)) from error
        record = processes.agreed(record)
        if main:
            ledger.write(out, record, work / selections_log.FILE if recipe.train.log_selections else None)
            _remove_checkpoints(work)
    score = record["metrics"][record["metric"]]
    announce(f"{recipe.name} seed {seed}: {record['metric']} {score:.4f}, {record['seconds']['train']:.0f} s, {path}")
    return record


def _checkpoints(work: Path) -> list[Path]:
    """What a run needs to go on, and nobody once its record is written."""
    return [*work.glob("checkpoint-*"), *work.glob("unfinished")]


def _remove_checkpoints(work: Path) -> None:
    for checkpoint in _checkpoints(work):
        shutil.rmtree(checkpoint, ignore_errors=True)


def _train(recipe: Recipe, seed: int, task: Task, data: TaskData, work: Path) -> dict[str, Any]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that nothing here uses
    from transformers import set_seed

    from vbank.training import AdapterTrainer, checkpoints

    begun, memory = time.perf_counter(), ledger.PeakMemory()
    set_seed(seed)
    model, processor = task.model(recipe.model)
    set_seed(seed)  # the adapter's draws do not depend on how the model was read
    prepared = prepare(model, recipe)
    rows = {
        split: task.encode(part, processor, recipe.task)
        for split, part in (("train", data.train), ("validation", data.validation))
    }
    for split, part in rows.items():
        check_rows(part, model, recipe, split)
    lengths = {split: row_lengths(part) for split, part in rows.items()}
    if isinstance(rows["validation"], list):  # little padding; the metric knows no order
        order = sorted(range(len(lengths["validation"])), key=lengths["validation"].__getitem__)
        rows["validation"] = [rows["validation"][i] for i in order]
    train, recorder = recipe.train, None
    if train.log_selections:
        recorder = selections_log.Recorder(adapter_of(model)[2].method, train.log_selections)

    def score(prediction: Any) -> dict[str, float]:
        return task.score(*prediction) or {}

    trainer = AdapterTrainer(
        model=model,
        args=arguments(recipe, seed, len(rows["train"]), work),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=task.collator(processor),
        compute_metrics=score if task.scored else None,
        param_groups=prepared.groups,
        lengths=lengths["train"],
        batch_size=train.batch_size,
        eval_batch_size=train.eval_batch_size,
        optimizer=train.optimizer,
        label_smoothing=train.label_smoothing,
        save_steps=train.save_steps,
        recorder=recorder,
        best=task.metric if train.report == "best" else None,
        name=f"{recipe.name} seed {seed}",
        settings=work.name,
    )
    found = processes.agreed([str(path) for path in checkpoints(work)[-1:]])
    if found and not Path(found[0]).is_dir():
        raise ValueError(f"{found[0]} is not there on every machine; put --out on a file system that all of them share")
    trainer.train(resume_from_checkpoint=found[0] if found else None)
    history, step = trainer.state.log_history, trainer.best_step()
    peak, curve = memory.read(), epochs(history)
    reported = epochs([entry for entry in history if entry["step"] <= step])[-1]
    trainer.load_best()  # the adapter that is kept is the one that is reported
    before, main = time.perf_counter(), processes.rank() == 0
    measured, disk = {}, 0
    if main or trainer.is_fsdp_enabled:  # processes that share the weights can generate together alone
        with tempfile.TemporaryDirectory() as elsewhere:
            measured = measure(model, processor, recipe, task, data, work if main else Path(elsewhere))
        disk = size_on_disk(model, recipe, work, write=main)
    logged = {}
    if recorder is not None and main:
        recorder.write(work / selections_log.FILE)
        logged = {"selections": recorder.summary(work / selections_log.FILE)}
    return {
        "recipe": recipe.resolved(),
        "data": {
            "source": data.source,
            "train": len(data.train),
            "validation": len(data.validation),
            "fingerprint": data.fingerprint,
        },
        "metric": task.metric,
        "metrics": {key: value for key, value in reported.items() if key != "epoch"} | measured,
        "curve": curve,
        "parameters": prepared.parameters,
        "bytes_on_disk": disk,
        "seconds": {
            "train": round(trainer.train_seconds, 2),
            "train_cpu": round(trainer.train_cpu_seconds, 2),  # fair where other processes share the machine
            "evaluate": round(trainer.evaluate_seconds, 2),
            "measure": round(time.perf_counter() - before, 2),
            "wall": round(time.perf_counter() - begun, 2),  # of this process; less than train after a resume
        },
        "resumed": bool(found),
        "peak_memory_bytes": peak,
        **logged,
        "versions": ledger.versions(),
        "machine": ledger.machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def arguments(recipe: Recipe, seed: int, rows: int, work: Path) -> Any:
    """The recipe's [train] as transformers' TrainingArguments, for `rows` training rows."""
    from transformers import TrainingArguments

    train = recipe.train
    steps = train.max_steps or -(-rows // (train.batch_size * train.accumulation)) * train.epochs
    made = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        gradient_accumulation_steps=train.accumulation,
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup_steps or round(train.warmup * steps),
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        activation_checkpointing=recipe.model.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if recipe.model.checkpointing else None,
        ddp_find_unused_parameters=recipe.method.config() is None,  # of an adapter, every parameter is used
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),  # a bar needs a terminal; a notebook would get a table in HTML
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="epoch",
    )
    made._n_gpu = min(made.n_gpu, 1)  # one GPU a process; several by `accelerate launch`, not by DataParallel
    return made


def row_lengths(rows: Any) -> list[int]:
    """Tokens of each row; ones where rows are no text."""
    if isinstance(rows, list) and "input_ids" in rows[0]:
        return [len(row["input_ids"]) for row in rows]
    return [1] * len(rows)


def measure(model: Any, processor: Any, recipe: Recipe, task: Task, data: TaskData, work: Path) -> dict[str, float]:
    """What the task measures by generating, under the precision that the model was trained in."""
    model.eval()
    model.config.use_cache = True  # the Trainer turned it off
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.precision)
    with torch.autocast(model.device.type, dtype=half, enabled=half is not None):
        return task.measure(model, processor, data.validation, recipe.task, work)


def out_of_memory(recipe: Recipe) -> str:
    """Names the settings that lower the memory of a run."""
    train, task = recipe.train, recipe.task
    return (
        f"{recipe.name}: out of memory at train.batch_size={train.batch_size}, task.max_length={task.max_length},"
        f" train.eval_batch_size={train.eval_batch_size}. Lower train.batch_size and raise train.accumulation by the"
        " same factor, which changes no number but by rounding; lower train.eval_batch_size or task.max_length; or set"
        " model.checkpointing=true or model.quantise='nf4'"
    )


def epochs(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The Trainer's log as one row an epoch: training loss, validation loss, metrics."""
    rows: dict[int, dict[str, float]] = {}
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    for entry in history:
        epoch = math.ceil(round(entry["epoch"], 6))  # max_steps may end training within an epoch
        row = rows.setdefault(epoch, {"epoch": epoch})
        if "loss" in entry:
            row["train_loss"] = entry["loss"]
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name != key and name not in timing:
                row["validation_loss" if name == "loss" else name] = value
    return [rows[epoch] for epoch in sorted(rows) if "validation_loss" in rows[epoch]]


def candidates(recipe: Recipe) -> list[Recipe]:
    """The recipes of the learning-rate search: each rate of [search] on the held-out part of the training rows.

    Raises:
        ValueError: the recipe has no [search] with rates, holdout and epochs.
    """
    search = recipe.search
    if not (search.lr and search.holdout and search.epochs):
        raise ValueError(f"{recipe.name} has nothing to search; give [search] holdout, epochs and a list lr")
    return [
        replace(
            recipe,
            task=replace(recipe.task, holdout=search.holdout),
            method=replace(recipe.method, lr=recipe.method.lr | rates),
            train=replace(recipe.train, epochs=search.epochs),
        )
        for rates in search.lr
    ]
