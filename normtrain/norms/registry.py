"""The registry of norms: their names and descriptions, and the norms of other packages."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from normtrain.errors import UserError, unknown_name

Option = bool | int | float | str
Factory = Callable[..., nn.Module]
_F = TypeVar("_F", bound=Factory)

ENTRY_POINTS = "normtrain.norms"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLACES = ("device", "dtype")
INVARIANCES = ("scale", "shift")


@dataclass(frozen=True)
class NormInfo:
    """Description of a registered norm.

    Attributes:
        name: the canonical name.
        summary: one line.
        formula: the output as a formula of the input.
        parameters: the learned parameters, as text.
        options: each option with its default (None if it has none).
        source: the paper.
        description: the whole docstring.
        invariances: which changes of an input vector leave the output unchanged as eps goes to 0:
            ``"scale"``, a positive factor, and ``"shift"``, one number added to every feature.
    """

    name: str
    summary: str
    formula: str
    parameters: str
    options: dict[str, Option | None]
    source: str
    description: str
    invariances: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A registered norm.

    Attributes:
        info: its description.
        factory: its class or function.
        types: the type of each option; None if unknown.
        takes: which of ``device`` and ``dtype`` the factory accepts.
    """

    info: NormInfo
    factory: Factory
    types: dict[str, type | None]
    takes: frozenset[str]


_entries: dict[str, Entry] = {}
_seen_entry_points: set[tuple[str, str]] = set()


def name_key(name: str) -> str:
    """Return a name without case, ``-`` and ``_``, for comparison."""
    return name.strip().lower().replace("-", "").replace("_", "")


def checked_dim(dim: object) -> int:
    """Return the size of a last axis.

    Args:
        dim: the size, a whole number of at least 1.

    Raises:
        UserError: the size is something else.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise UserError(f"a norm's dim must be a whole number of at least 1, got {dim!r}")
    return dim


def _option_types(factory: Factory, names: list[str], defaults: Mapping[str, Any]) -> dict:
    """Return the type of each option by its annotation or default; None if unknown."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = typing.get_type_hints(target)
    except Exception:  # unresolvable annotations: the default's type is used
        hints = {}
    types: dict[str, type | None] = {}
    for name in names:
        hint = hints.get(name)
        if hint not in (bool, int, float, str):
            hint = type(defaults[name]) if defaults[name] is not None else None
        types[name] = hint if hint in (bool, int, float, str) else None
    return types


def _describe(
    name: str, factory: Factory, texts: Mapping[str, str], invariances: tuple[str, ...]
) -> Entry:
    parameters = list(inspect.signature(factory).parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
        raise UserError(f"norm {name!r} must take the size of the last axis as its first argument")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = {p.name: p.default for p in parameters[1:] if p.kind in named}
    defaults = {
        key: None if value is inspect.Parameter.empty else value
        for key, value in rest.items()
        if key not in _PLACES
    }
    # For a class without a docstring inspect.getdoc would return that of nn.Module.
    description = inspect.cleandoc(factory.__doc__ or "")
    summary = texts["summary"] or description.split("\n", 1)[0]
    info = NormInfo(
        name=name,
        summary=summary,
        formula=texts["formula"],
        parameters=texts["parameters"],
        options=defaults,
        source=texts["source"],
        description=description,
        invariances=invariances,
    )
    types = _option_types(factory, list(defaults), defaults)
    return Entry(info, factory, types, frozenset(rest) & frozenset(_PLACES))


def register_norm(
    name: str,
    *,
    formula: str = "",
    parameters: str = "",
    source: str = "",
    summary: str = "",
    invariances: Iterable[str] = (),
) -> Callable[[_F], _F]:
    """Return a decorator that registers a norm under a name.

    The decorated class or function takes the size of the last axis and then its options as
    keywords; their defaults and annotations (bool, int, float, str) determine the values that a
    spec accepts.

    Args:
        name: letters, digits, ``-`` and ``_``; names are compared without case, ``-`` and ``_``.
        formula: the output as a formula of the input.
        parameters: the learned parameters, as text.
        source: the paper.
        summary: one line; the docstring's first by default.
        invariances: which of ``"scale"`` (f(c * x) = f(x) for c > 0 as eps goes to 0) and
            ``"shift"`` (f(x + c) = f(x)) hold; conversions between norms rely on them.

    Returns:
        The decorator; it returns the class or function unchanged.

    Raises:
        UserError: the name is invalid or taken, or an invariance is unknown.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"a norm's name must be letters, digits, '-' and '_', got {name!r}")
    unknown = set(invariances) - set(INVARIANCES)
    if isinstance(invariances, str) or unknown:
        raise UserError(
            f"the invariances of norm {name!r} must be a list of 'scale' and 'shift', "
            f"got {invariances!r}"
        )
    holds = tuple(known for known in INVARIANCES if known in invariances)
    texts = {"formula": formula, "parameters": parameters, "source": source, "summary": summary}

    def decorate(factory: _F) -> _F:
        _refuse_clash(name, factory)
        _entries[name_key(name)] = _describe(name.lower().replace("_", "-"), factory, texts, holds)
        return factory

    return decorate


def _refuse_clash(name: str, factory: Factory) -> None:
    taken = _entries.get(name_key(name))
    if taken is not None and not _same(taken.factory, factory):
        raise UserError(
            f"the norm name {name!r} is taken by {_where(taken.factory)}; "
            f"register {_where(factory)} under another"
        )


def _where(factory: Factory) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', repr(factory))}"


def _same(old: Factory, new: Factory) -> bool:
    """Return whether both are one definition, as when its module was executed again."""
    return old is new or ("<locals>" not in _where(new) and _where(old) == _where(new))


def _load_entry_points() -> None:
    """Register the norms of installed packages; warn about those that fail and skip them."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if (point.name, point.value) in _seen_entry_points:
            continue
        _seen_entry_points.add((point.name, point.value))
        try:
            factory = point.load()
            known = _entries.get(name_key(point.name))
            # Importing its module may have run @register_norm already.
            if known is None or known.factory is not factory:
                register_norm(point.name)(factory)
        except Exception as error:
            warnings.warn(
                f"the norm {point.name!r} of entry point {point.value!r} is skipped: "
                f"{type(error).__name__}: {error}",
                stacklevel=3,
            )


def lookup(name: str) -> Entry:
    """Return the norm of that name, of this or another package.

    Args:
        name: a norm's name, without options.

    Raises:
        UserError: the name is unknown; the nearest are listed.
    """
    if not isinstance(name, str):
        raise UserError(f"a norm's name must be a string such as 'rmsnorm', got {name!r}")
    key = name_key(name)
    if key not in _entries:
        _load_entry_points()
    if key not in _entries:
        raise unknown_name("norm", name, norm_names())
    return _entries[key]


def registered() -> list[Entry]:
    """Return every norm registered so far, without loading entry points."""
    return list(_entries.values())


def norm_names() -> list[str]:
    """Return every known name, sorted."""
    _load_entry_points()
    return sorted(entry.info.name for entry in _entries.values())


def norm_info(name: str) -> NormInfo:
    """Return the description of the norm of that name.

    Args:
        name: a norm's name, without options.

    Raises:
        UserError: the name is unknown; the nearest are listed.
    """
    return lookup(name).info
