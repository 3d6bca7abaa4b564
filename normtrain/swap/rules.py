"""Which norm is wanted where, remembering which options were written down and which were not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from normtrain.errors import UserError, unknown_name
from normtrain.norms import NormRules, NormSpec, norm_names
from normtrain.norms.registry import Option, lookup, name_key

# What each batch norm is called by normtrain.norms.replace_batchnorm.
BATCH_NORMS = {"l1batchnorm": "l1", "linfbatchnorm": "linf", "topkbatchnorm": "topk"}


@dataclass(frozen=True)
class Wanted:
    """A norm and the options that were asked for, those at their defaults too.

    Options not asked for may be carried over from the norm that is replaced (a NormSpec does not
    tell a default that was asked for, a string does: ``"layernorm:eps=1e-5"``).

    Attributes:
        name: the canonical name.
        given: the options asked for.
    """

    name: str
    given: dict[str, Option] = field(default_factory=dict)

    @property
    def is_batch(self) -> bool:
        """Whether it takes the place of batch norms, and of nothing else."""
        return self.name in BATCH_NORMS

    @classmethod
    def parse(cls, spec: Any) -> Wanted:
        """Read a spec string or a NormSpec.

        Raises:
            UserError: it is neither, or names something unknown.
        """
        if isinstance(spec, NormSpec):
            return cls(spec.name, dict(spec.options))
        if not isinstance(spec, str):
            raise UserError(f"a norm is named by a string such as 'rmsnorm', not {spec!r}")
        name, _, rest = spec.partition(":")
        if name_key(name) in BATCH_NORMS:
            return cls(name_key(name), _batch_options(spec))
        known = {name_key(each) for each in norm_names()}
        if name_key(name) not in known:
            raise unknown_name("norm", name.strip(), [*norm_names(), *BATCH_NORMS])
        parsed = NormSpec.parse(spec)
        defaults = lookup(parsed.name).info.options
        written = {name_key(part.partition("=")[0]) for part in rest.split(",")}
        chosen = {**defaults, **parsed.options}
        return cls(parsed.name, {k: v for k, v in chosen.items() if name_key(k) in written})  # type: ignore[misc]

    def __str__(self) -> str:
        return spec_text(self.name, self.given)


def spec_text(name: str, options: dict[str, Option]) -> str:
    """``"name:key=value,key=value"``, with every option that is there."""

    def text(value: Option) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    listed = ",".join(f"{key}={text(value)}" for key, value in sorted(options.items()))
    return f"{name}:{listed}" if listed else name


def _batch_options(spec: str) -> dict[str, Option]:
    name, colon, rest = spec.partition(":")
    if not colon:
        return {}
    key, equals, value = rest.partition("=")
    if name_key(name) != "topkbatchnorm":
        raise UserError(f"the norm {name_key(name)!r} has no options, so not {rest!r}")
    if key.strip() != "k" or not equals or not value.strip().isdecimal() or int(value) < 1:
        raise UserError(f"topkbatchnorm takes k, a whole number of at least 1, not {rest!r}")
    return {"k": int(value)}


@dataclass(frozen=True)
class SwapRules:
    """Ordered pairs of a pattern over module names and a norm; the last match wins.

    Attributes:
        pairs: the pairs; a rule for everything is one for ``*``.
    """

    pairs: tuple[tuple[str, Wanted], ...]

    @classmethod
    def parse(cls, rules: Any) -> SwapRules:
        """Read what `swap_norms` takes.

        Raises:
            UserError: it is no rules, or a norm in it is wrong.
        """
        if isinstance(rules, str | NormSpec):
            return cls((("*", Wanted.parse(rules)),))
        if isinstance(rules, NormRules):
            pairs = [("*", rules.norm), *rules.rules]
            return cls(tuple((pattern, Wanted.parse(spec)) for pattern, spec in pairs))
        if not isinstance(rules, list | tuple) or not rules:
            raise UserError(
                f"norms are chosen by a norm such as 'rmsnorm' or by a list of (pattern, norm) "
                f"pairs, not {rules!r}"
            )
        return cls(tuple(_pair(rule) for rule in rules))

    def wanted_for(self, names: Iterable[str]) -> Wanted | None:
        """What the last rule that matches wants for a module of these names; None if none does.

        Raises:
            UserError: its names are matched by rules that want different norms.
        """
        found: dict[str, Wanted] = {}
        for name in names:
            for pattern, wanted in reversed(self.pairs):
                if fnmatchcase(name, pattern):
                    found[name] = wanted
                    break
        kinds = list({str(wanted): (name, wanted) for name, wanted in found.items()}.values())
        if len(kinds) > 1:
            (first, one), (second, other) = kinds[:2]
            raise UserError(
                f"{first} and {second} are one and the same norm, but the rules want {one} for the "
                f"first and {other} for the second; want the same for both"
            )
        return kinds[0][1] if kinds else None

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """What is wrong with each pattern that matches none of the names, with the nearest ones."""
        faults = []
        for pattern in dict.fromkeys(pattern for pattern, _ in self.pairs):
            if pattern == "*" or any(fnmatchcase(name, pattern) for name in names):
                continue
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            faults.append(f"the pattern {pattern!r} matches no norm (there is {', '.join(near)})")
        return faults

    def to_plain(self) -> list[tuple[str, str]]:
        """Pairs of strings, which `parse` reads back."""
        return [(pattern, str(wanted)) for pattern, wanted in self.pairs]


def shown(rules: Iterable[Sequence[str]]) -> str:
    """Rules as one would write them in a call, for messages."""
    pairs = [(pattern, spec) for pattern, spec in rules]
    return repr(pairs[0][1]) if len(pairs) == 1 and pairs[0][0] == "*" else repr(pairs)


def _pair(rule: Any) -> tuple[str, Wanted]:
    parts = rule if isinstance(rule, list | tuple) else ()
    if isinstance(rule, str) and "=" in rule:
        parts = rule.split("=", 1)
    if len(parts) != 2 or not isinstance(parts[0], str) or not parts[0].strip():
        raise UserError(
            f"a rule is a pattern and a norm, such as ('encoder.*', 'rmsnorm'), not {rule!r}"
        )
    return parts[0].strip(), Wanted.parse(parts[1])
