"""Which norm sits where: ordered rules of a module-name pattern and a norm, the last match wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.spec import NormSpec, build_norm

Spec = TypeVar("Spec")


def parse_rule(rule: Any) -> tuple[str, Any]:
    """Split a norm rule into its pattern and its norm.

    Args:
        rule: ``"PATTERN=NORM"``, or a (pattern, norm) pair.

    Returns:
        The pattern, and the norm as it was given: a spec string or a spec.

    Raises:
        UserError: it is neither, or one of the two is empty.
    """
    parts = rule.split("=", 1) if isinstance(rule, str) else rule
    if isinstance(parts, list | tuple) and len(parts) == 2:
        pattern, spec = (part.strip() if isinstance(part, str) else part for part in parts)
        if isinstance(pattern, str) and pattern and spec != "":
            return pattern, spec
    raise UserError(
        f"a norm rule must be PATTERN=NORM or a (pattern, norm) pair, such as 'encoder.*=rmsnorm', "
        f"got {rule!r}"
    )


@dataclass(frozen=True)
class NormRules(Generic[Spec]):
    """Ordered (pattern, norm) rules over module names; the last match wins.

    Build it with `of`. ``*`` matches dots too: ``encoder.*`` is everything in the encoder.

    Attributes:
        pairs: the rules; a default for every module is the rule for ``*``, which comes first.
    """

    pairs: tuple[tuple[str, Spec], ...]

    @classmethod
    def of(cls, norm: str | NormSpec, rules: Any = ()) -> NormRules[NormSpec]:
        """Parse a default norm and rules.

        Args:
            norm: the default for every module.
            rules: an iterable of rules as `parse_rule` takes them, or one as a string.

        Raises:
            UserError: a rule or a spec is wrong.
        """
        parsed = map(parse_rule, [rules] if isinstance(rules, str) else rules)
        return NormRules(
            (("*", NormSpec.parse(norm)), *((p, NormSpec.parse(spec)) for p, spec in parsed))
        )

    @classmethod
    def from_plain(cls, plain: Sequence[Sequence[str]]) -> NormRules[NormSpec]:
        """Read what `to_plain` returned for rules with a default.

        Raises:
            UserError: it is something else.
        """
        pairs = [parse_rule(rule) for rule in plain]
        if not pairs or pairs[0][0] != "*":
            raise UserError("norm rules read from a file must begin with the rule for '*'")
        return cls.of(pairs[0][1], pairs[1:])

    def find(self, module_name: str) -> Spec | None:
        """Return the norm of the last rule that matches, or None."""
        matches = (
            spec for pattern, spec in reversed(self.pairs) if fnmatchcase(module_name, pattern)
        )
        return next(matches, None)

    def spec_for(self, module_name: str) -> Spec:
        """Return the norm of the last rule that matches; the rules must have a default."""
        spec = self.find(module_name)
        assert spec is not None
        return spec

    def build(self, module_name: str, dim: int) -> nn.Module:
        """Build the norm of size ``dim`` for the module of that name.

        Raises:
            UserError: an option is out of range.
        """
        spec = self.spec_for(module_name)
        assert isinstance(spec, NormSpec)
        return build_norm(spec, dim)

    def unmatched(self, module_names: Iterable[str]) -> list[str]:
        """List the patterns other than ``*`` that match none of these names, in order."""
        names = list(module_names)
        patterns = dict.fromkeys(pattern for pattern, _ in self.pairs if pattern != "*")
        return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]

    def to_plain(self) -> list[list[str]]:
        """Return the rules as lists of two strings, for checkpoints."""
        return [[pattern, str(spec)] for pattern, spec in self.pairs]
