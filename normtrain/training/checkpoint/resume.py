"""Check that training can be resumed from a checkpoint, and hand it to Lightning as it was read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from normtrain.config.schema import Recipe
from normtrain.errors import DamagedFile, UserError
from normtrain.files import read_plain
from normtrain.tasks.base import task_of
from normtrain.tasks.optimizers import state_template
from normtrain.training.checkpoint.read import Checkpoint
from normtrain.training.checkpoint.schema import ShardedState, TrainingState, refusal, wrong_part
from normtrain.training.checkpoint.sharded import is_sharded
from normtrain.training.checkpoint.write import PREFIX, save
from normtrain.training.launch import LaunchConfig


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoint files: plain data, whole or not at all.

    Args:
        resumed: the checkpoint that training resumes from, which is not read a second time. It is
            released when Lightning asks for it, since it would take memory during the training.
    """

    def __init__(self, resumed: Checkpoint | None = None) -> None:
        self._read = {} if resumed is None else {resumed.path: resumed.raw}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write next to ``path`` and rename."""
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint as plain data on the CPU."""
        read = self._read.pop(Path(path), None)
        return read_plain(Path(path)) if read is None else read


def check_resumable(checkpoint: Checkpoint, recipe: Recipe) -> LaunchConfig:
    """Check that training can be resumed from a checkpoint.

    Args:
        checkpoint: as read.
        recipe: of the run.

    Returns:
        How the run was launched.

    Raises:
        UserError: a part of the training state is missing, wrong, or of another model.
    """
    path, section = checkpoint.path, checkpoint.section
    sharded = is_sharded(path)
    try:
        (ShardedState if sharded else TrainingState).model_validate(checkpoint.raw)
    except ValidationError as error:
        refused = refusal(path, error)
        if isinstance(refused, DamagedFile):
            raise _not_resumable(path, str(refused).rpartition(": ")[2]) from None
        raise refused from None
    if section.launch is None:
        raise _not_resumable(path, "it lacks launch")
    if section.data.sha256 is None:
        raise wrong_part(path, "data sha256", "a string", None)
    with torch.device("meta"):
        model = task_of(recipe).model(recipe.model, checkpoint.tokenizer.vocab_size)
    found = {name: _shape(weight) for name, weight in checkpoint.raw["state_dict"].items()}
    built = {PREFIX + name: _shape(weight) for name, weight in model.state_dict().items()}
    for name in sorted(found.keys() | built.keys()):
        if found.get(name) != built.get(name):
            raise UserError(
                f"{path} cannot be resumed: {name} has {found.get(name, 'no weight')} there, and "
                f"by its recipe {built.get(name, 'no weight')}"
            )
    if not sharded:
        template = state_template(model, recipe.optim)
        _check_optimizer(path, checkpoint.raw["optimizer_states"][0], template)
    return section.launch


def _not_resumable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be resumed: {reason} (a checkpoint made by average, convert or import has "
        "no training state)"
    )


def _check_optimizer(path: Path, found: dict[str, Any], template: dict[str, Any]) -> None:
    """Compare an optimizer's saved state with the state that this optimizer has after a step.

    A parameter without state is one that no gradient has reached.
    """
    groups, wanted = found["param_groups"], template["param_groups"]
    if len(groups) != len(wanted):
        raise wrong_part(path, "optimizer_states param_groups", f"a list of {len(wanted)}", groups)
    for group, expected in zip(groups, wanted, strict=True):
        if group.get("params") != expected["params"]:
            ids = f"the ids of {len(expected['params'])} parameters"
            raise wrong_part(path, "optimizer_states params", ids, group.get("params"))
        for key, value in expected.items():
            _check_value(path, f"optimizer_states {key}", group.get(key), value)
    for number, expected in template["state"].items():
        for key, value in expected.items() if number in found["state"] else ():
            place = f"optimizer_states {number} {key}"
            _check_value(path, place, found["state"][number].get(key), value)


def _check_value(path: Path, place: str, found: Any, expected: Any) -> None:
    """Check a value of the saved state by type, and a tensor by shape; flags may differ."""
    if isinstance(expected, Tensor):
        dense = isinstance(found, Tensor) and found.layout is torch.strided
        if not (dense and found.shape == expected.shape and found.is_floating_point()):
            raise wrong_part(path, place, f"a float tensor of {tuple(expected.shape)}", found)
    elif type(expected) is float and not (type(found) in (int, float) and math.isfinite(found)):
        raise wrong_part(path, place, "a finite number", found)


def _shape(weight: Tensor) -> str:
    return f"shape {tuple(weight.shape)}"
