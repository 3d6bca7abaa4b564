"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from normtrain.callbacks.checkpoints import RunCheckpoints


class StopAsked(Exception):
    """The run was asked to stop and has saved itself; raised through Lightning's loop.

    Attributes:
        signum: the signal that asked.
        step: the optimizer step that was saved.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


ASK_EVERY = 10


class GracefulStop(pl.Callback):
    """On the first Ctrl-C or SIGTERM, saves after the running step; on the second, stops at once.

    Args:
        checkpoints: the callback that saves.
        say: where messages go.
    """

    def __init__(self, checkpoints: RunCheckpoints, say: Callable[[str], None]) -> None:
        self.checkpoints, self.say = checkpoints, say
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the two signals over (Lightning has put its own handlers on by now)."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signum
        self.say("stopping: saving after this step (once more to stop without saving)")

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop, unless gradients are half accumulated or a validation is due."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        # Asking all ranks makes them wait for one another: not at every step.
        if trainer.world_size > 1 and step % ASK_EVERY:
            return
        if self._everyone_asked(trainer) is None:
            return
        if step % self.checkpoints.val_every and step != self.checkpoints.max_steps:
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and stop after a validation that was running or due."""
        if trainer.state.fn == "fit" and self._everyone_asked(trainer) is not None:
            # Lightning calls callbacks that save last, so this one has yet to judge the score.
            self.checkpoints.on_validation_end(trainer, pl_module)
            self._stop(trainer)

    def _everyone_asked(self, trainer: pl.Trainer) -> int | None:
        if trainer.world_size == 1:
            return self.asked
        # Ranks must stop at the same step, or the others wait for ever.
        mine = torch.tensor(self.asked or 0, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max")) or None

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.checkpoints.saved_step != trainer.global_step:
            self.checkpoints.save(trainer)
        raise StopAsked(self.asked or signal.SIGTERM, trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore()
