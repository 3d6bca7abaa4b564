"""Reading another program's ``config.json``: each value checked, each refusal naming its key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normtrain.errors import RunError, UserError

CONFIG = "config.json"


class Config:
    """A ``config.json``.

    Args:
        values: what is in it.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of 1 or more; ``default`` stands for a missing key and null.

        Raises:
            UserError: it is something else, or missing without a default.
        """
        value = self._given(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "a whole number of 1 or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; ``default`` as for :meth:`whole`.

        Raises:
            UserError: it is something else, or missing without a default.
        """
        value = self._given(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def fraction(self, key: str, default: float) -> float:
        """A number of 0 or more and below 1, as a dropout is.

        Raises:
            UserError: it is something else.
        """
        value = self.number(key, default)
        if not 0 <= value < 1:
            raise self.wrong(key, "a number of 0 or more and below 1")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            UserError: it is something else.
        """
        value = self._given(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """See that a key, where it is there, has a value that this package can compute.

        Raises:
            UserError: it has another.
        """
        if key in self.values and self.values[key] not in allowed:
            shown = " or ".join(json.dumps(value) for value in allowed)
            raise self.wrong(key, f"{shown}: normtrain's models compute nothing else")

    def wrong(self, key: str, wanted: str) -> UserError:
        """The refusal of a key's value."""
        shown = json.dumps(self.values.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        found = f"{key} is {shown}" if key in self.values else f"{key} is missing"
        return UserError(f"{self.where}: {found}; it must be {wanted}")

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise UserError(f"{self.where}: {key} is missing, and the model can't be built without")
        return default if value is None else value


def read_config(folder: Path) -> Config:
    """Read the ``config.json`` of a folder.

    Raises:
        UserError: there is no such file, or it is no JSON object.
        RunError: it can't be read.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model: there is no {CONFIG} in it") from None
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON; save the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; save the model again")
    return Config(values, str(path))
