"""Which norm sits where: ordered rules of module-name patterns, the last match winning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.spec import NormSpec, build_norm


@dataclass(frozen=True)
class NormRules:
    """A default norm, and patterns over module names that choose others.

    Build it with `of`. ``*`` matches dots too: ``encoder.*`` is everything in the encoder.

    Attributes:
        norm: the default for every module.
        rules: ordered (pattern, spec) pairs; the last match wins.
    """

    norm: NormSpec
    rules: tuple[tuple[str, NormSpec], ...] = ()

    @classmethod
    def of(
        cls, norm: str | NormSpec, rules: Iterable[str | Sequence[str | NormSpec]] = ()
    ) -> NormRules:
        """Check and keep a default and rules.

        Args:
            norm: the default for every module.
            rules: (pattern, spec) pairs, or strings ``"pattern=spec"``.

        Raises:
            UserError: a rule is not such a pair, or a spec is wrong.
        """
        if isinstance(rules, str):
            rules = [rules]
        return cls(NormSpec.parse(norm), tuple(_rule(rule) for rule in rules))

    @classmethod
    def from_plain(cls, plain: Sequence[Sequence[str]]) -> NormRules:
        """Read what `to_plain` gave.

        Raises:
            UserError: it is something else.
        """
        pairs = [_rule(rule) for rule in plain]
        if not pairs or pairs[0][0] != "*":
            raise UserError("norm rules read from a file must begin with the rule for '*'")
        return cls(pairs[0][1], tuple(pairs[1:]))

    def spec_for(self, module_name: str) -> NormSpec:
        """The spec of the last rule that matches, or the default."""
        for pattern, spec in reversed(self.rules):
            if fnmatchcase(module_name, pattern):
                return spec
        return self.norm

    def build(self, module_name: str, dim: int) -> nn.Module:
        """Build the norm of size `dim` for the module of that name.

        Raises:
            UserError: an option is out of range.
        """
        return build_norm(self.spec_for(module_name), dim)

    def unmatched(self, module_names: Iterable[str]) -> list[str]:
        """The patterns that match none of these names, in order: most likely typing errors."""
        names = list(module_names)
        patterns = dict.fromkeys(pattern for pattern, _ in self.rules)
        return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]

    def to_plain(self) -> list[list[str]]:
        """Lists of strings for checkpoints, the default first as the rule for ``*``."""
        return [["*", str(self.norm)], *([pattern, str(spec)] for pattern, spec in self.rules)]


def _rule(rule: str | Sequence[str | NormSpec]) -> tuple[str, NormSpec]:
    if isinstance(rule, str):
        pattern, equals, spec = rule.partition("=")
        parts: Sequence[str | NormSpec] = (pattern, spec) if equals else (pattern,)
    else:
        parts = rule if isinstance(rule, list | tuple) else ()
    if len(parts) != 2 or not isinstance(parts[0], str) or not parts[0].strip():
        raise UserError(f"a norm rule is a pattern and a norm, such as encoder.*=rmsnorm: {rule!r}")
    return parts[0].strip(), NormSpec.parse(parts[1])
