"""Choose the checkpoint that a run resumes from: the newest one that is whole."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from normtrain.errors import DamagedFile, RunError
from normtrain.logs import LOGGER
from normtrain.ranks import all_gather
from normtrain.training.callbacks.checkpoints import link
from normtrain.training.checkpoint import Checkpoint, read_file
from normtrain.training.folder import RunFolder

SUFFIX = ".damaged"


class ResumeFrom(pl.Callback):
    """Checks that all processes resume from the same checkpoint, and renames the damaged ones.

    Files are renamed only when every process has chosen, since they choose before they can
    communicate.

    Args:
        path: the checkpoint to resume from.
        step: optimizer steps done in it.
        damaged: newer ones that cannot be read.
    """

    def __init__(self, path: Path, step: int, damaged: list[Path]) -> None:
        self.path, self.step, self.damaged = path, step, damaged

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare, then rename damaged files and link the chosen one as ``last.ckpt``.

        Raises:
            RunError: processes have chosen different steps, because their folders differ.
        """
        chosen = all_gather(self.step)
        if len(set(chosen)) > 1:
            raise RunError(
                f"processes found different checkpoints to resume from in {self.path.parent}: "
                f"of steps {', '.join(map(str, chosen))}; share the run folder between all of them"
            )
        if not trainer.is_global_zero or not self.damaged:
            return
        best = self.path.with_name("best.ckpt")
        if best.exists() and any(best.samefile(file) for file in self.damaged):
            self.damaged.append(best)
        for file in self.damaged:
            if file.is_symlink():  # of a sharded checkpoint, which is renamed itself
                file.unlink()
            else:
                file.rename(file.with_name(file.name + SUFFIX))
        names = ", ".join(file.name for file in self.damaged)
        LOGGER.info(f"renamed, with {SUFFIX} at the end: {names}")
        if self.path.name != "last.ckpt":
            link(self.path, self.path.with_name("last.ckpt"))


def numbered(folder: RunFolder) -> list[Path]:
    """Return the numbered checkpoints, newest first."""
    return sorted(folder.checkpoints.glob("step-*.ckpt"), reverse=True)


def newest_whole(folder: RunFolder) -> tuple[Checkpoint, ResumeFrom]:
    """Read the last checkpoint; where it is damaged or missing, the newest numbered whole one.

    Every process chooses alike, by the contents of the files. Two names of one file, as
    ``last.ckpt`` and the newest numbered one are, are read once.

    Raises:
        DamagedFile: none is whole.
        UserError: one that is whole cannot be used, see `read_file`.
    """
    damaged: list[Path] = []
    reason = ""
    for path in [folder.last, *numbered(folder)]:
        if not path.exists():
            reason = f"there is no {path}"
        elif any(path.samefile(other) for other in damaged):
            damaged.append(path)
        else:
            try:
                read = read_file(path)
            except DamagedFile as error:
                damaged.append(path)
                reason = reason or f"{path} is damaged ({_why(error)})"
                continue
            if reason:
                LOGGER.info(f"{reason}: resuming from {path.name}")
            return read, ResumeFrom(path, read.step, damaged)
    raise DamagedFile(
        f"{reason}: truncated, damaged or not a checkpoint; and no other of {folder.path} is whole"
    )


def _why(error: DamagedFile) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0][:120] if lines else type(cause).__name__
