"""A Trainer whose checkpoints hold only what is trained, appear whole or not at all, and resume exactly."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from vbank import optimizers, shards
from vbank.batches import LengthBuckets, Share
from vbank.callbacks import KeepLoss, Lines, LogSelections, RefuseNonFinite, SaveWithinEpoch
from vbank.methods.chosen import dense_name
from vbank.methods.vb_lora import VBLoRAMethod
from vbank.selections_log import FILE, Recorder

TRAINED = "trained.safetensors"
PROGRESS = "progress.json"


class OutOfMemory(ValueError):
    """The run needs more memory than there is; the message names the settings that lower it."""


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss summed over a batch: cross-entropy in nats, or squared error where the labels are real numbers.

    Args:
        logits: (rows, classes); of a language model (rows, length, vocabulary); of a regression (rows, 1).
        labels: (rows,); of a language model (rows, length), each the token itself, which the position before it is to
            predict; -100 is left out.
        smoothing: share of the target spread evenly over all classes.
    """
    if labels.is_floating_point():
        return (logits.float().squeeze(-1) - labels).square().sum()
    if labels.dim() == 2:
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # moving the labels spares a copy of the logits
    flat = logits.float().flatten(0, -2)  # (rows, classes) or (rows * length, vocabulary)
    return F.cross_entropy(flat, labels.flatten(), reduction="sum", label_smoothing=smoothing)


def items(labels: Tensor) -> int:
    """How many terms `summed_loss` sums: rows, or the tokens to be predicted."""
    return labels.numel() if labels.dim() == 1 else int(labels[:, 1:].ne(-100).sum())


@dataclass
class Wrapping(DistributedDataParallelKwargs):
    """How accelerate wraps a model for several processes, and an option of torch 2.13 that accelerate does not know."""

    forward_sync_buffers: bool | None = None  # None: torch's default; only what differs from a default is passed on


