"""Stop on Ctrl-C and SIGTERM: finish the step and save."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from normtrain.logs import LOGGER
from normtrain.training.callbacks.checkpoints import RunCheckpoints


class StopAsked(Exception):
    """The run was asked to stop and was saved; raised through Lightning's loop.

    Attributes:
        signum: the signal that asked.
        step: the optimizer step that was saved.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


SECONDS_BETWEEN_ASKING, MOST_STEPS = 2.0, 50
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what SLURM sends ahead of a job's end by ``--signal=USR1@…``."""


class GracefulStop(pl.Callback):
    """On Ctrl-C, SIGTERM or SIGUSR1, saves after the running step; a second Ctrl-C stops at once.

    Any rank may get the signal; ranks exchange it about every two seconds. A second SIGTERM changes
    nothing: SLURM and torchrun each send one to the same process. torchrun repeats Ctrl-C too, so
    under it a second Ctrl-C does not stop at once.

    Args:
        checkpoints: the callback that saves.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._ask_at, self._last = 0, (0, 0.0)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Install the handlers; a signal before the first step stops after it."""
        self._take()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers again, in case Lightning has installed its own."""
        self._take()
        self._ask_at, self._last = trainer.global_step, (trainer.global_step, time.monotonic())

    def _take(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                before = signal.signal(signum, self._ask)
                self._before.setdefault(signum, before)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signum
            LOGGER.info("stopping: saving after this step (Ctrl-C again to stop without saving)")
        elif signum == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save and stop, unless gradients are half accumulated or a validation is due."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        # An exchange makes ranks wait for each other: not at every step.
        if trainer.world_size > 1 and step < self._ask_at:
            return
        if self._everyone_asked(trainer) is None:
            return
        if step % self.checkpoints.val_every and step != self.checkpoints.max_steps:
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and stop after a validation that was running or due."""
        if trainer.state.fn == "fit" and self._everyone_asked(trainer) is not None:
            # Lightning calls checkpoint callbacks last, so this one has not seen the score yet.
            self.checkpoints.on_validation_end(trainer, pl_module)
            self._stop(trainer)

    def _everyone_asked(self, trainer: pl.Trainer) -> int | None:
        if trainer.world_size == 1:
            return self.asked
        # Ranks must stop at the same step, or the others wait forever.
        step, now = trainer.global_step, time.monotonic()
        pace = (now - self._last[1]) / max(1, step - self._last[0])
        wait = min(MOST_STEPS, max(1, int(SECONDS_BETWEEN_ASKING / max(1e-6, pace))))
        mine = torch.tensor([self.asked or 0, wait], device=trainer.strategy.root_device)
        asked, wait = trainer.strategy.reduce(mine, reduce_op="max").tolist()
        self._ask_at, self._last = step + wait, (step, now)
        return asked or None

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.checkpoints.saved_step != trainer.global_step:
            self.checkpoints.save(trainer)
        raise StopAsked(self.asked or signal.SIGTERM, trainer.global_step)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Restore the signal handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    on_exception = teardown
