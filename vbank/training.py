"""A Trainer whose checkpoints hold only what is trained, appear whole or not at all, and resume exactly."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

TRAINED = "trained.safetensors"
PROGRESS = "progress.json"


class LengthBuckets(Sampler[int]):
    """Rows in a random order in which each batch holds rows of like length, so that little is padded.

    The order is a function of seed and epoch alone, which is what lets a run resume in the middle of an epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, batches_per_pool: int = 16) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.pool = batch_size * batches_per_pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=draw).tolist()
        batches = []
        for start in range(0, len(order), self.pool):
            pool = sorted(order[start : start + self.pool], key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]  # at most one; it must come last
        for index in torch.randperm(len(full), generator=draw).tolist():
            yield from full[index]
        for batch in short:
            yield from batch


class EpochLines(TrainerCallback):
    """One line an epoch where no progress bar can be drawn: loss, metric, and the time left."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.first = name, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.first = time.perf_counter(), state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        spent = time.perf_counter() - self.begun
        left = spent / max(state.global_step - self.first, 1) * (state.max_steps - state.global_step)
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
        shown = "  ".join(f"{k.removeprefix('eval_')} {v:.4f}" for k, v in kwargs["metrics"].items() if k not in timing)
        print(
            f"{self.name}  epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  {shown}  {left:.0f} s left", flush=True
        )


class RefuseNonFinite(TrainerCallback):
    """Stops a run whose loss is no longer a number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} by step {state.global_step}; lower method.lr and run again"
            )


class SaveWithinEpoch(TrainerCallback):
    """Further checkpoints every few steps, but none at an epoch's last step: there, evaluation comes first.

    A checkpoint from before the evaluation would resume behind it, without its score and its random draws.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps_per_epoch = state.max_steps // round(args.num_train_epochs)
        if state.global_step % self.every == 0 and state.global_step % steps_per_epoch:
            control.should_save = True


class KeepLoss(TrainerCallback):
    """Gives a run resumed within an epoch the loss summed so far, which the Trainer itself forgets."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.loss_so_far is not None:
            loss, self.trainer._globalstep_last_logged = self.trainer.loss_so_far
            self.trainer._tr_loss += loss


class AdapterTrainer(Trainer):
    """`transformers.Trainer` with given parameter groups and small, atomic checkpoints.

    A checkpoint holds the trained tensors, optimizer, scheduler, random states and clocks; the base model is rebuilt
    from the recipe. It is written aside and renamed, so a process killed at any point leaves the last one whole.

    Args:
        param_groups: what AdamW is to train, as `vbank.param_groups` gives it.
        lengths: tokens of each training row, for batches of like length.
        save_steps: steps between checkpoints within an epoch; 0 leaves it at one an epoch.
        name: what the progress lines call the run.
    """

    def __init__(
        self,
        *args: Any,
        param_groups: list[dict[str, Any]],
        lengths: Sequence[int],
        save_steps: int = 0,
        name: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups, self.lengths = param_groups, lengths
        self.train_seconds, self.train_cpu_seconds, self.evaluate_seconds = 0.0, 0.0, 0.0
        self.started: tuple[float, float] | None = None  # wall clock and this process's CPU clock
        self.aside: Path | None = None
        self.loss_so_far: tuple[float, int] | None = None  # sum since the step it was last logged at
        self.remove_callback(PrinterCallback)
        if not sys.stderr.isatty():
            self.remove_callback(ProgressCallback)
            self.add_callback(EpochLines(name))
        self.add_callback(RefuseNonFinite())
        self.add_callback(KeepLoss(self))
        if save_steps:
            self.add_callback(SaveWithinEpoch(save_steps))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.groups)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthBuckets(self.lengths, self.args.train_batch_size, self.args.seed)

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
        return {name: p for name, p in self.accelerator.unwrap_model(self.model).named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self._get_output_dir(None))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._trained().items()}, folder / TRAINED)
        self._read_clock()
        progress = {
            "train_seconds": self.train_seconds,
            "train_cpu_seconds": self.train_cpu_seconds,
            "evaluate_seconds": self.evaluate_seconds,
            "loss_so_far": (self._tr_loss.item(), self._globalstep_last_logged),
        }
        (folder / PROGRESS).write_text(json.dumps(progress))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        saved, trained = load_file(folder / TRAINED), self._trained()
        if {k: v.shape for k, v in saved.items()} != {k: p.shape for k, p in trained.items()}:
            raise ValueError(f"{folder.name} belongs to another recipe; remove the folder that holds it and run again")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])
        progress = json.loads((folder / PROGRESS).read_text())
        for clock in ("train_seconds", "train_cpu_seconds", "evaluate_seconds"):
            setattr(self, clock, progress[clock])
        self.loss_so_far = tuple(progress["loss_so_far"])

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
                if path != target:
                    shutil.rmtree(path)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
