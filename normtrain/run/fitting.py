"""Training: a recipe becomes a run folder; a run folder goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger

from normtrain import recipe as recipes
from normtrain.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints
from normtrain.callbacks.metrics import MetricsFile, Recorder
from normtrain.callbacks.progress import Say, ShowProgress
from normtrain.callbacks.random_state import RandomState
from normtrain.callbacks.stop import GracefulStop, StopAsked
from normtrain.data.module import TranslationData
from normtrain.errors import RunError, UserError
from normtrain.models import build_model, norm_sites
from normtrain.recipe import Recipe
from normtrain.run.checkpoint import read_checkpoint
from normtrain.run.folder import FOLDER_VARIABLE, RunFolder, new_folder, newest_run
from normtrain.run.machine import keep_freed_memory, resolve_precision
from normtrain.tasks.translation import TranslationTask

__all__ = ["Interrupted", "describe", "fit", "resume"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run, and it has saved itself; the message says how to go on."""


def fit(
    recipe: Recipe,
    *,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,  # noqa: A002 - the option's name on the command line
    say: Say | None = None,
) -> Path:
    """Train a recipe from the beginning.

    Data, tokenizer and model are made first, so that a mistake in any of them leaves no folder.

    Args:
        recipe: every choice of the run.
        out: the run's folder; by default ``runs/<recipe>-<norm>-<time>``.
        devices: devices a machine; by default one.
        nodes: machines.
        strategy: ``"auto"`` or ``"ddp"``.
        compile: run the training forward pass through ``torch.compile``.
        say: where messages go; by default stderr.

    Returns:
        The run's folder.

    Raises:
        ValueError: for a mistake in the recipe, the data or ``out``.
        RunError: if the run can't go on: no memory, no disk, a loss that is no number.
        Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
    """
    say = say or Say()
    recipe = _settle(recipes.check_norms(recipe))
    data = _data(recipe)
    data.setup("fit")
    given = os.environ.get(FOLDER_VARIABLE)
    folder = RunFolder(Path(given)) if given else new_folder(recipe, out)
    run = _Run(recipe, folder, data, devices or 1, nodes, strategy, compile, say)
    return run.train(checkpoint=None)


def resume(
    run: Path | Literal["auto"],
    overrides: Sequence[str] = (),
    *,
    recipe: Recipe | None = None,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,  # noqa: A002
    say: Say | None = None,
) -> Path:
    """Go on with a run from its last checkpoint; the rest is bit-equal to a run never stopped.

    Args:
        run: the run's folder, or ``"auto"``: ``out`` if it holds a run, else the newest run of
            this recipe and norm under ``runs/``, else a new run.
        overrides: ``key=value`` settings the user gave again; they must match the run's.
        recipe: the recipe the user named again; it must match the run's. ``"auto"`` needs it
            to start a new run.
        out: the folder for ``"auto"``.
        devices: devices a machine.
        nodes: machines.
        strategy: as for :func:`fit`.
        compile: as for :func:`fit`.
        say: where messages go.

    Returns:
        The run's folder.

    Raises:
        ValueError: if there is no such run, or the recipe differs from the run's.
        RunError, Interrupted: as for :func:`fit`.
    """
    say = say or Say()
    options: dict[str, Any] = dict(nodes=nodes, strategy=strategy, compile=compile, say=say)
    if run == "auto":
        folder = _newest(recipe, overrides, out)
        if folder is None:
            if recipe is None:
                raise UserError("no run to go on with under runs/; name a --recipe to start one")
            say("no run to go on with: starting one")
            wanted = recipes.override(recipe, overrides)
            return fit(wanted, out=out, devices=devices, **options)
    else:
        folder = RunFolder(Path(run))
    theirs = folder.recipe()
    _same(theirs, recipe, overrides, folder)
    status = _status(folder)
    if status.get("finished"):
        say(f"{folder.path} has finished at step {status['step']}: nothing to do")
        return folder.path
    checkpoint = folder.last if folder.last.exists() else None
    tokenizer = None
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        tokenizer = read.tokenizer
        say(f"going on with {folder.path} after step {read.step}")
    else:
        say(f"{folder.path} has no checkpoint yet: starting from the beginning")
    data = _data(theirs, tokenizer)
    data.setup("fit")
    going = _Run(theirs, folder, data, devices or 1, nodes, strategy, compile, say)
    return going.train(checkpoint=checkpoint)


