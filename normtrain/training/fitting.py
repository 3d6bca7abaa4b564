"""Training: a recipe becomes a run folder; a run folder goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.data.base import CorpusData
from normtrain.errors import UserError
from normtrain.files import write_text
from normtrain.hf.pretrained import Pretrained
from normtrain.ranks import is_first_process
from normtrain.tasks.base import task_of, whole_source
from normtrain.training.callbacks.progress import Say
from normtrain.training.checkpoint import (
    AtomicCheckpointIO,
    Checkpoint,
    check_resumable,
    is_sharded,
    migrate_launch,
)
from normtrain.training.damage import ResumeFrom, newest_whole, numbered
from normtrain.training.determinism import changes_since
from normtrain.training.folder import RunFolder, await_folder, new_folder, newest_run
from normtrain.training.importing import note_start, noted_start
from normtrain.training.launch import LaunchConfig, check_devices
from normtrain.training.loop import TrainingRun, size_line
from normtrain.training.machine import check_room, resolve_precision
from normtrain.training.strategies import check_strategy


def fit(
    recipe: Recipe,
    *,
    init: Pretrained | None = None,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str | None = None,
    compile: bool = False,
    timeout: int | None = None,
    say: Say | None = None,
) -> Path:
    """Train a recipe from the beginning.

    Corpus and tokenizer are made first, so that a mistake in them leaves no folder behind.

    Args:
        recipe: every choice of the run.
        init: the model it begins with, see `read_pretrained`; by default with random weights. The
            recipe must describe that model, but for its norms, as `start_recipe` sees to.
        out: the run's folder; by default ``runs/<recipe>-<norm>-<time>``.
        devices: devices of each machine; by default one.
        nodes: machines; by default one.
        strategy: ``"auto"`` (the default), ``"ddp"`` or ``"fsdp2"``.
        compile: run the training forward pass through ``torch.compile``.
        timeout: seconds that a process waits for an answer of the others; by default 1800.
        say: prints messages; by default to stderr.

    Returns:
        The run's folder.

    Raises:
        ValueError: for a mistake in the recipe, the data or ``out``.
        RunError: if the run can't go on: no memory, no disk, a loss that is no number.
        Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
    """
    say = say or Say()
    launch = _launch(LaunchConfig(), devices, nodes, strategy, compile, timeout)
    recipe = _settle(recipes.check_names(recipe))
    check_strategy(launch, recipe)
    launch = _with_step_batches(launch, recipe)
    build_model_on_meta(recipe, room=True)
    if init is not None:
        init.check(recipe)
    data = _data(recipe, launch, given=None if init is None else init.tokenizer)
    data.setup("fit")
    data.check_ranks(launch.processes)
    folder = new_folder(recipe, out) if is_first_process() else await_folder(out)
    if is_first_process():
        write_text(folder.machine_file, launch.model_dump_json() + "\n")
    if init is not None and is_first_process():
        note_start(folder, init)
    TrainingRun(recipe, folder, data, launch, say, pretrained=init).train()
    return folder.path


def resume(
    run: Path | Literal["auto"],
    overrides: Sequence[str] = (),
    *,
    recipe: Recipe | None = None,
    init: Pretrained | None = None,
    out: Path | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str | None = None,
    compile: bool = False,
    timeout: int | None = None,
    say: Say | None = None,
) -> Path:
    """Go on with a run from its last checkpoint; the rest is bit-equal to a run never stopped.

    On another number of processes it goes on with the same batches, equal but for rounding.

    Args:
        run: the run's folder. ``"auto"`` is ``out`` if it holds a run; without ``out`` the newest
            run of this recipe under ``runs/``; where there is none, a new run.
        overrides: ``key=value`` settings the user gave again; they must match the run's.
        recipe: the recipe the user named again; it must match the run's too.
        init: what ``"auto"`` begins a new run with; a run that is there has its own weights.
        out: the folder for ``"auto"``.
        devices: by default as the run was started, as for the next three.
        nodes: machines; another number of processes must divide the batches of an update.
        strategy: see :func:`fit`.
        compile: see :func:`fit`.
        timeout: see :func:`fit`; by default as the run was started.
        say: prints messages.

    Returns:
        The run's folder.

    Raises:
        ValueError: if there is no such run, the recipe or the text differ from the run's, or the
            batches of an update can't be shared by so many processes.
        RunError, Interrupted: as for :func:`fit`.
    """
    say = say or Say()
    given: _Given = {
        "devices": devices, "nodes": nodes, "strategy": strategy, "compile": compile,
        "timeout": timeout,
    }  # fmt: skip
    if recipe is not None:
        recipe = recipes.override(recipe, overrides)
    folder = _newest(recipe, out) if run == "auto" else RunFolder(Path(run))
    if folder is None:
        if recipe is None:
            raise UserError("there is no run to go on with; name a --recipe to start one")
        say("no run to go on with: starting one")
        return fit(recipe, init=init, out=out, say=say, **given)
    theirs = folder.recipe()
    _check_same(theirs, recipe or recipes.override(theirs, overrides), folder)
    if (step := folder.finished()) is not None:
        say(f"{folder.path} has finished, after step {step}: nothing to do")
        return folder.path
    if not numbered(folder) and not folder.last.exists():
        say(f"{folder.path} has no checkpoint yet: starting from the beginning")
        _begin_again(theirs, folder, given, say)
        return folder.path
    _go_on(theirs, folder, given, say)
    return folder.path


def _go_on(recipe: Recipe, folder: RunFolder, given: _Given, say: Say) -> None:
    """Train on from the newest whole checkpoint."""
    left = _as_left(recipe, folder, given, say)
    say(f"going on with {folder.path} after step {left.step}")
    training = TrainingRun(
        recipe,
        folder,
        left.data,
        left.launch,
        say,
        origin=left.origin,
        ahead=[left.beginning],
        checkpoint_io=left.checkpoint_io,
    )
    training.train(left.beginning.path, left.step)


def _begin_again(recipe: Recipe, folder: RunFolder, given: _Given, say: Say) -> None:
    """Train in a folder that a run left before its first checkpoint."""
    init = noted_start(folder)
    started = _noted_launch(folder, say)
    launch = _launch(started or LaunchConfig(), **given)
    if started is None:
        launch = _with_step_batches(launch, recipe)
    else:
        _check_launch(launch, started, folder)
    check_strategy(launch, recipe)
    data = _data(recipe, launch, given=None if init is None else init.tokenizer)
    data.setup("fit")
    data.check_ranks(launch.processes)
    TrainingRun(recipe, folder, data, launch, say, pretrained=init).train()


def _noted_launch(folder: RunFolder, say: Say) -> LaunchConfig | None:
    """Return how a run without a checkpoint was launched."""
    try:
        noted = json.loads(folder.machine_file.read_text(encoding="utf-8"))
        return LaunchConfig.model_validate(migrate_launch(noted))
    except FileNotFoundError:
        say(f"{folder.path} does not say what it was started on; name --devices if not on one")
        return None
    except ValueError as error:
        raise UserError(f"{folder.machine_file} is damaged; start a new run") from error


@dataclass(frozen=True)
class _Left:
    """How a run's last checkpoint left it."""

    data: CorpusData
    launch: LaunchConfig
    step: int
    origin: dict[str, str] | None
    beginning: ResumeFrom
    checkpoint_io: AtomicCheckpointIO


