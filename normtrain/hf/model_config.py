"""Read a ``config.json`` of Hugging Face; errors name the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normtrain.errors import RunError, UserError

CONFIG = "config.json"
PLAIN: dict[str, Any] = {"norm_rules": [], "placement": "pre", "embedding_norm": "none",
                         "zero_mean": "none", "d_stream": None, "head_bias": False}  # fmt: skip
"""Values of a recipe's model section that are the same for every model of every format."""


class Config:
    """The values of a ``config.json``, checked as they are read.

    Args:
        values: the content of the file.
        where: path of the file, for error messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, key: str, default: int | None = None) -> int:
        """Return an integer >= 1.

        Args:
            key: name of the value.
            default: for a missing key or null; None makes the key required.

        Raises:
            UserError: the value is something else, or is missing and has no default.
        """
        value = self._given(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "an integer >= 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; arguments as for :meth:`whole`.

        Raises:
            UserError: the value is something else, or is missing and has no default.
        """
        value = self._given(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def fraction(self, key: str, default: float) -> float:
        """Return a number >= 0 and < 1, such as a dropout.

        Raises:
            UserError: the value is something else.
        """
        value = self.number(key, default)
        if not 0 <= value < 1:
            raise self.wrong(key, "a number >= 0 and < 1")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            UserError: the value is something else.
        """
        value = self._given(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Check that a key is absent or has a supported value.

        Args:
            key: name of the value.
            allowed: supported values.

        Raises:
            UserError: it has another value.
        """
        if key in self.values and self.values[key] not in allowed:
            shown = " or ".join(json.dumps(value) for value in allowed)
            raise self.wrong(key, f"{shown}; other values are unsupported")

    def wrong(self, key: str, wanted: str) -> UserError:
        """Return the error for the value of a key, with what it must be."""
        shown = json.dumps(self.values.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        found = f"{key} is {shown}" if key in self.values else f"{key} is missing"
        return UserError(f"{self.where}: {found}; it must be {wanted}")

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise UserError(f"{self.where}: {key} is missing")
        return default if value is None else value


def read_config(folder: Path) -> Config:
    """Read the ``config.json`` of a folder.

    Raises:
        UserError: the file does not exist or is not a JSON object.
        RunError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: {CONFIG} not found") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON; save the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; save the model again")
    return Config(values, str(path))
