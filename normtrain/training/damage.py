"""Going on although the last checkpoint is damaged: from the newest one before it that is whole."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from normtrain.errors import DamagedFile, RunError
from normtrain.ranks import all_gather
from normtrain.training.callbacks.checkpoints import link
from normtrain.training.callbacks.progress import Say
from normtrain.training.checkpoint import Checkpoint, read_file
from normtrain.training.folder import RunFolder

ASIDE = ".damaged"


class Beginning(pl.Callback):
    """Has all processes go on from the same checkpoint, and sets the damaged ones aside.

    Files are renamed only when every process has chosen, which they do before they can talk.

    Args:
        path: the checkpoint to go on from.
        step: optimizer steps done in it.
        damaged: newer ones that can't be read.
        say: prints messages.
    """

    def __init__(self, path: Path, step: int, damaged: list[Path], say: Say) -> None:
        self.path, self.step, self.damaged, self.say = path, step, damaged, say

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare, then rename damaged files and give the chosen one the name ``last.ckpt``.

        Raises:
            RunError: processes have chosen different steps, so that their folders differ.
        """
        chosen = all_gather(self.step)
        if len(set(chosen)) > 1:
            raise RunError(
                f"the processes find different checkpoints to go on from in {self.path.parent}: "
                f"of steps {', '.join(map(str, chosen))}; let all of them see the same folder"
            )
        if not trainer.is_global_zero or not self.damaged:
            return
        best = self.path.with_name("best.ckpt")
        if best.exists() and any(best.samefile(file) for file in self.damaged):
            self.damaged.append(best)
        for file in self.damaged:
            if file.is_symlink():  # of a sharded checkpoint, which gets a new name itself
                file.unlink()
            else:
                file.rename(file.with_name(file.name + ASIDE))
        names = ", ".join(file.name for file in self.damaged)
        self.say(f"renamed, with {ASIDE} at the end: {names}")
        if self.path.name != "last.ckpt":
            link(self.path, self.path.with_name("last.ckpt"))


def numbered(folder: RunFolder) -> list[Path]:
    """The numbered checkpoints, newest first."""
    return sorted(folder.checkpoints.glob("step-*.ckpt"), reverse=True)


def newest_whole(folder: RunFolder, say: Say) -> tuple[Checkpoint, Beginning]:
    """The last checkpoint; where it is damaged or gone, the newest numbered one that is whole.

    Every process chooses alike, by what is in the files. Files that are the same one by another
    name, as ``last.ckpt`` and the newest numbered one are, are judged once.

    Raises:
        DamagedFile: none is whole.
        ValueError: one that is whole can't be used, see `read_file`.
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
                say(f"{reason}: going on from {path.name}")
            return read, Beginning(path, read.step, damaged, say)
    raise DamagedFile(
        f"{reason}: truncated, damaged or not a checkpoint; and no other of {folder.path} is whole"
    )


def _why(error: DamagedFile) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0][:120] if lines else type(cause).__name__