def _as_left(recipe: Recipe, folder: RunFolder, given: _Given, say: Say) -> _Left:
    """A run as its last checkpoint left it, or the newest before it that is whole.

    Only ``checkpoint_io`` holds the checkpoint that was read, until Lightning has taken it.
    """
    read, beginning = newest_whole(folder, say)
    started = check_resumable(read, recipe)
    launch = _launch(started, **given)
    _check_launch(launch, started, folder)
    if launch.processes != started.processes:
        say(_other_processes(launch, started))
    for change in changes_since(read.section.environment.model_dump()):
        say(change)
    data = _data(recipe, launch, read)
    data.setup("fit")
    data.check_ranks(launch.processes)
    _check_text(data, read)
    reader = AtomicCheckpointIO(None if is_sharded(read.path) else read)
    return _Left(data, launch, read.step, read.section.init, beginning, reader)


def describe(recipe: Recipe) -> str:
    """The model's size, its norms and the precision a run would have here, a line each.

    The vocabulary counts as ``data.vocab_size``; a small corpus can give fewer types.

    Raises:
        ValueError: if the recipe asks for a model that can't be built.
    """
    recipe = recipes.check_names(recipe)
    model_line = build_model_on_meta(recipe)
    precision, reason = resolve_precision(recipe.train.precision)
    return f"{model_line}\nprecision here: {precision} ({reason})"


