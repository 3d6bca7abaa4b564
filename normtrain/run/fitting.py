"""Training: a recipe becomes a run folder; a run folder goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from normtrain import recipe as recipes
from normtrain.callbacks.progress import Say
from normtrain.data.module import TranslationData
from normtrain.data.tokenization import Tokenizer
from normtrain.errors import UserError
from normtrain.models import build_model
from normtrain.recipe import Recipe
from normtrain.run.checkpoint import read_checkpoint
from normtrain.run.folder import FOLDER_VARIABLE, RunFolder, new_folder, newest_run
from normtrain.run.loop import Machine, TrainingRun, size_line
from normtrain.run.machine import resolve_precision


def fit(
    recipe: Recipe,
    *,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,
    say: Say | None = None,
) -> Path:
    """Train a recipe from the beginning.

    Corpus and tokenizer are made first, so that a mistake in them leaves no folder behind.

    Args:
        recipe: every choice of the run.
        out: the run's folder; by default ``runs/<recipe>-<norm>-<time>``.
        devices: devices of each machine; by default one.
        nodes: machines.
        strategy: ``"auto"`` or ``"ddp"``.
        compile: run the training forward pass through ``torch.compile``.
        say: prints messages; by default to stderr.

    Returns:
        The run's folder.

    Raises:
        ValueError: for a mistake in the recipe, the data or ``out``.
        RunError: if the run can't go on: no memory, no disk, a loss that is no number.
        Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
    """
    say = say or Say()
    machine = _machine(devices, nodes, strategy, compile)
    recipe = _settle(recipes.check_norms(recipe))
    build_model_on_meta(recipe)
    data = _data(recipe)
    data.setup("fit")
    started = os.environ.get(FOLDER_VARIABLE)
    folder = RunFolder(Path(started)) if started else new_folder(recipe, out)
    TrainingRun(recipe, folder, data, machine, say).train(checkpoint=None)
    return folder.path


def resume(
    run: Path | Literal["auto"],
    overrides: Sequence[str] = (),
    *,
    recipe: Recipe | None = None,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,
    say: Say | None = None,
) -> Path:
    """Go on with a run from its last checkpoint; the rest is bit-equal to a run never stopped.

    Args:
        run: the run's folder. ``"auto"`` is ``out`` if it holds a run; without ``out`` the newest
            run of this recipe under ``runs/``; where there is none, a new run.
        overrides: ``key=value`` settings the user gave again; they must match the run's.
        recipe: the recipe the user named again; it must match the run's too.
        out: the folder for ``"auto"``.
        devices: see :func:`fit`, as for the next three.
        nodes: machines.
        strategy: how devices share the work.
        compile: compile the training forward pass.
        say: prints messages.

    Returns:
        The run's folder.

    Raises:
        ValueError: if there is no such run, or the recipe differs from the run's.
        RunError, Interrupted: as for :func:`fit`.
    """
    say = say or Say()
    machine = _machine(devices, nodes, strategy, compile)
    if recipe is not None:
        recipe = recipes.override(recipe, overrides)
    folder = _newest(recipe, out) if run == "auto" else RunFolder(Path(run))
    if folder is None:
        if recipe is None:
            raise UserError("there is no run to go on with; name a --recipe to start one")
        say("no run to go on with: starting one")
        return fit(recipe, out=out, say=say, **asdict(machine))
    theirs = folder.recipe()
    _check_same(theirs, recipe or recipes.override(theirs, overrides), folder)
    if (step := folder.finished()) is not None:
        say(f"{folder.path} has finished, after step {step}: nothing to do")
        return folder.path
    tokenizer, checkpoint = None, folder.last if folder.last.exists() else None
    if checkpoint is None:
        say(f"{folder.path} has no checkpoint yet: starting from the beginning")
    else:
        read = read_checkpoint(checkpoint)
        tokenizer = read.tokenizer
        say(f"going on with {folder.path} after step {read.step}")
    data = _data(theirs, tokenizer)
    data.setup("fit")
    TrainingRun(theirs, folder, data, machine, say).train(checkpoint)
    return folder.path


def describe(recipe: Recipe) -> str:
    """The model's size, its norms and the precision a run would have here, a line each.

    The vocabulary counts as ``data.vocab_size``; a small corpus can give fewer types.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """
    recipe = recipes.check_norms(recipe)
    model_line = build_model_on_meta(recipe)
    precision, reason = resolve_precision(recipe.train.precision)
    return f"{model_line}\nprecision here: {precision} ({reason})"


def build_model_on_meta(recipe: Recipe) -> str:
    """Build the model without memory, to find mistakes; returns a line on its size."""
    with torch.device("meta"):
        return size_line(build_model(recipe.model, recipe.data.vocab_size))


def _machine(devices: int | None, nodes: int, strategy: str, compiled: bool) -> Machine:
    if torch.cuda.is_available() and (devices or 1) > torch.cuda.device_count():
        raise UserError(f"--devices is {devices}, but there are {torch.cuda.device_count()} here")
    return Machine(devices or 1, nodes, strategy, compiled)


def _newest(recipe: Recipe | None, out: Path | None) -> RunFolder | None:
    if out is not None:
        folder = RunFolder(out)
        return folder if folder.recipe_file.exists() else None
    return newest_run(None if recipe is None else _settle(recipes.check_norms(recipe)))


def _check_same(theirs: Recipe, wanted: Recipe, folder: RunFolder) -> None:
    if wanted.train.precision == "auto":  # the run's own was settled when it started
        wanted = recipes.override(wanted, [f"train.precision='{theirs.train.precision}'"])
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


def _data(recipe: Recipe, tokenizer: Tokenizer | None = None) -> TranslationData:
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
