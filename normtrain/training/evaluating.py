"""Evaluate and use the model of a run or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from normtrain.errors import UserError
from normtrain.tasks.base import EvaluationRequest, TrainedModel, task_of
from normtrain.training.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from normtrain.training.machine import keep_freed_memory
from normtrain.training.results import write_results
from normtrain.training.together import together


def load_trained(
    target: Path, task: str | None = None, device: torch.device | None = None
) -> tuple[Checkpoint, TrainedModel]:
    """Read a checkpoint and build its model, in eval mode, on the device that computes.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        task: what it must be trained for; None takes any.
        device: by default a GPU, if there is one.

    Raises:
        UserError: the checkpoint cannot be used, or is of another task.
    """
    keep_freed_memory()
    checkpoint = read_checkpoint(Path(target))
    found = task_of(checkpoint.recipe)
    if task is not None and found.name != task:
        raise UserError(
            f"{checkpoint.path} must be of the task {task}, got {found.name}; use "
            f"'normtrain {found.command}'"
        )
    model = checkpoint.model()
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trained = TrainedModel(
        checkpoint.path, checkpoint.recipe, checkpoint.tokenizer, model, checkpoint.data
    )
    return checkpoint, trained


def evaluate(
    target: Path,
    *,
    split: str = "test",
    data: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model on a split, as its task does, and write the result into the run folder.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        split: ``train``, ``valid``, ``test``, or any other file stem of a corpus folder.
        data: another corpus than the run's.
        devices: devices of each machine, which share the work; by default one.
        nodes: machines; by default one.
        progress: called with the work done and in all.
        options: of the task, None for its default: ``beam`` and ``length_penalty`` of a
            translation, ``stride`` and ``batch_size`` of a language model.

    Returns:
        Plain values: scores, how they were obtained, where they were written.

    Raises:
        UserError: a checkpoint or a corpus cannot be used, or another task has the option.
        RunError: the results cannot be written.
    """
    target = Path(target)
    find_checkpoint(target)  # a wrong path is reported before processes are started
    given = {name: value for name, value in options.items() if value is not None}
    with together(devices, nodes) as place:
        checkpoint, trained = load_trained(target, device=place.device)
        task = task_of(checkpoint.recipe)
        task.check_options(given, checkpoint.path)
        found = task.evaluate(
            trained,
            EvaluationRequest(split, data, given, place.rank, place.world, place.device, progress),
        )
        return write_results(target, checkpoint, found, data=data, split=split, write=place.first)


def translate(target: Path, lines: Iterable[str], **options: Any) -> Iterator[str]:
    """Translate line by line; as many lines come out as go in, in order.

    Args:
        target: a run folder or a checkpoint file.
        lines: source lines; empty ones stay empty.
        options: as for `normtrain.tasks.translation.evaluate.translate`.

    Raises:
        UserError: the checkpoint cannot be used; before any line is read.
    """
    from normtrain.tasks.translation.evaluate import translate as translated

    return translated(load_trained(target, "translation")[1], lines, **options)


def generate(target: Path, prompt: str = "", **options: Any) -> Iterator[str]:
    """Continue a prompt, piece by piece.

    Args:
        target: a run folder or a checkpoint file.
        prompt: the start of the text; empty starts a new text.
        options: as for `normtrain.tasks.language.generate.generate`.

    Raises:
        UserError: the checkpoint cannot be used, or a setting is out of range; before the first
            piece.
    """
    from normtrain.tasks.language.generate import generate as generated

    return generated(load_trained(target, "language")[1], prompt, **options)
