"""Declare the keys of a config section once: type, limits, default and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict


@dataclass(frozen=True)
class Accepts:
    """What a key accepts, in words that follow "must be"."""

    text: str


# Above these limits a typing error would overflow torch's sizes, or run for hours.
MAX_INT, MAX_LAYERS = 2**31 - 1, 1000

Count = Annotated[int, Strict(), Field(ge=1, le=MAX_INT), Accepts("an integer >= 1")]
Whole = Annotated[int, Strict(), Field(ge=0, le=MAX_INT), Accepts("an integer >= 0")]
Layers = Annotated[int, Strict(), Field(ge=1, le=MAX_LAYERS), Accepts("an integer >= 1")]
Positive = Annotated[float, Strict(), Field(gt=0), Accepts("a number > 0")]
NonNegative = Annotated[float, Strict(), Field(ge=0), Accepts("a number >= 0")]
Fraction = Annotated[float, Strict(), Field(ge=0, lt=1), Accepts("a number >= 0 and < 1")]
OptionalCount = Annotated[
    int | None, Strict(), Field(ge=1, le=MAX_INT), Accepts("an integer >= 1, or null")
]
Text = Annotated[str, Strict(), Field(min_length=1), Accepts("a string that is not empty")]
OptionalText = Annotated[str | None, Strict(), Accepts("a quoted string, or null")]
Flag = Annotated[bool, Strict(), Accepts("true or false")]
Rules = Annotated[
    tuple[tuple[Text, Text], ...],
    Accepts("a list of [module-name pattern, norm] pairs, such as [['encoder.*', layernorm]]"),
]


def key(default: Any, help: str) -> Any:
    """Return the default and the help of a section's key, for the right side of its declaration."""
    return Field(default=default, description=help)


class Section(BaseModel):
    """Base of config sections: frozen, without unknown keys, NaN or Inf."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
