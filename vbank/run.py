"""One run: recipe -> data -> model -> attach -> train -> measure -> ledger."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vbank
from vbank import ledger
from vbank.recipes import Recipe
from vbank.targets import matching
from vbank.tasks import glue
from vbank.tasks.weights import load_classifier

Announce = Callable[[str], object]


@dataclass(frozen=True)
class Prepared:
    """A model ready for training, with what is to be trained on it."""

    model: nn.Module
    groups: list[dict[str, Any]]
    parameters: dict[str, Any]


def run_id(recipe: Recipe, data: glue.TaskData, seed: int) -> str:
    """Eight hex digits of settings and rows, and the seed: another setting or another data source is another run."""
    settings = json.dumps([recipe.identity(), data.fingerprint], sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:8]}-seed{seed}"


def load_data(recipe: Recipe, announce: Announce | None = print) -> glue.TaskData:
    """The rows of a recipe: task, subset, held-out part.

    Raises:
        vbank.tasks.sources.DataError: an unknown task, corrupt rows, an absent source, or fewer rows than asked for.
    """
    task = recipe.task
    data = glue.load(task.name, task.source, announce)
    # Generated sentences are a stand-in so that code runs; they need not be as many as the recipe's.
    size = min(task.train_size, len(data.train)) if data.source.startswith("generated") else task.train_size
    return glue.hold_out(data, size, task.subset_seed, task.holdout)


def prepare(model: nn.Module, recipe: Recipe) -> Prepared:
    """Freezes, attaches or trains whole as the recipe says; gives the optimizer's groups and the counts.

    Raises:
        ValueError: an unknown target, head or learning-rate group.
    """
    method, train = recipe.method, recipe.train
    config = method.config()
    if config is not None:
        vbank.attach(model, config, targets=method.targets, train=recipe.model.head)
        groups = vbank.param_groups(model, lr=method.lr, weight_decay=train.weight_decay)
        count = vbank.count(model)
        parameters = {
            "trainable": count.trainable,
            "stored": count.stored,
            "bytes": count.bytes,
            "head": count.head.trained if count.head else 0,
            "groups": {key: group.trained for key, group in count.groups.items()},
        }
        return Prepared(model, groups, parameters)
    inside = matching(model, recipe.model.head, [name for name, _ in model.named_modules() if name], "head")
    by_group: dict[str, list[nn.Parameter]] = {"head": [], "body": []}
    for name, parameter in model.named_parameters():
        in_head = any(name.startswith(f"{module}.") for module in inside)
        parameter.requires_grad_(in_head or method.name == "full" or (method.name == "bitfit" and is_bias(name)))
        if parameter.requires_grad:
            by_group["head" if in_head else "body"].append(parameter)
    rates = {"head": method.lr.get("head", method.lr.get("default")), "body": method.lr.get("default")}
    groups = []
    for key, members in by_group.items():
        if members and rates[key] is None:
            raise ValueError(f"{recipe.name}: no learning rate for {key}; set method.lr.default")
        if members:
            groups.append({"name": key, "params": members, "lr": rates[key], "weight_decay": train.weight_decay})
    body, head = (sum(p.numel() for p in by_group[key]) for key in ("body", "head"))
    parameters = {"trainable": body, "stored": float(body), "bytes": 4 * body, "head": head, "groups": {"body": body}}
    return Prepared(model, groups, parameters)


def is_bias(name: str) -> bool:
    """Whether BitFit trains a parameter of the model's body: every bias, those of the normalisations included."""
    return name.endswith(".bias")


