"""Counts of batches in checkpoints, put right where a run goes on with other processes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

_PROGRESS = "epoch_loop.batch_progress"


class BatchesDone(pl.Callback):
    """Makes Lightning's counts of batches those of this run's processes.

    Lightning counts the batches of one process, and by that count accumulates gradients and
    validates. A run that goes on with another number of processes takes fewer or more batches a
    process to each optimizer step.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rewrite the counts before the loops read them; checkpoints lie between two updates."""
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"][_PROGRESS]
        if progress["current"]["ready"] == done:
            return
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, done))
