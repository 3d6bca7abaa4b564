"""Correct the batch counts of a checkpoint for another number of ranks."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

_PROGRESS = "epoch_loop.batch_progress"


class BatchesDone(pl.Callback):
    """Corrects Lightning's batch counts when a run resumes on another number of ranks.

    Lightning counts the batches of one rank, and accumulates gradients and validates by that count.
    With another number of ranks, an optimizer step takes another number of batches a rank.
    """

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Rewrite the counts before the loops read them; a checkpoint lies between two steps."""
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"][_PROGRESS]
        if progress["current"]["ready"] == done:
            return
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, done))
