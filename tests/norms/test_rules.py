"""Which norm sits where."""

import pytest
import torch

from normtrain.errors import UserError
from normtrain.norms import LayerNorm, NormRules, NormSpec, PRMSNorm


def test_the_default_is_everywhere() -> None:
    rules = NormRules.of("rms_norm")
    assert rules.spec_for("encoder.layers.0.norm1") == NormSpec("rmsnorm")
    assert rules.unmatched(["a"]) == []


def test_the_last_match_wins() -> None:
    rules = NormRules.of(
        "rmsnorm",
        [("encoder.*", "layernorm"), ("*.final", "none"), ("encoder.final", "adanorm:C=2")],
    )
    assert str(rules.spec_for("encoder.layers.3.norm")) == "layernorm"
    assert str(rules.spec_for("decoder.final")) == "none"
    assert str(rules.spec_for("encoder.final")) == "adanorm:C=2.0"
    assert str(rules.spec_for("decoder.layers.3.norm")) == "rmsnorm"
    assert str(rules.spec_for("Encoder.layers")) == "rmsnorm"


def test_build_uses_the_rule_and_its_options() -> None:
    rules = NormRules.of("layernorm", [("deep.*", "prmsnorm:p=0.5")])
    partial = rules.build("deep.norm", 8)
    assert isinstance(partial, PRMSNorm)
    assert partial.k == 4
    assert isinstance(rules.build("shallow.norm", 8), LayerNorm)
    assert rules.build("deep.norm", 8)(torch.ones(2, 8)).shape == (2, 8)


def test_patterns_without_a_match_are_told() -> None:
    rules = NormRules.of("rmsnorm", [("encoder.*", "none"), ("encodr.*", "none"), ("?", "none")])
    assert rules.unmatched(iter(["encoder.a", "decoder.b"])) == ["encodr.*", "?"]


def test_plain_lists_there_and_back() -> None:
    rules = NormRules.of("rmsnorm:eps=1e-6", [("a.*", "prmsnorm:p=0.5"), ("*.b", "LayerNorm")])
    plain = rules.to_plain()
    assert plain == [["*", "rmsnorm:eps=1e-06"], ["a.*", "prmsnorm:p=0.5"], ["*.b", "layernorm"]]
    assert NormRules.from_plain(plain) == rules
    assert NormRules.of("rmsnorm:eps=1e-6", plain[1:]) == rules


def test_rules_as_text() -> None:
    rules = NormRules.of("rmsnorm", ["encoder.layers.0.*=prmsnorm:p=0.5"])
    assert rules == NormRules.of("rmsnorm", [("encoder.layers.0.*", "prmsnorm:p=0.5")])


@pytest.mark.parametrize("rule", ["encoder.*", ("a",), ("a", "b", "c"), ("", "rmsnorm"), 3])
def test_what_is_no_rule(rule: object) -> None:
    with pytest.raises(UserError, match="rule"):
        NormRules.of("rmsnorm", [rule])  # type: ignore[list-item]


def test_a_wrong_spec_in_a_rule_is_named() -> None:
    with pytest.raises(UserError, match="layernorm"):
        NormRules.of("rmsnorm", [("a.*", "layrnorm")])


def test_plain_rules_need_their_default() -> None:
    with pytest.raises(UserError, match=r"'\*'"):
        NormRules.from_plain([["a", "rmsnorm"]])
