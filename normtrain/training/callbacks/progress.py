"""Show the progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from normtrain.logs import LOGGER, console
from normtrain.tasks.base import Task
from normtrain.training.callbacks.metrics import Recorder


def clock(seconds: float) -> str:
    """Format seconds: 75 as ``1:15``, 3675 as ``1:01:15``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ShowProgress(pl.Callback):
    """Shows steps, loss, tokens per second and time left, and the result of each validation.

    Args:
        max_steps: the run's last step.
        recorder: has the latest numbers.
        known: the task, which has the formats of its metrics.
    """

    def __init__(self, max_steps: int, recorder: Recorder, known: Task) -> None:
        self.max_steps, self.recorder, self.known = max_steps, recorder, known
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self._first: tuple[int, float] | None = None
        self._shown = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar on a terminal."""
        self._first, self._shown = (trainer.global_step, time.monotonic()), trainer.global_step
        if not trainer.is_global_zero or not console().is_terminal:
            return
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=30),
            TextColumn("{task.description}"),
            console=console(),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=self.max_steps, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Update the bar; without one, log a line at every tenth report."""
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._shown:
            return
        self._shown = step
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=self._line(step))
        elif step % (10 * self.recorder.log_every) == 0 or step == self.max_steps:
            LOGGER.info(f"step {step}/{self.max_steps}  {self._line(step)}")

    def _line(self, step: int) -> str:
        last = self.recorder.last
        if not last:
            return ""
        return (
            f"loss {last['train_loss']:.3f}  {last['tokens_per_second']:,.0f} tokens/s  "
            f"{clock(self._left(step))} left"
        )

    def _left(self, step: int) -> float:
        assert self._first is not None
        first_step, started = self._first
        spent = time.monotonic() - started
        return spent / max(1, step - first_step) * (self.max_steps - step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log the result of the validation."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        found = [self.known.metric(name).log.format(value)
                 for name, value in pl_module.validation.items()]  # fmt: skip
        LOGGER.info(f"step {trainer.global_step}: validation {', '.join(found)}")
        for sample in pl_module.samples:
            LOGGER.info(sample)

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    on_exception = on_train_end  # type: ignore[assignment]
