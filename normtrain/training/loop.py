"""One training process: its callbacks, its Trainer, its messages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger

from normtrain.config.schema import Recipe
from normtrain.data.base import CorpusData
from normtrain.errors import RunError
from normtrain.files import write_text
from normtrain.hf.pretrained import Pretrained, load_into
from normtrain.logs import LOGGER
from normtrain.models import norm_sites
from normtrain.models.embedding import TokenModel
from normtrain.ranks import is_first_process
from normtrain.tasks.base import task_of
from normtrain.tasks.module import TaskModule
from normtrain.training.callbacks.batches_done import BatchesDone
from normtrain.training.callbacks.checkpoints import RunCheckpoints
from normtrain.training.callbacks.metrics import MetricsFile, Recorder
from normtrain.training.callbacks.progress import ShowProgress
from normtrain.training.callbacks.random_state import RandomState
from normtrain.training.callbacks.stop import GracefulStop
from normtrain.training.checkpoint import AtomicCheckpointIO, make_section
from normtrain.training.determinism import determinism, environment
from normtrain.training.faults import Faults, how_to_resume, out_of_memory
from normtrain.training.folder import FOLDER_VARIABLE, RunFolder
from normtrain.training.launch import LaunchConfig
from normtrain.training.machine import keep_freed_memory, quiet_lightning, resolve_precision
from normtrain.training.ranks_lost import Ranks
from normtrain.training.strategies import strategy_of


class _Board(TensorBoardLogger):
    """TensorBoard events without the empty file of hyperparameters."""

    def save(self) -> None:
        self.experiment.flush()


class TrainingRun:
    """Trains one recipe in one folder.

    Args:
        recipe: every choice of the run.
        folder: where everything goes.
        data: set up for fitting.
        launch: how it is launched.
        pretrained: the weights it starts from; None starts from random ones.
        origin: of the weights that the resumed run started from.
        ahead: callbacks that run before its own.
        checkpoint_io: holds the checkpoint that is resumed.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: CorpusData,
        launch: LaunchConfig,
        *,
        pretrained: Pretrained | None = None,
        origin: dict[str, str] | None = None,
        ahead: Sequence[pl.Callback] = (),
        checkpoint_io: AtomicCheckpointIO | None = None,
    ) -> None:
        self.ahead = ahead
        self.checkpoint_io = checkpoint_io or AtomicCheckpointIO()
        self.pretrained = pretrained
        self.origin = origin if pretrained is None else pretrained.origin
        self.recipe, self.folder, self.data = recipe, folder, data
        self.launch = launch
        self.task = task_of(recipe)
        self.random_state = RandomState()
        self.metrics = MetricsFile(folder.metrics_file, self.task.metrics)

    def train(self, checkpoint: Path | None = None, step: int = 0) -> None:
        """Train to the end, holding the folder's lock.

        Args:
            checkpoint: what to resume from; None starts.
            step: optimizer steps done in it.

        Raises:
            UserError: another process holds the folder.
            RunError: the run cannot continue.
            Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
        """
        with determinism(self.recipe.train.deterministic):
            self._train(checkpoint, step)

    def _train(self, checkpoint: Path | None, step: int) -> None:
        if not is_first_process():  # rank 0 holds the lock
            self._loop(checkpoint, step)
            return
        with self.folder.locked():
            os.environ[FOLDER_VARIABLE] = str(self.folder.path)
            try:
                self._loop(checkpoint, step)
            finally:
                os.environ.pop(FOLDER_VARIABLE, None)

    def _loop(self, checkpoint: Path | None, step: int) -> None:
        _quiet()
        keep_freed_memory()
        pl.seed_everything(self.recipe.train.seed, verbose=False)
        task = self._task()
        loaded = "" if checkpoint is not None else self._load_pretrained(task)
        self._write_tokenizer()
        self.metrics.cut(step)
        trainer = self._trainer(step)
        ranks = Ranks(trainer, self.launch.timeout, how_to_resume(self.folder))
        self._log_start(task, loaded)
        faults = Faults(self.recipe, self.folder, task, ranks, checkpoint, self.random_state)
        with faults.reported():
            trainer.fit(task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            self.folder.finish(trainer.global_step)

    def _task(self) -> TaskModule:
        """Build what trains, with random weights."""
        try:
            return self.task.module(
                self.recipe,
                self.data.tokenizer,
                compile_model=self.launch.compile,
                step_batches=self.launch.step_batches,
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                "out of memory building the model; lower model.d_model, model.d_ff or "
                "model.max_positions"
            ) from error

    def _load_pretrained(self, task: TaskModule) -> str:
        """Load the pretrained weights, if there are any; return what was loaded."""
        if self.pretrained is None:
            return ""
        report = load_into(task.model, self.pretrained.weights)
        head = f"pretrained weights of {self.pretrained.place} ({self.pretrained.model_type})"
        lines = [f"{head}: {report}", *self.pretrained.notes]
        self.pretrained = None  # they would take memory for the whole training
        return "\n".join(lines)

    def _write_tokenizer(self) -> None:
        if is_first_process():
            write_text(self.folder.tokenizer_file, self.data.tokenizer.to_json())

    def _trainer(self, step: int) -> pl.Trainer:
        train = self.recipe.train
        board = _Board(self.folder.path, name="", version="", purge_step=step + 1 if step else None)
        return pl.Trainer(
            accelerator="auto",
            devices=self.launch.devices,
            num_nodes=self.launch.nodes,
            strategy=strategy_of(self.launch),
            precision=resolve_precision(train.precision)[0],  # type: ignore[arg-type]
            max_steps=train.max_steps,
            val_check_interval=train.val_every * self.launch.accumulate,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=self.launch.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=[self.metrics, board],
            callbacks=self._callbacks(),
            plugins=[self.checkpoint_io],
            default_root_dir=self.folder.path,
        )

    def _callbacks(self) -> list[pl.Callback]:
        train = self.recipe.train
        recorder = Recorder(train.log_every, self.launch.accumulate)
        callbacks: list[pl.Callback] = [*self.ahead, self.random_state, BatchesDone(), recorder]
        if train.ema is not None:
            # Averaging buffers would round the position tables, which no checkpoint has.
            callbacks.append(EMAWeightAveraging(decay=train.ema, use_buffers=False))
        best = self.task.best(self.recipe)
        if train.patience is not None:
            callbacks.append(EarlyStopping(best.column, patience=train.patience, mode=best.mode))
        checkpoints = RunCheckpoints(
            self.folder.checkpoints,
            self._section,
            every=train.checkpoint_every,
            keep=train.keep,
            best=best,
            val_every=train.val_every,
            max_steps=train.max_steps,
        )
        return [
            *callbacks,
            ShowProgress(train.max_steps, recorder, self.task),
            checkpoints,
            GracefulStop(checkpoints),
        ]

    def _section(self, model: TokenModel) -> dict[str, Any]:
        """Return what makes the run's checkpoints self-contained."""
        parts = {
            "data": self.data.corpus.provenance,
            "launch": self.launch,
            "environment": environment(),
        }
        if self.origin is not None:
            parts["init"] = self.origin
        return make_section(self.recipe, self.data.tokenizer, model, **parts).plain()

    def _log_start(self, task: TaskModule, loaded: str) -> None:
        for line in [*self.data.report, size_line(task.model), *loaded.splitlines()]:
            LOGGER.info(line)
        precision = self.recipe.train.precision
        cuda = torch.cuda.is_available()
        where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        LOGGER.info(f"training in {precision} on {where}; run folder {self.folder.path}")


def size_line(model: TokenModel) -> str:
    """Return a model's parameters and norms in one line."""
    norms: dict[str, int] = {}
    for name in norm_sites(model):
        spec = str(model.norms.spec_for(name))
        norms[spec] = norms.get(spec, 0) + 1
    shown = ", ".join(f"{count} × {spec}" for spec, count in norms.items())
    parameters = sum(p.numel() for p in model.parameters())
    return f"model: {parameters:,} parameters; norms: {shown}"


def _quiet() -> None:
    """Silence Lightning's warnings about what is intended here."""
    quiet_lightning()
    for message in (
        ".*does not have many workers.*",
        ".*litmodels.*",
        ".*isinstance.treespec.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*WeightAveraging callback with a model that overrides.*",  # refused with FSDP2
        ".*FSDP2-wrapped module.*returned a view tensor.*",  # no code here changes one in place
    ):
        warnings.filterwarnings("ignore", message=message)
