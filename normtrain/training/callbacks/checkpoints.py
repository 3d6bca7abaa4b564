"""Save a run's checkpoints atomically and remove old ones."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from normtrain.files import write_atomically
from normtrain.tasks.base import Metric


def link(source: Path, name: Path) -> None:
    """Give ``source`` a second name, replacing a file of that name.

    Makes a hard link, or a copy where the file system has none. A sharded checkpoint, which is a
    folder, gets a symbolic link.
    """
    if source.is_dir():
        temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
        os.symlink(source.resolve().name, temporary)
        os.replace(temporary, name)
        return

    def write(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    write_atomically(name, write)


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder; a kill meanwhile leaves no partial one."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.gone.tmp")
        with contextlib.suppress(OSError):
            os.replace(path, gone)
            path = gone
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class RunCheckpoints(Checkpoint):
    """Numbered checkpoints, ``last.ckpt`` and ``best.ckpt``.

    A checkpoint of a step that is also validated is written after the validation, so that a
    resumed run neither repeats nor misses it. A score that is NaN or Inf is never best.

    Args:
        folder: the folder of checkpoints.
        section: returns for a model what makes its checkpoint self-contained,
            ``checkpoint["normtrain"]``.
        every: optimizer steps between two checkpoints.
        keep: number of numbered checkpoints kept; older ones are removed.
        best: the metric of the best checkpoint.
        val_every: optimizer steps between two validations.
        max_steps: the run's last step, always saved.
    """

    def __init__(
        self,
        folder: Path,
        section: Callable[[Any], dict[str, Any]],
        *,
        every: int,
        keep: int,
        best: Metric,
        val_every: int,
        max_steps: int,
    ) -> None:
        super().__init__()
        self.section = section
        self.folder, self.every, self.keep, self.best = folder, every, keep, best
        self.val_every, self.max_steps = val_every, max_steps
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its step."""
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict.get("best_step")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained."""
        checkpoint.setdefault("normtrain", {}).update(self.section(pl_module.model))

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the step that is saved already."""
        self.saved_step = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove temporary files and repair ``best.ckpt`` after a kill during a save."""
        if not trainer.is_global_zero:
            return
        for part in self.folder.glob(".*.tmp"):
            remove(part)
        if self.best_step is not None and self.best_step == self.saved_step:
            link(self.folder / "last.ckpt", self.folder / "best.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save every ``every`` steps; a step that is validated is saved after its validation."""
        step = trainer.global_step
        due = step % self.every == 0 and step != self.saved_step
        if step >= self.max_steps:
            trainer.should_stop = True  # makes Lightning validate the last step
        elif due and step % self.val_every:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the validated step, as ``best.ckpt`` too if it is the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[self.best.column])
        sign = 1.0 if self.best.mode == "max" else -1.0
        improved = math.isfinite(value) and (
            self.best_value is None or sign * value > sign * self.best_value
        )
        step = trainer.global_step
        if improved:
            self.best_value, self.best_step = value, step
        if improved or step % self.every == 0 or step >= self.max_steps or trainer.should_stop:
            path = self.save(trainer)
            if improved and trainer.is_global_zero:
                link(path, self.folder / "best.ckpt")

    def save(self, trainer: pl.Trainer) -> Path:
        """Write ``step-….ckpt`` and make it ``last.ckpt``; remove numbered ones beyond ``keep``."""
        self.saved_step = trainer.global_step
        path = self.folder / f"step-{self.saved_step:08d}.ckpt"
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self._save_shards(trainer, path)
        else:
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            link(path, self.folder / "last.ckpt")
            named = {(self.folder / name).resolve() for name in ("last.ckpt", "best.ckpt")}
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                # A file keeps its data under its second name; a folder has only one name.
                if old.is_file() or old.resolve() not in named:
                    remove(old)
        return path

    def _save_shards(self, trainer: pl.Trainer, path: Path) -> None:
        """Let every rank write its shard into a temporary folder, then rename the folder.

        Raises:
            RunError: a rank could not write; no folder of that name is left.
        """
        part = path.with_name(f".{path.name}.tmp")
        if trainer.is_global_zero:
            remove(part)
        trainer.strategy.barrier()
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            for file in part.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            remove(path)
            os.replace(part, path)