def _newest(recipe: Recipe | None, overrides: Sequence[str], out: Path | None) -> RunFolder | None:
    if out is not None:
        folder = RunFolder(out)
        return folder if folder.recipe_file.exists() else None
    wanted = None if recipe is None else recipes.override(recipe, overrides)
    return newest_run(None if wanted is None else recipes.check_norms(wanted))


def _same(
    theirs: Recipe, named: Recipe | None, overrides: Sequence[str], folder: RunFolder
) -> None:
    wanted = recipes.override(named or theirs, overrides)
    if wanted.train.precision == "auto":
        wanted = recipes.override(wanted, [f"train.precision={theirs.train.precision}"])
    changes = recipes.diff(theirs, _settle(recipes.check_norms(wanted)))
    if changes:
        raise UserError(
            f"{folder.path} was started with another recipe and goes on only with its own; "
            f"changed: {'; '.join(changes)}"
        )


def _settle(recipe: Recipe) -> Recipe:
    """Replace what depends on this machine and this folder by what it stands for here."""
    changes = []
    if Path(recipe.data.source).is_dir():
        changes.append(f"data.source={json.dumps(str(Path(recipe.data.source).resolve()))}")
    if recipe.train.precision == "auto":
        precision, _ = resolve_precision("auto")
        changes.append(f"train.precision={json.dumps(precision.removesuffix('-true'))}")
    return recipes.override(recipe, changes)


def _status(folder: RunFolder) -> dict[str, Any]:
    file = folder.path / "status.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _data(recipe: Recipe, tokenizer: Any = None) -> TranslationData:
    return TranslationData(
        source=recipe.data.source,
        revision=recipe.data.revision,
        max_tokens=recipe.data.max_tokens,
        max_length=recipe.data.max_length,
        vocab_size=recipe.data.vocab_size,
        workers=recipe.data.workers,
        seed=recipe.train.seed,
        total_batches=recipe.train.max_steps * recipe.optim.accumulate,
        tokenizer=tokenizer,
    )


class _Board(TensorBoardLogger):
    """TensorBoard events without a second, empty file of settings beside them."""

    def save(self) -> None:
        self.experiment.flush()


