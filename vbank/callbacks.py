"""What the Trainer is told to do between steps.

Lines of progress, a watch on the loss, checkpoints within an epoch, a log of selections.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from vbank.selections_log import Recorder
    from vbank.training import AdapterTrainer


class Lines(TrainerCallback):
    """Where no progress bar can be drawn: a line an epoch and a minute, with loss, metrics and the time left."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.first, self.spoken = name, 0.0, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = self.spoken = time.perf_counter()
        self.first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.perf_counter() - self.spoken > 60:
            self.say(state, f"step {state.global_step:,}/{state.max_steps:,}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
        shown = "  ".join(f"{k.removeprefix('eval_')} {v:.4f}" for k, v in kwargs["metrics"].items() if k not in timing)
        self.say(state, f"epoch {state.epoch:.3g}/{state.num_train_epochs}  {shown}")

    def say(self, state: Any, what: str) -> None:
        self.spoken = time.perf_counter()
        left = (
            (self.spoken - self.begun) / max(state.global_step - self.first, 1) * (state.max_steps - state.global_step)
        )
        if state.is_world_process_zero:
            print(f"{self.name}  {what}  {left:.0f} s left", flush=True)


class RefuseNonFinite(TrainerCallback):
    """Stops a run whose loss is no longer a number; looks every 50 steps, since looking makes a GPU wait."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 50 == 0:
            self.check(self.trainer._tr_loss.item(), state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.check((logs or {}).get("loss", 0.0), state)

    def check(self, loss: float, state: Any) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} by step {state.global_step}; lower method.lr and run again"
            )


class SaveWithinEpoch(TrainerCallback):
    """Further checkpoints every few steps, but none at an epoch's last step: there, evaluation comes first.

    A checkpoint from before the evaluation would resume behind it, without its score and its random draws.
    """

    def __init__(self, every: int, steps_per_epoch: int) -> None:
        self.every, self.steps_per_epoch = every, steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, last = state.global_step, state.global_step == state.max_steps
        if step % self.every == 0 and step % self.steps_per_epoch and not last:
            control.should_save = True


class KeepLoss(TrainerCallback):
    """Gives a run resumed within an epoch the loss summed so far, which the Trainer itself forgets."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.loss_so_far is not None:
            loss, self.trainer._globalstep_last_logged = self.trainer.loss_so_far
            self.trainer._tr_loss += loss


class LogSelections(TrainerCallback):
    """Has the selection recorded before the first step, every few steps, and after the last."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.recorder.steps:
            self.recorder.record(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.recorder.every == 0 or state.global_step == state.max_steps:
            self.recorder.record(state.global_step)