def tokenise(rows: Iterable[glue.Row], columns: tuple[str, ...], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Rows as token ids, cut at `length`; padding is left to the batch."""
    rows = list(rows)
    texts = [[row[column] for row in rows] for column in columns]
    coded = tokenizer(*texts, truncation=True, max_length=length, return_attention_mask=False)
    return [{key: coded[key][i] for key in coded} | {"labels": row["label"]} for i, row in enumerate(rows)]


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
    out = Path(out)
    data = load_data(recipe, announce)
    identity = {"experiment": recipe.experiment, "variant": recipe.variant, "run": run_id(recipe, data, seed)}
    path = ledger.path_of(out, identity)

    def finished() -> ledger.Record:
        announce(f"{recipe.name} seed {seed}: finished before, see {path}")
        return json.loads(path.read_text(encoding="utf-8"))

    if path.is_file():
        return finished()
    work = ledger.work_folder(out, identity["run"])
    named = {"format": ledger.FORMAT} | identity | {"kind": kind, "seed": seed}
    if int(os.environ.get("RANK", "0")) > 0:
        return named | _train(recipe, seed, data, work)
    with ledger.claim(work):
        if path.is_file():  # by another process, between the first look and the claim
            return finished()
        record = named | _train(recipe, seed, data, work)
        ledger.write(out, record)
        for checkpoint in [*work.glob("checkpoint-*"), work / "unfinished"]:
            shutil.rmtree(checkpoint, ignore_errors=True)
    score = record["metrics"][record["metric"]]
    announce(f"{recipe.name} seed {seed}: {record['metric']} {score:.4f}, {record['seconds']['train']:.0f} s, {path}")
    return record


def _train(recipe: Recipe, seed: int, data: glue.TaskData, work: Path) -> dict[str, Any]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that nothing here uses
    from transformers import DataCollatorWithPadding, TrainingArguments, set_seed

    from vbank.training import AdapterTrainer, checkpoints

    begun, memory = time.perf_counter(), ledger.PeakMemory()
    set_seed(seed)
    model, tokenizer = load_classifier(recipe.model.name, data.task.classes)
    set_seed(seed)  # the adapter's draws do not depend on how the model was read
    prepared = prepare(model, recipe)
    rows = {
        split: tokenise(part, data.task.columns, tokenizer, recipe.task.max_length)
        for split, part in (("train", data.train), ("validation", data.validation))
    }
    rows["validation"].sort(key=lambda row: len(row["input_ids"]))  # little padding; the metric knows no order
    train, metric = recipe.train, data.task.metric

    def score(prediction: Any) -> dict[str, float]:
        predicted = torch.as_tensor(prediction.predictions).argmax(dim=-1)  # (examples,)
        return {metric.__name__: metric(predicted, torch.as_tensor(prediction.label_ids))}

    steps = -(-len(rows["train"]) // train.batch_size) * train.epochs
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.eval_batch_size,
        lr_scheduler_type=train.schedule,
        warmup_steps=round(train.warmup * steps),
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="epoch",
    )
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=score,
        param_groups=prepared.groups,
        save_steps=train.save_steps,
        lengths=[len(row["input_ids"]) for row in rows["train"]],
        name=f"{recipe.name} seed {seed}",
    )
    found = checkpoints(work)
    trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
    curve = epochs(trainer.state.log_history, metric.__name__)
    best = max(curve, key=lambda row: row[metric.__name__])
    reported = best if train.report == "best" else curve[-1]
    disk = size_on_disk(model, recipe, work) if arguments.should_save else 0
    return {
        "recipe": recipe.resolved(),
        "data": {
            "source": data.source,
            "train": len(data.train),
            "validation": len(data.validation),
            "fingerprint": data.fingerprint,
        },
        "metric": metric.__name__,
        "metrics": {key: value for key, value in reported.items() if key != "epoch"},
        "curve": curve,
        "parameters": prepared.parameters,
        "bytes_on_disk": disk,
        "seconds": {
            "train": round(trainer.train_seconds, 2),
            "train_cpu": round(trainer.train_cpu_seconds, 2),  # fair where other processes share the machine
            "evaluate": round(trainer.evaluate_seconds, 2),
            "wall": round(time.perf_counter() - begun, 2),  # of this process; less than train after a resume
        },
        "resumed": bool(found),
        "peak_memory_bytes": memory.read(),
        "versions": ledger.versions(),
        "machine": ledger.machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def epochs(history: list[dict[str, Any]], metric: str) -> list[dict[str, float]]:
    """The Trainer's log as one row an epoch: training loss, validation loss, metric."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        row = rows.setdefault(round(entry["epoch"]), {"epoch": round(entry["epoch"])})
        for key, name in (("loss", "train_loss"), ("eval_loss", "validation_loss"), (f"eval_{metric}", metric)):
            if key in entry:
                row[name] = entry[key]
    return [rows[epoch] for epoch in sorted(rows) if metric in rows[epoch]]


def size_on_disk(model: nn.Module, recipe: Recipe, work: Path) -> int:
    """Bytes of what a user must keep besides the base model, head included. An adapter stays in `work`/adapter."""
    folder = work / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    if recipe.method.config() is not None:
        vbank.save(model, folder, form="compact")
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if recipe.method.name == "full":  # a copy of the whole model: measured, not kept
        shutil.rmtree(folder)
    return size


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
