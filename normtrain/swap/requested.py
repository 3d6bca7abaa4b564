"""Which norm a swap is asked for, and where: what `swap_norms` takes as rules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from normtrain.errors import UserError, unknown_name
from normtrain.norms import NormRules, NormSpec, norm_names
from normtrain.norms.registry import Option, lookup, name_key
from normtrain.norms.rules import parse_rule
from normtrain.norms.spec import spec_text

# The kind that normtrain.norms.replace_batchnorm takes for each batch norm.
BATCH_NORMS = {"l1batchnorm": "l1", "linfbatchnorm": "linf", "topkbatchnorm": "topk"}


@dataclass(frozen=True)
class RequestedNorm:
    """A norm and the options that were given, those at their defaults too.

    Options that were not given may be carried over from the norm that is replaced. A `NormSpec`
    drops options at their defaults; a string keeps them: ``"layernorm:eps=1e-5"``.

    Attributes:
        name: the canonical name.
        options: the options given.
    """

    name: str
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def is_batch(self) -> bool:
        """Whether it replaces batch norms, and nothing else."""
        return self.name in BATCH_NORMS

    @classmethod
    def parse(cls, spec: Any) -> RequestedNorm:
        """Read a spec string or a NormSpec.

        Raises:
            UserError: it is neither, or its name or an option is unknown.
        """
        if isinstance(spec, NormSpec):
            return cls(spec.name, dict(spec.options))
        if not isinstance(spec, str):
            raise UserError(f"a norm must be a string such as 'rmsnorm', got {spec!r}")
        name, _, rest = spec.partition(":")
        if name_key(name) in BATCH_NORMS:
            return cls(name_key(name), _batch_options(spec))
        if name_key(name) not in {name_key(each) for each in norm_names()}:
            raise unknown_name("norm", name.strip(), [*norm_names(), *BATCH_NORMS])
        parsed = NormSpec.parse(spec)
        values = {**lookup(parsed.name).info.options, **parsed.options}
        written = {name_key(part.partition("=")[0]) for part in rest.split(",")}
        return cls(parsed.name, {k: v for k, v in values.items() if name_key(k) in written})  # type: ignore[misc]

    def __str__(self) -> str:
        return spec_text(self.name, self.options)


def _batch_options(spec: str) -> dict[str, Option]:
    name, colon, rest = spec.partition(":")
    if not colon:
        return {}
    key, equals, value = rest.partition("=")
    if name_key(name) != "topkbatchnorm":
        raise UserError(f"the norm {name_key(name)!r} has no options, got {rest!r}")
    if key.strip() != "k" or not equals or not value.strip().isdecimal() or int(value) < 1:
        raise UserError(f"topkbatchnorm's k must be an integer >= 1, got {rest!r}")
    return {"k": int(value)}


SwapRules = NormRules[RequestedNorm]


def parse_swap_rules(rules: Any) -> SwapRules:
    """Read the rules that `swap_norms` takes.

    Args:
        rules: one norm for all, a `NormRules`, or a list of rules.

    Raises:
        UserError: it is none of these, or a norm in it is wrong.
    """
    if isinstance(rules, str | NormSpec):
        pairs: Iterable[tuple[str, Any]] = [("*", rules)]
    elif isinstance(rules, NormRules):
        pairs = rules.pairs
    elif isinstance(rules, list | tuple) and rules:
        pairs = map(parse_rule, rules)
    else:
        raise UserError(
            f"norms must be given as a norm such as 'rmsnorm' or as a list of (pattern, norm) "
            f"pairs, got {rules!r}"
        )
    return NormRules(tuple((pattern, RequestedNorm.parse(spec)) for pattern, spec in pairs))


def plain_pairs(rules: SwapRules) -> list[tuple[str, str]]:
    """Return the rules as pairs of strings, which `parse_swap_rules` reads back."""
    return [(pattern, str(spec)) for pattern, spec in rules.pairs]


def requested_for(rules: SwapRules, names: Iterable[str]) -> RequestedNorm | None:
    """Return the norm that the rules want for a module with these names; None if no rule matches.

    Raises:
        UserError: the rules want different norms for different names of the module.
    """
    found = {name: norm for name in names if (norm := rules.find(name)) is not None}
    different = list({str(norm): (name, norm) for name, norm in found.items()}.values())
    if len(different) > 1:
        (first, one), (second, other) = different[:2]
        raise UserError(
            f"{first} and {second} are one module, but the rules give {one} for the first and "
            f"{other} for the second; give the same norm for both"
        )
    return different[0][1] if different else None


def unmatched_patterns(rules: SwapRules, names: Sequence[str]) -> list[str]:
    """Return an error text for each pattern that matches none of the names, with the nearest."""
    texts = []
    for pattern in rules.unmatched(names):
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        texts.append(f"the pattern {pattern!r} matches no norm (norms are {', '.join(near)})")
    return texts


def rules_text(rules: Iterable[Sequence[str]]) -> str:
    """Write rules as an argument of `NormSwap`, for messages."""
    pairs = [(pattern, spec) for pattern, spec in rules]
    return repr(pairs[0][1]) if len(pairs) == 1 and pairs[0][0] == "*" else repr(pairs)