class _Run:
    """One training process: its callbacks, its Trainer and its messages."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: TranslationData,
        devices: int,
        nodes: int,
        strategy: str,
        compile_model: bool,
        say: Say,
    ) -> None:
        self.recipe, self.folder, self.data, self.say = recipe, folder, data, say
        self.devices, self.nodes, self.strategy = devices, nodes, strategy
        self.compile_model = compile_model
        train = recipe.train
        self.checkpoints = RunCheckpoints(
            folder.checkpoints,
            every=train.checkpoint_every,
            keep=train.keep,
            best=train.best,
            val_every=train.val_every,
            max_steps=train.max_steps,
        )
        self.metrics = MetricsFile(folder.metrics_file)

    def train(self, checkpoint: Path | None) -> Path:
        """Run Lightning's loop; turn what can go wrong into messages."""
        first_rank = FOLDER_VARIABLE not in os.environ
        if not first_rank:
            self._loop(checkpoint)
            return self.folder.path
        with self.folder.locked():
            os.environ[FOLDER_VARIABLE] = str(self.folder.path)
            try:
                self._loop(checkpoint)
            finally:
                del os.environ[FOLDER_VARIABLE]
        return self.folder.path

    def _loop(self, checkpoint: Path | None) -> None:
        _quiet()
        keep_freed_memory()
        pl.seed_everything(self.recipe.train.seed, verbose=False)
        task = TranslationTask(
            self.recipe,
            self.data.tokenizer,
            provenance=self.data.corpus.provenance,
            compile_model=self.compile_model,
        )
        self.folder.tokenizer_file.write_text(self.data.tokenizer.to_json(), encoding="utf-8")
        step = 0
        if checkpoint is not None:
            step = read_checkpoint(checkpoint).step
        self.metrics.cut(step)
        trainer = self._trainer(step)
        self._announce(task)
        try:
            trainer.fit(task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        except StopAsked as stop:
            raise Interrupted(
                f"{stop}; go on with: normtrain fit --resume {self.folder.path}"
            ) from stop
        except (RuntimeError, MemoryError) as error:
            if _out_of_memory(error):
                raise RunError(_memory_advice(task, self.recipe)) from error
            raise
        if trainer.is_global_zero:
            done = {"finished": True, "step": trainer.global_step}
            (self.folder.path / "status.json").write_text(json.dumps(done) + "\n")

    def _trainer(self, step: int) -> pl.Trainer:
        train, optim = self.recipe.train, self.recipe.optim
        recorder = Recorder(train.log_every, optim.accumulate)
        callbacks: list[pl.Callback] = [RandomState(), recorder]
        if train.ema is not None:
            # Without buffers: averaging rounds the fixed position tables, which checkpoints leave out.
            callbacks.append(EMAWeightAveraging(decay=train.ema, use_buffers=False))
        if train.patience is not None:
            mode = "max" if train.best == "bleu" else "min"
            callbacks.append(EarlyStopping(f"val_{train.best}", patience=train.patience, mode=mode))
        callbacks += [
            ShowProgress(train.max_steps, recorder, self.say),
            self.checkpoints,
            GracefulStop(self.checkpoints, self.say),
        ]
        board = _Board(
            self.folder.path, name="", version="", purge_step=step + 1 if step else None
        )
        return pl.Trainer(
            accelerator="auto",
            devices=self.devices,
            num_nodes=self.nodes,
            strategy=self.strategy,
            precision=resolve_precision(train.precision)[0],  # type: ignore[arg-type]
            max_steps=train.max_steps,
            val_check_interval=train.val_every * optim.accumulate,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=optim.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=[self.metrics, board],
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=self.folder.path,
        )

    def _announce(self, task: TranslationTask) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        for line in self.data.report:
            self.say(line)
        for line in _size_lines(task.model):
            self.say(line)
        precision = self.recipe.train.precision
        where = "GPU" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        self.say(f"training in {precision} on {where}; run folder {self.folder.path}")


def _size_lines(model: torch.nn.Module) -> list[str]:
    sites = norm_sites(model)
    norms: dict[str, int] = {}
    for name in sites:
        spec = str(model.norms.spec_for(name))  # type: ignore[union-attr, operator]
        norms[spec] = norms.get(spec, 0) + 1
    parameters = sum(p.numel() for p in model.parameters())
    shown = ", ".join(f"{count} × {spec}" for spec, count in norms.items())
    return [f"model: {parameters:,} parameters; norms: {shown}"]


def describe(recipe: Recipe) -> str:
    """The model's size, its norms and the precision a run would have here, a line each.

    The vocabulary counts as ``data.vocab_size``; a small corpus can give fewer types.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """
    recipe = recipes.check_norms(recipe)
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.data.vocab_size)
    precision, reason = resolve_precision(recipe.train.precision)
    lines = [*_size_lines(model), f"precision here: {precision} ({reason})"]
    return "\n".join(lines)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text


def _memory_advice(task: TranslationTask, recipe: Recipe) -> str:
    shape = " and ".join(f"{k} {v}" for k, v in task.batch_shape.items()) or "its first batch"
    return (
        f"out of memory on a batch of {shape} (sentences, tokens); lower data.max_tokens "
        f"(now {recipe.data.max_tokens}), and raise optim.accumulate to keep the update's size"
    )


def _quiet() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*litmodels.*",
        ".*TensorBoard.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*Checkpoint directory.*",
    ):
        warnings.filterwarnings("ignore", message=message)
