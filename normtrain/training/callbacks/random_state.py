"""Save and restore the random state of every rank, so that dropout resumes bit-exactly."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from normtrain.ranks import all_gather


def _state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def check_state(state: dict[str, Any]) -> None:
    """Check a saved state by loading it into new generators.

    Raises:
        Exception: the state is invalid; the type depends on the reason.
    """
    torch.Generator().set_state(state["torch"])
    version, words, gauss = state["python"]
    random.Random().setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), *rest))


class RandomState(pl.Callback):
    """Saves every rank's generators and restores them before the next training batch.

    Lightning saves none. They are restored at the first batch because building loaders and
    optimizers before it draws random numbers.

    Attributes:
        begun: whether a batch was trained; before that an error may come from the checkpoint.
    """

    def __init__(self) -> None:
        self.begun = False
        self._waiting: dict[str, Any] | None = None
        self._begun_at = 0

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Store one state per rank, in rank order."""
        checkpoint["random_state"] = all_gather(_state())

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state; a run on another number of ranks starts new ones."""
        states = checkpoint.get("random_state") or []
        if len(states) == trainer.world_size:
            self._waiting = states[trainer.global_rank]
        else:
            self._begun_at = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed every rank but the first anew; all had one seed to build the same model.

        Seed all ranks, with the step too, if the checkpoint has no state for them: the stream of
        the first steps must not repeat.
        """
        if self._waiting is None and (trainer.global_rank or self._begun_at):
            parts = [torch.initial_seed() % 2**63, trainer.global_rank]
            parts += [self._begun_at] if self._begun_at else []
            torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))

    def on_train_batch_start(self, *_: Any) -> None:
        """Restore the state, once."""
        if self._waiting is not None:
            _restore(self._waiting)
            self._waiting = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Note that the state of the checkpoint was restored without an error."""
        self.begun = True
