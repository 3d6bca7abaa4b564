"""Checkpoints of earlier versions of the format, brought to the present one.

Each migration is a pure function of plain data, from one version to the next. What it does not
understand it leaves alone: the schema refuses it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normtrain.errors import UserError
from normtrain.training.checkpoint.schema import FORMAT_VERSION

ENVIRONMENT = ("kernels", "threads", "torch", "device")


def migrate(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint in the present version of the format; ``raw`` is not changed.

    Args:
        raw: the checkpoint, with a mapping ``raw["normtrain"]``.
        path: the file, for messages.

    Raises:
        UserError: the version is unknown, or of a later normtrain.
    """
    version = raw["normtrain"].get("version")
    while type(version) is int and version in MIGRATIONS:
        raw = raw | {"normtrain": MIGRATIONS[version](raw["normtrain"])}
        version = raw["normtrain"]["version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {version}, this normtrain reads formats up to "
            f"{FORMAT_VERSION}; use the version that wrote it, or a later one"
        )
    return raw


def _from_version_1(section: Mapping[str, Any]) -> dict[str, Any]:
    """Name the optimizer; ``machine`` becomes ``launch``; the environment gets its own key."""
    new = {key: value for key, value in section.items() if key not in ("machine", *ENVIRONMENT)}
    new["version"] = 2
    new["environment"] = {key: section[key] for key in ENVIRONMENT if key in section}
    if "machine" in section:
        new["launch"] = migrate_launch(section["machine"])
    recipe = section.get("recipe")
    if isinstance(recipe, dict) and isinstance(recipe.get("optim"), dict):
        new["recipe"] = recipe | {"optim": {"name": "adamw"} | recipe["optim"]}
    return new


def migrate_launch(plain: Any) -> Any:
    """Return a launch config that version 1 wrote, in a checkpoint or a run folder, as today's."""
    names = {"update_batches": "step_batches"}
    if not isinstance(plain, dict):
        return plain
    return {names.get(key, key): value for key, value in plain.items()}


MIGRATIONS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _from_version_1}
"""From each earlier version to the next, applied to ``checkpoint["normtrain"]``."""
