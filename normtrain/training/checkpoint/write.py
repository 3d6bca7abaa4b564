"""Write checkpoints, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normtrain.config.schema import Recipe
from normtrain.errors import UserError
from normtrain.files import write_atomically
from normtrain.models import norm_sites
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import TaskTokenizer
from normtrain.training.checkpoint.schema import FORMAT_VERSION, CheckpointSection

PREFIX = "model."
"""What weights of the model begin with in ``state_dict``: its name in the LightningModule."""


def recorded_norms(model: TokenModel) -> dict[str, Any]:
    """Return what a section records of a model's norms: ``rules`` and ``norms``."""
    return {
        "rules": model.norms.to_plain(),
        "norms": {name: str(model.norms.spec_for(name)) for name in norm_sites(model)},
    }


def make_section(
    recipe: Recipe, tokenizer: TaskTokenizer, model: TokenModel, **more: Any
) -> CheckpointSection:
    """Return the section that makes a checkpoint self-contained.

    Args:
        recipe: every choice of the run.
        tokenizer: text to token ids and back.
        model: with the norms of the recipe.
        more: further parts of `CheckpointSection` by name; ``data`` is required.
    """
    plain = {
        "version": FORMAT_VERSION,
        "recipe": recipe.plain(),
        "tokenizer": tokenizer.to_json(),
        **recorded_norms(model),
        **more,
    }
    return CheckpointSection.model_validate(plain)


def write_checkpoint(
    path: Path, section: CheckpointSection, weights: dict[str, Tensor], step: int
) -> None:
    """Write a checkpoint that has no training state: to evaluate, export and start from.

    Args:
        path: the file.
        section: what makes it self-contained.
        weights: the model's state dict.
        step: optimizer steps done.

    Raises:
        RunError: the file cannot be written.
    """
    plain = {
        "state_dict": {PREFIX + name: weight for name, weight in weights.items()},
        "normtrain": section.plain(),
        "global_step": step,
    }
    save(plain, path)


def save(plain: dict[str, Any], path: Path) -> None:
    """Write plain data next to ``path`` and rename.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomically(path, lambda temporary: torch.save(plain, temporary))


def check_output(output: Path) -> None:
    """Refuse a path where a new checkpoint must not be written.

    Raises:
        UserError: ``output`` is a folder, a device, or among the checkpoints of a run, where
            resuming and averaging would take it for one of the run's own.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; -o takes the name of a file")
    if output.exists() and not output.is_file():
        raise UserError(f"{output} is not a regular file; -o takes the name of a new file")
    folder = output.absolute().parent
    if folder.name == "checkpoints" and (folder.parent / "recipe.yaml").is_file():
        raise UserError(f"{output} is among a run's own checkpoints; -o takes another folder")