class AdapterTrainer(Trainer):
    """`transformers.Trainer` with given parameter groups, small and atomic checkpoints, and exact means.

    A checkpoint holds the trained tensors, optimizer, scheduler, random states and clocks; the base model is rebuilt
    from the recipe. It is written aside and renamed, so a process killed at any point leaves the last one whole.

    The loss of a step is the mean over all rows (of a language model: all predicted tokens) of its batches, whichever
    process holds them, so that the number of processes and of accumulated batches changes no number but by rounding.

    Args:
        param_groups: what the optimizer is to train, as `vbank.param_groups` gives it.
        lengths: tokens of each training row, for batches of like length.
        batch_size: rows of a batch, over all processes together.
        eval_batch_size: the same in an evaluation.
        optimizer: as recipes name it.
        label_smoothing: of the training loss; the validation loss has none.
        save_steps: steps between checkpoints within an epoch; 0 leaves it at one an epoch.
        recorder: records what VB-LoRA's sub-vectors select; None for no such log.
        best: the metric whose best epoch keeps its checkpoint, for `load_best`; None keeps the last one alone.
        name: what the progress lines call the run.
        settings: what stands for the run's settings in its checkpoints; another one's checkpoint is refused.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the items of all accumulated batches

    def __init__(
        self,
        *args: Any,
        param_groups: list[dict[str, Any]],
        lengths: Sequence[int],
        batch_size: int,
        eval_batch_size: int = 64,
        optimizer: str = "adamw",
        label_smoothing: float = 0.0,
        save_steps: int = 0,
        recorder: Recorder | None = None,
        best: str | None = None,
        name: str = "",
        settings: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            shards.check(self.accelerator.state.fsdp_plugin)
        if (wrapping := self.accelerator.ddp_handler) is not None:
            # VeRA's frozen pair is a buffer: equal everywhere, and larger than its gradients; to be sent once.
            self.accelerator.ddp_handler = Wrapping(**vars(wrapping) | {"forward_sync_buffers": False})
        self.groups, self.lengths, self.settings, self.best = param_groups, lengths, settings, best
        self.batch_size, self.validation_batch_size = batch_size, eval_batch_size
        self.optimizer_name, self.label_smoothing = optimizer, label_smoothing
        self.train_seconds, self.train_cpu_seconds, self.evaluate_seconds = 0.0, 0.0, 0.0
        self.started: tuple[float, float] | None = None  # wall clock and this process's CPU clock
        self.aside: Path | None = None
        self.loss_so_far: tuple[float, int] | None = None  # sum since the step it was last logged at
        self.recorder = recorder
        self.remove_callback(PrinterCallback)
        if self.args.disable_tqdm:
            self.add_callback(Lines(name))
        self.add_callback(RefuseNonFinite(self))
        self.add_callback(KeepLoss(self))
        if recorder is not None:
            self.add_callback(LogSelections(recorder))
        if save_steps:
            rows = batch_size * self.args.gradient_accumulation_steps
            self.add_callback(SaveWithinEpoch(save_steps, steps_per_epoch=-(-len(lengths) // rows)))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            bare = self.accelerator.unwrap_model(self.model)
            self.optimizer = optimizers.build(self.optimizer_name, self.groups, bare)
        return self.optimizer

    # Rows and losses

    def _loader(self, rows: Any, batches: Any) -> DataLoader[Any]:
        """Batches of this process's rows. accelerate would fill up the last batch with rows of the first."""
        return DataLoader(
            rows,
            batch_sampler=Share(batches, self.args.process_index, self.args.world_size),
            collate_fn=self._get_collator_with_removed_columns(self.data_collator),
            pin_memory=torch.cuda.is_available(),
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        accumulation = self.args.gradient_accumulation_steps
        return self._loader(
            self.train_dataset, LengthBuckets(self.lengths, self.batch_size, self.args.seed, accumulation)
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        order: Sampler[int] = SequentialSampler(rows)
        return self._loader(rows, BatchSampler(order, self.validation_batch_size, drop_last=False))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        counted = torch.tensor(sum(items(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.reduce(counted, reduction="sum").clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = summed_loss(outputs.logits, labels, self.label_smoothing) / num_items_in_batch
        loss = loss * self.args.world_size  # the gradients of the processes are averaged
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all items, and the metrics of the logits of all processes."""
        model: Any = self.model
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rows = len(dataloader.dataset)  # type: ignore[arg-type]
        shared = rows % self.validation_batch_size < self.args.world_size  # each process has the whole last batch
        loss, counted, kept = 0.0, 0, []
        for step, inputs in enumerate(dataloader, start=1):
            inputs = self._prepare_inputs(inputs)
            labels = inputs.pop("labels")
            with torch.no_grad():
                logits = model(**inputs).logits
            mine = not (shared and step == len(dataloader) and rows % self.validation_batch_size)
            if mine or self.args.process_index == 0:
                loss, counted = loss + summed_loss(logits, labels).item(), counted + items(labels)
                if not prediction_loss_only:
                    kept.append((logits.float().cpu(), labels.cpu()))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        parts = gather_object([(loss, counted, kept)])
        metrics = {f"{metric_key_prefix}_loss": sum(part[0] for part in parts) / max(sum(part[1] for part in parts), 1)}
        found = [batch for part in parts for batch in part[2]]
        if found and self.compute_metrics is not None:
            predictions, label_ids = (torch.cat([batch[i] for batch in found]) for i in (0, 1))
            scores = self.compute_metrics((predictions, label_ids))  # type: ignore[arg-type]
            metrics |= {f"{metric_key_prefix}_{key}": score for key, score in scores.items()}
        return EvalLoopOutput(None, None, metrics, rows)  # type: ignore[arg-type]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # else resumed when max_steps had ended training in an epoch
            super()._run_epoch(*args, **kwargs)

    # Clocks: training time without evaluation, carried over from the checkpoint by a resumed run.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.started = time.perf_counter(), time.process_time()
        result = super().train(*args, **kwargs)
        self._read_clock()
        self.started = None
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._read_clock()
        begun = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        self.evaluate_seconds += time.perf_counter() - begun
        self.started = None if self.started is None else (time.perf_counter(), time.process_time())
        return metrics

    def _read_clock(self) -> None:
        if self.started is not None:
            now = time.perf_counter(), time.process_time()
            self.train_seconds += now[0] - self.started[0]
            self.train_cpu_seconds += now[1] - self.started[1]
            self.started = now

    # Checkpoints

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        named = {dense_name(name) for name, p in model.named_parameters() if p.requires_grad}
        return {name: p for name, p in model.named_parameters() if name in named}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self._get_output_dir(None))
        trained = {name: shards.whole(p.detach()).contiguous() for name, p in self._trained().items()}
        loss = self.accelerator.gather(self._tr_loss).mean().item()  # of all processes, as it is logged
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED)
        if self.recorder is not None:
            self.recorder.write(folder / FILE)
        self._read_clock()
        progress = {
            "train_seconds": self.train_seconds,
            "train_cpu_seconds": self.train_cpu_seconds,
            "evaluate_seconds": self.evaluate_seconds,
            "loss_so_far": (loss, self._globalstep_last_logged),
            "settings": self.settings,
        }
        (folder / PROGRESS).write_text(json.dumps(progress))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled or self.optimizer is None or self.lr_scheduler is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = shards.optimizer_state(self.optimizer)  # the Trainer would write the whole base model beside it
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None or self.optimizer is None or self.lr_scheduler is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        shards.load_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        progress = self._load_trained(Path(resume_from_checkpoint))
        for clock in ("train_seconds", "train_cpu_seconds", "evaluate_seconds"):
            setattr(self, clock, progress[clock])
        self.loss_so_far = tuple(progress["loss_so_far"])
        if self.recorder is not None:
            self.recorder.resume(Path(resume_from_checkpoint) / FILE)

    def _load_trained(self, folder: Path) -> dict[str, Any]:
        """Puts a checkpoint's trained tensors into the model; returns its progress."""
        saved, trained = load_file(folder / TRAINED), self._trained()
        progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
        shapes = {k: v.shape for k, v in saved.items()} == {k: p.shape for k, p in trained.items()}
        if not shapes or progress.get("settings", self.settings) != self.settings:
            raise ValueError(f"{folder} belongs to another recipe; remove {folder.parent} and run again")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(shards.spread_like(saved[name], parameter))
        for module in self.accelerator.unwrap_model(self.model).modules():
            if isinstance(module, VBLoRAMethod):
                module.choose()  # a compiled forward would not notice
        return progress

    def best_step(self) -> int:
        """The step of the evaluation with the highest `best`, the first of equals; without `best` the last step."""
        key = f"eval_{self.best}"
        found = [(entry[key], entry["step"]) for entry in self.state.log_history if key in entry]
        return int(max(found, key=lambda pair: pair[0])[1]) if found else self.state.global_step

    def load_best(self) -> None:
        """Puts the trained tensors of the best epoch, of which a checkpoint was kept, back into the model.

        Raises:
            ValueError: that checkpoint is gone.
        """
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.best_step()}"
        if self.best_step() == self.state.global_step:
            return
        if not folder.is_dir():
            raise ValueError(f"{folder} of the best epoch is missing; remove {folder.parent} and run again")
        self._load_trained(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.aside or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(str(self.args.output_dir))
        self.aside = run / "unfinished"
        if self.args.should_save:
            shutil.rmtree(self.aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()  # no process writes into the folder before the leftovers are gone
        try:
            super()._save_checkpoint(model, trial)
        finally:
            folder, self.aside = self.aside / f"checkpoint-{self.state.global_step}", None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            older = checkpoints(run)
            target = run / folder.name
            if target not in older:
                os.rename(folder, target)
            for path in older:
                if path not in (target, run / f"checkpoint-{self.best_step()}"):
                    shutil.rmtree(path)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the CPU."""
    said = str(error).lower()
    words = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in said for word in words)
    )
