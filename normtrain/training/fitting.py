"""Start a run: a recipe becomes a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Unpack

import torch

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.data.base import CorpusData
from normtrain.errors import UserError
from normtrain.files import write_text
from normtrain.hf.pretrained import Pretrained
from normtrain.logs import show_messages_by_default
from normtrain.ranks import is_first_process
from normtrain.tasks.base import task_of, whole_source
from normtrain.training.checkpoint import Checkpoint
from normtrain.training.folder import await_folder, new_folder
from normtrain.training.importing import note_start
from normtrain.training.launch import LaunchConfig, LaunchOptions
from normtrain.training.loop import TrainingRun, size_line
from normtrain.training.machine import check_room, resolve_precision
from normtrain.training.strategies import check_strategy


def fit(
    recipe: Recipe,
    *,
    init: Pretrained | None = None,
    out: Path | None = None,
    **options: Unpack[LaunchOptions],
) -> Path:
    """Train a recipe from the start.

    Corpus and tokenizer are made first, so that a mistake in them leaves no folder behind.
    Messages go to the logger ``normtrain``, which prints to stderr unless logging is configured.

    Args:
        recipe: every choice of the run.
        init: a pretrained model to start from, see `read_pretrained`; by default weights are
            random. The recipe must describe that model but for its norms, as `start_recipe` does.
        out: the run's folder; by default ``runs/<recipe>-<norm>-<time>``.
        options: see `LaunchOptions`.

    Returns:
        The run's folder.

    Raises:
        UserError: the recipe, the data or ``out`` is wrong.
        RunError: the run cannot continue: no memory, no disk, a non-finite loss.
        Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
    """
    show_messages_by_default()
    launch = LaunchConfig().changed(**options)
    recipe = settle(recipes.check_names(recipe))
    check_strategy(launch, recipe)
    launch = launch.for_new_run(recipe.optim.accumulate)
    build_model_on_meta(recipe, room=True)
    if init is not None:
        init.check(recipe)
    data = set_up_data(recipe, launch, given=None if init is None else init.tokenizer)
    folder = new_folder(recipe, out) if is_first_process() else await_folder(out)
    if is_first_process():
        write_text(folder.launch_file, launch.model_dump_json() + "\n")
        if init is not None:
            note_start(folder, init)
    TrainingRun(recipe, folder, data, launch, pretrained=init).train()
    return folder.path


def describe(recipe: Recipe) -> str:
    """Return the model's size, its norms and the precision a run would have here, a line each.

    The vocabulary counts as ``data.vocab_size``; a small corpus can give fewer ids.

    Raises:
        UserError: the recipe asks for a model that cannot be built.
    """
    recipe = recipes.check_names(recipe)
    model_line = build_model_on_meta(recipe)
    precision, reason = resolve_precision(recipe.train.precision)
    return f"{model_line}\nprecision here: {precision} ({reason})"


def build_model_on_meta(recipe: Recipe, *, room: bool = False) -> str:
    """Build the model on the meta device, to find mistakes; return a line on its size.

    Args:
        recipe: describes the model.
        room: also check that the memory holds its training.

    Raises:
        UserError: the recipe asks for a model that cannot be built.
        RunError: with ``room``, there is not enough memory.
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
            f"recipe {recipe.name}: a model of these sizes cannot be built; lower model.d_model, "
            "model.d_ff, model.max_positions or data.vocab_size"
        ) from error
    if room:
        check_room(sum(p.numel() for p in model.parameters()))
    line = size_line(model)
    return line if known else f"{line}; and the embeddings of the text's tokens"


def settle(recipe: Recipe) -> Recipe:
    """Replace what depends on this machine and folder by what it stands for here."""
    changes = [f"data.source={json.dumps(whole_source(recipe))}"]
    if recipe.train.precision == "auto":
        precision, _ = resolve_precision("auto")
        changes.append(f"train.precision={json.dumps(precision.removesuffix('-true'))}")
    return recipes.override(recipe, changes)


def set_up_data(
    recipe: Recipe, launch: LaunchConfig, read: Checkpoint | None = None, given: Any = None
) -> CorpusData[Any]:
    """Build and set up the data of a run.

    Args:
        recipe: every choice of the run.
        launch: how many ranks share the batches.
        read: the checkpoint that is resumed; it has the tokenizer, and the revision of the corpus.
        given: the tokenizer of a pretrained model, without ``read``.

    Raises:
        UserError: the corpus cannot be used, or is too small for so many ranks.
    """
    revision = recipe.data.revision
    if read is not None and read.data["kind"] == "hub":
        revision = read.data["revision"]  # where the recipe pins none, that of the start
    data = task_of(recipe).data(
        recipe,
        revision=revision,
        tokenizer=given if read is None else read.tokenizer,
        total_batches=recipe.train.max_steps * launch.step_batches,
    )
    data.setup("fit")
    data.check_ranks(launch.processes)
    return data
