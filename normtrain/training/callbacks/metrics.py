"""``metrics.csv`` and its numbers: losses, scores, learning rate, tokens per second."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.files import write_text
from normtrain.tasks.base import LOSS, Metric


def columns(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the columns of a task's ``metrics.csv``.

    Args:
        metrics: of the task, besides the loss.
    """
    return (
        *("step", "epoch", "train_loss"),
        *(metric.column for metric in (LOSS, *metrics)),
        *("learning_rate", "gradient_norm", "tokens_per_second", "tokens", "seconds"),
    )


class MetricsFile(Logger):
    """A CSV file with one row per report, written at once and truncated on resume.

    Floats are written unrounded.

    Args:
        path: the file; created with its header if absent.
        metrics: of the task, besides the loss.
    """

    def __init__(self, path: Path, metrics: Sequence[Metric] = ()) -> None:
        super().__init__()
        self.path, self.columns = path, columns(metrics)

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Return nothing: a run has one file."""
        return ""

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Remove the rows after ``step``, which the resumed run writes again.

        Raises:
            UserError: the file was not written by this class.
        """
        kept = [row for row in read_metrics(self.path, self.columns) if int(row["step"]) <= step]
        write_text(self.path, self._text([self._header, *kept]))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; names without a column are ignored."""
        row: dict[str, Any] = {
            "step": step,
            **{k: v for k, v in metrics.items() if k in self.columns},
        }
        fresh = not self.path.exists()
        header = [self._header] if fresh else []
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._text([*header, row]))
        except OSError as error:
            raise RunError(
                f"could not write {self.path}: {error.strerror}; free some space, then resume "
                f"with --resume"
            ) from error

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the recipe."""

    @property
    def _header(self) -> dict[str, Any]:
        return dict(zip(self.columns, self.columns, strict=True))

    def _text(self, rows: list[dict[str, Any]]) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, restval="", lineterminator="\n")
        for row in rows:
            writer.writerow({k: repr(v) if isinstance(v, float) else v for k, v in row.items()})
        return out.getvalue()


def read_metrics(path: Path, expected: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``; none where there is no file yet.

    A last line without an end, as a kill while writing leaves it, is left out.

    Args:
        path: the file.
        expected: its columns; None takes any.

    Raises:
        UserError: the file has other columns, or a line is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    if lines and expected is not None and lines[0] != ",".join(expected):
        raise UserError(
            f"{path} must have the columns {','.join(expected)}, got {lines[0][:200]!r}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if line.count(",") != lines[0].count(",") or not line.partition(",")[0].isdecimal():
            raise UserError(f"{path}, line {number} is not a row of metrics; remove it")
    return list(csv.DictReader(lines))


class Recorder(pl.Callback):
    """Reports the training loss every ``log_every`` steps and each validation to all loggers.

    Tokens per second counts target tokens without padding, of all ranks, over the training time
    without validation and saving.

    Args:
        log_every: optimizer steps between two reports.
        accumulate: batches in one optimizer step.
    """

    def __init__(self, log_every: int, accumulate: int = 1) -> None:
        self.log_every, self.accumulate = log_every, accumulate
        self.last: dict[str, float] = {}
        self.tokens_total, self.seconds_total = 0, 0.0
        self._losses: list[Tensor] = []
        # Kept on the device: reading it at every step would make a GPU wait.
        self._waiting: Tensor | None = None
        self._tokens, self._seconds, self._started = 0, 0.0, 0.0

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Store the totals so far.

        Raises:
            RunError: the latest loss or gradient is NaN or Inf; such weights are never saved.
        """
        if self._losses:
            self._loss(trainer, pl_module)
        self._count(trainer)
        checkpoint["totals"] = {"tokens": self.tokens_total, "seconds": self.seconds_total}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the totals."""
        totals = checkpoint["totals"]
        self.tokens_total, self.seconds_total = totals["tokens"], totals["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count tokens; report every ``log_every`` steps."""
        self._losses.append(outputs["loss"].detach())
        del self._losses[: -self.accumulate]
        tokens = pl_module.count_targets(batch)
        self._waiting = tokens if self._waiting is None else self._waiting + tokens
        if trainer.fit_loop._should_accumulate():
            return
        step = trainer.global_step
        if step % self.log_every == 0 or step == trainer.max_steps:
            self._report(trainer, pl_module, step)

    def _report(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        loss = self._loss(trainer, pl_module)
        self._count(trainer)
        self.last = {
            "train_loss": loss,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(pl_module.gradient_norm),
            "tokens_per_second": self._tokens / max(1e-9, self._seconds),
            "tokens": self.tokens_total,
            "seconds": round(self.seconds_total, 3),
            "epoch": getattr(trainer.train_dataloader, "epoch", 0),
        }
        self._tokens, self._seconds = 0, 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self.last, step)

    def _loss(self, trainer: pl.Trainer, pl_module: Any) -> float:
        # Lightning divides the loss by the number of accumulated batches. Summed over ranks before
        # it is scaled, it is bitwise identical to the sum of one process.
        total = sum(self._losses[1:], self._losses[0])
        loss = float(trainer.strategy.reduce(total, reduce_op="mean") * pl_module.step_scale)
        for name, value in (("loss", loss), ("gradient", float(pl_module.gradient_norm))):
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} is {value} at step {trainer.global_step}; lower optim.lr, raise "
                    f"optim.warmup_steps or set train.precision=32 (no such weights were saved)"
                )
        return loss

    def _count(self, trainer: pl.Trainer) -> None:
        """Add the tokens of all ranks and the time since the last count."""
        now = time.perf_counter()
        self._seconds += now - self._started
        self.seconds_total += now - self._started
        self._started = now
        if self._waiting is not None:
            tokens = int(trainer.strategy.reduce(self._waiting, reduce_op="sum"))
            self._tokens += tokens
            self.tokens_total += tokens
            self._waiting = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit":
            self._count(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Report the validation and start the clock again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            found = {f"val_{name}": value for name, value in pl_module.validation.items()}
            for logger in trainer.loggers:
                logger.log_metrics(found, trainer.global_step)
        self._started = time.perf_counter()
