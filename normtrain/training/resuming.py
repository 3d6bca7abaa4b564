"""Resume a run from its last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.data.base import CorpusData
from normtrain.errors import UserError
from normtrain.hf.pretrained import Pretrained
from normtrain.logs import LOGGER, show_messages_by_default
from normtrain.training.checkpoint import (
    AtomicCheckpointIO,
    Checkpoint,
    check_resumable,
    is_sharded,
    migrate_launch,
)
from normtrain.training.damage import ResumeFrom, newest_whole, numbered
from normtrain.training.determinism import changes_since
from normtrain.training.fitting import fit, set_up_data, settle
from normtrain.training.folder import RunFolder, newest_run
from normtrain.training.importing import noted_start
from normtrain.training.launch import LaunchConfig, LaunchOptions
from normtrain.training.loop import TrainingRun
from normtrain.training.strategies import check_strategy


def resume(
    run: Path | Literal["auto"],
    overrides: Sequence[str] = (),
    *,
    recipe: Recipe | None = None,
    init: Pretrained | None = None,
    out: Path | None = None,
    **options: Unpack[LaunchOptions],
) -> Path:
    """Resume a run from its last checkpoint; the rest is bitwise identical to a run never stopped.

    Another number of ranks resumes with the same batches, equal but for rounding.

    Args:
        run: the run's folder. ``"auto"`` is ``out`` if it holds a run; without ``out`` the newest
            run of this recipe under ``runs/``; where there is none, a new run.
        overrides: ``key=value`` settings that the user gave again; they must match the run's.
        recipe: the recipe that the user named again; it must match the run's too.
        init: what ``"auto"`` starts a new run from; an existing run has its own weights.
        out: the folder for ``"auto"``.
        options: see `LaunchOptions`; by default as the run was started. The number of ranks must
            divide the batches of an optimizer step.

    Returns:
        The run's folder.

    Raises:
        UserError: there is no such run, the recipe or the text differ from the run's, or the
            batches of an optimizer step cannot be shared by so many ranks.
        RunError, Interrupted: as for `fit`.
    """
    show_messages_by_default()
    if recipe is not None:
        recipe = recipes.override(recipe, overrides)
    folder = _newest(recipe, out) if run == "auto" else RunFolder(Path(run))
    if folder is None:
        if recipe is None:
            raise UserError("there is no run to resume; name a --recipe to start one")
        LOGGER.info("no run to resume: starting one")
        return fit(recipe, init=init, out=out, **options)
    saved = folder.recipe()
    _check_same(saved, recipe or recipes.override(saved, overrides), folder)
    if (step := folder.finished()) is not None:
        LOGGER.info(f"{folder.path} has finished, after step {step}: nothing to do")
    elif not numbered(folder) and not folder.last.exists():
        LOGGER.info(f"{folder.path} has no checkpoint yet: starting from the beginning")
        _restart(saved, folder, options)
    else:
        run_from, choice = _prepare(saved, folder, options)
        LOGGER.info(f"resuming {folder.path} after step {choice.step}")
        run_from.train(choice.path, choice.step)
    return folder.path


def _restart(recipe: Recipe, folder: RunFolder, options: LaunchOptions) -> None:
    """Train in a folder whose run stopped before its first checkpoint."""
    init = noted_start(folder)
    started = _noted_launch(folder)
    launch = (started or LaunchConfig()).changed(**options)
    if started is None:
        launch = launch.for_new_run(recipe.optim.accumulate)
    else:
        _check_launch(launch, started, folder)
    check_strategy(launch, recipe)
    data = set_up_data(recipe, launch, given=None if init is None else init.tokenizer)
    TrainingRun(recipe, folder, data, launch, pretrained=init).train()


def _noted_launch(folder: RunFolder) -> LaunchConfig | None:
    """Return how a run without a checkpoint was launched."""
    try:
        noted = json.loads(folder.launch_file.read_text(encoding="utf-8"))
        return LaunchConfig.model_validate(migrate_launch(noted))
    except FileNotFoundError:
        LOGGER.info(
            f"{folder.launch_file} not found; give --devices if the run had several devices"
        )
        return None
    except ValueError as error:
        raise UserError(f"{folder.launch_file} is damaged; start a new run") from error


def _prepare(
    recipe: Recipe, folder: RunFolder, options: LaunchOptions
) -> tuple[TrainingRun, ResumeFrom]:
    """Read the newest checkpoint that is whole, and check that training can resume from it.

    Only the run's `AtomicCheckpointIO` holds the checkpoint, until Lightning has taken it.
    """
    read, choice = newest_whole(folder)
    started = check_resumable(read, recipe)
    launch = started.changed(**options)
    _check_launch(launch, started, folder)
    if launch.processes != started.processes:
        LOGGER.info(
            f"{launch.processes} ranks instead of {started.processes}: each optimizer step has "
            "the same batches, losses agree but for rounding, dropout uses a different random "
            "stream"
        )
    for change in changes_since(read.section.environment.model_dump()):
        LOGGER.info(change)
    data = set_up_data(recipe, launch, read)
    _check_text(data, read)
    reader = AtomicCheckpointIO(None if is_sharded(read.path) else read)
    origin = read.section.init
    run = TrainingRun(
        recipe, folder, data, launch, origin=origin, ahead=[choice], checkpoint_io=reader
    )
    return run, choice


def _check_text(data: CorpusData[Any], read: Checkpoint) -> None:
    if data.corpus.provenance["sha256"] != read.data["sha256"]:
        raise UserError(
            f"the text in {data.source} is not what {read.path} was trained on; restore it, or "
            "start a new run"
        )


def _check_launch(launch: LaunchConfig, started: LaunchConfig, folder: RunFolder) -> None:
    batches, ranks = started.step_batches, launch.processes
    if batches % ranks:
        fitting = [str(n) for n in range(1, batches + 1) if batches % n == 0]
        raise UserError(
            f"the number of ranks must divide the {batches} batches of an optimizer step of "
            f"{folder.path}, got {ranks}; use {' or '.join(fitting)}"
        )
    if (launch.strategy == "fsdp2") != (started.strategy == "fsdp2"):
        raise UserError(
            f"{folder.path} was started with --strategy {started.strategy}, whose checkpoints "
            f"{launch.strategy} cannot resume from; leave --strategy out"
        )
    if launch.compile != started.compile:
        raise UserError(f"{folder.path} was started without --compile; leave it out")


def _newest(recipe: Recipe | None, out: Path | None) -> RunFolder | None:
    if out is not None:
        folder = RunFolder(out)
        return folder if folder.recipe_file.exists() else None
    return newest_run(None if recipe is None else settle(recipes.check_names(recipe)))


def _check_same(saved: Recipe, wanted: Recipe, folder: RunFolder) -> None:
    if wanted.train.precision == "auto":  # the run's was settled when it started
        wanted = recipes.override(wanted, [f"train.precision='{saved.train.precision}'"])
    changes = recipes.diff(saved, settle(recipes.check_names(wanted)))
    if changes:
        raise UserError(
            f"{folder.path} was started with another recipe and resumes only with its own; "
            f"changed: {'; '.join(changes)}"
        )