def build_model_on_meta(recipe: Recipe, *, room: bool = False) -> str:
    """Build the model without memory, to find mistakes; returns a line on its size.

    Raises:
        UserError: the recipe asks for a model that can't be built.
        RunError: with ``room``, this machine's memory can't hold its training.
    """
    task = task_of(recipe)
    known = task.vocab_size(recipe)
    try:
        with torch.device("meta"):
            model = task.model(recipe.model, known or 1)
    except UserError:
        raise
    except (RuntimeError, OverflowError) as error:  # torch's counts of bytes are 64 bits long
        raise UserError(
            f"recipe {recipe.name}: a model of these sizes can't be built; lower model.d_model, "
            "model.d_ff, model.max_positions or data.vocab_size"
        ) from error
    if room:
        check_room(sum(p.numel() for p in model.parameters()))
    line = size_line(model)
    return line if known else f"{line}; and vectors for what the text's tokens will be"


class _Given(TypedDict):
    """What the user asks of the launch; None and False ask nothing."""

    devices: int | None
    nodes: int | None
    strategy: str | None
    compile: bool
    timeout: int | None


def _launch(
    started: LaunchConfig,
    devices: int | None,
    nodes: int | None,
    strategy: str | None,
    compile: bool,
    timeout: int | None,
) -> LaunchConfig:
    """Return a run's launch config with the changes that the user asks for."""
    given = {"devices": devices, "nodes": nodes, "strategy": strategy, "compile": compile}
    given |= {"timeout": timeout}
    launch = started.model_copy(update={key: value for key, value in given.items() if value})
    check_devices(launch.devices, launch.nodes)
    return launch


def _check_text(data: CorpusData, read: Checkpoint) -> None:
    found, trained = data.corpus.provenance["sha256"], read.data["sha256"]
    if found != trained:
        raise UserError(
            f"the text in {data.source} is not what {read.path} was trained on; put it back, or "
            f"start a new run"
        )


def _with_step_batches(launch: LaunchConfig, recipe: Recipe) -> LaunchConfig:
    """Return the launch config of a new run: each process accumulates as the recipe says."""
    return launch.model_copy(update={"step_batches": launch.processes * recipe.optim.accumulate})


def _other_processes(launch: LaunchConfig, started: LaunchConfig) -> str:
    return (
        f"{launch.processes} processes go on, before it were {started.processes}: the same "
        f"batches make each update, so losses agree but for rounding; dropout draws other numbers"
    )


def _check_launch(launch: LaunchConfig, started: LaunchConfig, folder: RunFolder) -> None:
    batches, now = started.step_batches, launch.processes
    if batches % now:
        fitting = [str(n) for n in range(1, batches + 1) if batches % n == 0]
        raise UserError(
            f"an update of {folder.path} takes {batches} batches, which {now} processes can't "
            f"share evenly; go on with {' or '.join(fitting)}"
        )
    if (launch.strategy == "fsdp2") != (started.strategy == "fsdp2"):
        raise UserError(
            f"{folder.path} was started with --strategy {started.strategy}, whose checkpoints "
            f"{launch.strategy} can't go on with; leave --strategy out"
        )
    if launch.compile != started.compile:
        raise UserError(f"{folder.path} was started without --compile and goes on without it")


def _newest(recipe: Recipe | None, out: Path | None) -> RunFolder | None:
    if out is not None:
        folder = RunFolder(out)
        return folder if folder.recipe_file.exists() else None
    return newest_run(None if recipe is None else _settle(recipes.check_names(recipe)))


def _check_same(theirs: Recipe, wanted: Recipe, folder: RunFolder) -> None:
    if wanted.train.precision == "auto":  # the run's own was settled when it started
        wanted = recipes.override(wanted, [f"train.precision='{theirs.train.precision}'"])
    changes = recipes.diff(theirs, _settle(recipes.check_names(wanted)))
    if changes:
        raise UserError(
            f"{folder.path} was started with another recipe and goes on only with its own; "
            f"changed: {'; '.join(changes)}"
        )


def _settle(recipe: Recipe) -> Recipe:
    """Replace what depends on this machine and this folder by what it stands for here."""
    changes = [f"data.source={json.dumps(whole_source(recipe))}"]
    if recipe.train.precision == "auto":
        precision, _ = resolve_precision("auto")
        changes.append(f"train.precision={json.dumps(precision.removesuffix('-true'))}")
    return recipes.override(recipe, changes)


def _data(
    recipe: Recipe, launch: LaunchConfig, read: Checkpoint | None = None, given: Any = None
) -> CorpusData:
    revision = recipe.data.revision
    if read is not None and read.data["kind"] == "hub":
        revision = read.data["revision"]  # where the recipe pins none, the one it began with
    tokenizer = given if read is None else read.tokenizer
    return task_of(recipe).data(
        recipe,
        revision=revision,
        tokenizer=tokenizer,
        total_batches=recipe.train.max_steps * launch.step_batches,
    )
