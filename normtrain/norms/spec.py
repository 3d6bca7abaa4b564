"""Parse, check, write and build spec strings such as ``"prmsnorm:p=0.125"``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normtrain.errors import UserError, unknown_name
from normtrain.norms.registry import Entry, Option, checked_dim, lookup, name_key, registered

_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class NormSpec:
    """A norm's canonical name and the options that differ from its defaults.

    ``str(spec)`` is a string such as ``"prmsnorm:p=0.125"`` that `parse` reads. Equal specs build
    equal modules.

    Attributes:
        name: the canonical name.
        options: values by option name, sorted; options at their default are left out.

    Raises:
        UserError: the name or an option is unknown, or an option's type is wrong.
    """

    name: str
    options: dict[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entry = lookup(self.name)
        options = {}
        for given, value in self.options.items():
            name = _option_name(entry, given)
            plain = _convert(entry, name, value)
            if name in options:
                raise UserError(f"{entry.info.name} got its option {name!r} twice")
            options[name] = plain
        kept = {k: v for k, v in sorted(options.items()) if v != entry.info.options[k]}
        object.__setattr__(self, "name", entry.info.name)
        object.__setattr__(self, "options", kept)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return spec_text(self.name, self.options)

    @classmethod
    def parse(cls, text: str | NormSpec) -> NormSpec:
        """Parse ``"name"`` or ``"name:key=value,key=value"``.

        Args:
            text: the spec string; a NormSpec is returned unchanged.

        Raises:
            UserError: the text has another form, or a name, option or value is invalid.
        """
        if isinstance(text, NormSpec):
            return text
        if not isinstance(text, str):
            raise UserError(f"a norm must be a string such as 'rmsnorm', got {text!r}")
        name, colon, rest = text.partition(":")
        options: dict[str, Option] = {}
        for part in rest.split(",") if colon else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not (key and equals and value):
                raise UserError(f"a norm must be written as name:key=value,key=value, got {text!r}")
            if key in options:
                raise UserError(f"{text!r} gives the option {key!r} twice")
            options[key] = value
        return cls(name, options)


def spec_text(name: str, options: Mapping[str, Option]) -> str:
    """Return a norm and its options as ``"name:key=value,key=value"``, with sorted options."""

    def text(value: Option) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    listed = ",".join(f"{key}={text(value)}" for key, value in sorted(options.items()))
    return f"{name}:{listed}" if listed else name


def _option_name(entry: Entry, given: str) -> str:
    known = entry.info.options
    if given in known:
        return given
    alike = [name for name in known if name_key(name) == name_key(str(given))]
    if len(alike) == 1:
        return alike[0]
    if not known:
        raise UserError(f"the norm {entry.info.name!r} has no options, got {given!r}")
    raise unknown_name(f"option of {entry.info.name}", str(given), known)


def _convert(entry: Entry, name: str, value: object) -> Option:
    """Return the value, given as text or as a value of the option's type, in that type."""
    kind = entry.types[name]
    wrong = UserError(f"{entry.info.name}'s option {name} takes {_kind_words(kind)}, got {value!r}")
    if isinstance(value, bool) and kind not in (bool, None):
        raise wrong
    if kind is None:
        if isinstance(value, str):
            return _guess(value)
        if isinstance(value, bool | int | float):
            return value
        raise wrong
    if kind is str:
        if isinstance(value, str) and "," not in value:
            return value
        raise wrong
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = _WORDS.get(value.lower()) if isinstance(value, str) else None
        if word is None:
            raise wrong
        return word
    return _number(kind, value, wrong)


def _number(kind: type, value: object, wrong: UserError) -> int | float:
    if not isinstance(value, str | int | float):
        raise wrong
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    if kind is float:
        return number
    if number != int(number):
        raise wrong
    return int(number)


def _guess(text: str) -> Option:
    """Parse a value of unknown type: as a number or truth value if it has that form."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _kind_words(kind: type | None) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return words.get(kind, "a plain value") if kind else "a plain value"


def spec_of(module: nn.Module) -> tuple[str, dict[str, Option]]:
    """Return the name of a module's registered class and the value of each option.

    The value of an option is the attribute of that name; ``bias`` is whether there is a bias.

    Args:
        module: a registered norm.

    Raises:
        UserError: the module's class is not registered.
    """
    # Sharding libraries replace a module's class by a subclass, hence the bases.
    for base in type(module).__mro__:
        for entry in registered():
            if entry.factory is base:
                options = {name: getattr(module, name) for name in entry.info.options}
                if "bias" in options:
                    options["bias"] = options["bias"] is not None
                return entry.info.name, options
    raise UserError(f"{type(module).__name__} is not a registered norm")


def build_norm(
    spec: str | NormSpec, dim: int, *, device: Any = None, dtype: Any = None, **options: Option
) -> nn.Module:
    """Build a norm over the last axis.

    Args:
        spec: a name (``"rmsnorm"``), a name with options (``"prmsnorm:p=0.125"``), or a NormSpec.
        dim: size of the last axis.
        device: device of its parameters.
        dtype: dtype of its parameters.
        **options: more options; they override those of the spec.

    Returns:
        A module from ``(..., dim)`` to the same shape and dtype. Its ``spec`` is the string that
        builds an equal module.

    Raises:
        UserError: the name or an option is unknown, or a value is out of range.
    """
    parsed = NormSpec.parse(spec)
    entry = lookup(parsed.name)
    if options:
        named = {_option_name(entry, key): value for key, value in options.items()}
        parsed = NormSpec(parsed.name, {**parsed.options, **named})
    places = {"device": device, "dtype": dtype}
    places = {key: places[key] for key in entry.takes if places[key] is not None}
    module = entry.factory(checked_dim(dim), **parsed.options, **places)
    if not isinstance(module, nn.Module):
        raise UserError(f"the norm {parsed.name!r} must build a torch module, got {module!r}")
    if not hasattr(module, "spec"):
        setattr(module, "spec", str(parsed))  # noqa: B010 - nn.Module declares only tensors
    return module
