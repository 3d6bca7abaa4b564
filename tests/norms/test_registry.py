"""Names, spec strings, options, and norms of third parties."""

import importlib.metadata
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from variants import NAMES

from normtrain.errors import UserError
from normtrain.norms import (
    Derf,
    DyT,
    NormSpec,
    build_norm,
    norm_info,
    norm_names,
    register_norm,
    registry,
)
from normtrain.norms.rms import share


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Forget what a test registered."""
    entries, seen = dict(registry._entries), set(registry._seen_entry_points)
    yield
    registry._entries.clear()
    registry._entries.update(entries)
    registry._seen_entry_points.clear()
    registry._seen_entry_points.update(seen)


def test_the_names() -> None:
    assert set(NAMES) <= set(norm_names())
    assert norm_names() == sorted(norm_names())


@pytest.mark.parametrize(
    "name", ["layernorm-simple", "LayerNorm-Simple", "layer_norm_simple", "LAYERNORMSIMPLE"]
)
def test_case_and_dashes_do_not_count(name: str) -> None:
    assert NormSpec(name).name == "layernorm-simple"
    assert build_norm(name, 4).spec == "layernorm-simple"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("RMS-Norm", "rmsnorm"),
        ("prmsnorm:p=0.125", "prmsnorm:p=0.125"),
        ("prmsnorm: p = 0.125 , EPS=1e-6", "prmsnorm:eps=1e-06,p=0.125"),
        ("prmsnorm:p=0.0625", "prmsnorm"),
        ("adanorm:C=2,k=0.1", "adanorm:C=2.0"),
        ("adanorm:k=0.2,c=2", "adanorm:C=2.0,k=0.2"),
        ("layernorm:bias=False", "layernorm:bias=false"),
        ("layernorm:bias=1", "layernorm"),
        ("rmsnorm:eps-mode=outside,bias=yes", "rmsnorm:bias=true,eps_mode=outside"),
        ("Detach_Norm:detach=std", "detachnorm:detach=std"),
        ("detachnorm:detach=both", "detachnorm"),
        ("crmsnorm:bias=true,affine=no", "crmsnorm:affine=false,bias=true"),
        ("Top-K-Norm:k=3", "topknorm:k=3"),
        ("topknorm:k=99", "topknorm:k=99"),  # as it was asked for, though 16 is all there are
        ("L_inf_norm:eps=0.1", "linfnorm:eps=0.1"),
        ("DyT:alpha-init=0.2", "dyt:alpha_init=0.2"),
        ("derf:shift_init=-1,bias=false", "derf:bias=false,shift_init=-1.0"),
    ],
)
def test_spec_strings_there_and_back(text: str, canonical: str) -> None:
    spec = NormSpec.parse(text)
    assert str(spec) == canonical
    assert NormSpec.parse(canonical) == spec
    assert hash(NormSpec.parse(canonical)) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert build_norm(spec, 16).spec == canonical
    assert build_norm(text, 16).spec == canonical


def test_different_specs_differ() -> None:
    assert NormSpec.parse("rmsnorm") != NormSpec.parse("prmsnorm")
    assert NormSpec.parse("prmsnorm:p=0.5") != NormSpec.parse("prmsnorm")


def test_options_reach_the_module() -> None:
    ada = build_norm("adanorm:C=2", 8, k=0.5, eps=1e-3)
    assert (ada.C, ada.k, ada.eps) == (2.0, 0.5, 1e-3)
    assert build_norm("adanorm:C=2", 8, C=3.0).C == 3.0
    assert build_norm(NormSpec("layernorm", {"bias": False}), 8).bias is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rmsnrom", ["did you mean", "rmsnorm"]),
        ("layernom", ["did you mean", "layernorm"]),
        ("", ["unknown norm"]),
        ("prmsnorm:q=1", ["option of prmsnorm", "known"]),
        ("prmsnorm:epz=1", ["option of prmsnorm", "eps"]),
        ("none:eps=1", ["no options", "eps"]),
        ("prmsnorm:p", ["key=value"]),
        ("prmsnorm:", ["key=value"]),
        ("prmsnorm:p=", ["key=value"]),
        ("prmsnorm:p=0.1,p=0.2", ["twice"]),
        ("adanorm:C=1,c=2", ["twice"]),
        ("prmsnorm:p=much", ["a number", "much"]),
        ("prmsnorm:p=nan", ["a number", "nan"]),
        ("layernorm:bias=maybe", ["true or false"]),
        ("prmsnorm:p=0", ["p must be > 0"]),
        ("prmsnorm:p=1.5", ["at most 1"]),
        ("rmsnorm:eps=0", ["eps must be > 0"]),
        ("rmsnorm:eps=-1e-5", ["eps must be > 0"]),
        ("rmsnorm:eps_mode=both", ["inside", "outside", "both"]),
        ("adanorm:C=0", ["C must be > 0"]),
        ("adanorm:k=-1", ["k must be"]),
        ("detachnorm:detach=sigma", ["'both', 'mean' or 'std'", "sigma"]),
        ("topknorm:k=0", ["k must be a whole number of at least 1"]),
        ("topknorm:k=2.5", ["a whole number", "2.5"]),
        ("l1norm:eps_mode=outside", ["option of l1norm", "eps"]),
        ("scalenorm:eps=0", ["eps must be > 0"]),
        ("dyt:eps=1", ["option of dyt", "alpha_init"]),
        ("derf:alpha_init=inf", ["a number", "inf"]),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_norm(text, 8)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", [True, None, [1], "x"])
def test_options_of_a_wrong_type(value: object) -> None:
    with pytest.raises(UserError, match="option eps takes a number"):
        NormSpec("rmsnorm", {"eps": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("dim", [0, -3, 2.0, "8", True, None])
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_are_none(name: str, dim: object) -> None:
    with pytest.raises(UserError, match="at least 1"):
        build_norm(name, dim)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [None, 3, nn.LayerNorm])
def test_specs_that_are_none(spec: object) -> None:
    with pytest.raises(UserError):
        build_norm(spec, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("p", "dim", "count"),
    [
        (0.0625, 512, 32),
        (0.0625, 8, 1),
        (0.1, 30, 3),
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.1, 31, 4),
        (0.7, 10, 7),
        (1.0, 7, 7),
        (1e-6, 7, 1),
        (0.5, 1, 1),
        (1 / 3, 9, 3),
        (0.29, 100, 29),
    ],
)
def test_share_of_features(p: float, dim: int, count: int) -> None:
    assert share(p, dim) == count
    assert build_norm("prmsnorm", dim, p=p).k == count


@pytest.mark.parametrize("name", NAMES)
def test_info_says_what_it_is(name: str) -> None:
    info = norm_info(name.upper())
    assert info.name == name
    assert info.summary.endswith(".")
    assert "\n" not in info.summary
    assert info.formula
    assert info.parameters
    assert info.source
    built = build_norm(name, 8)
    for option, default in info.options.items():
        have = getattr(built, option)
        assert (have is not None if option == "bias" else have) == default
        assert option in info.description


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_norm(name: str) -> None:
    """What `norms show` prints is the docstring: sections, defaults and departures."""
    description = norm_info(name).description
    assert "Published defaults:" in description or name == "none"
    assert "\nDepartures: " in description or name == "none"
    assert "\nArgs:\n" in description
    assert "\nRaises:\n" in description
    assert max(map(len, description.splitlines())) <= 100


@pytest.mark.parametrize("wrong", ["scale", ["scale", "rotation"]])
def test_invariances_that_are_none(wrong: Any) -> None:
    with pytest.raises(UserError, match="'scale' and 'shift'"):
        register_norm("odd", invariances=wrong)


def test_numbers_that_a_constructor_refuses() -> None:
    with pytest.raises(UserError, match="alpha_init must be a finite number"):
        DyT(8, alpha_init=float("nan"))
    with pytest.raises(UserError, match="shift_init must be a finite number"):
        Derf(8, shift_init=True)


def test_a_third_party_norm() -> None:
    @register_norm("Half_Norm", formula="gain * x", source="nobody")
    class HalfNorm(nn.Module):
        """Scales by a gain."""

        def __init__(self, dim: int, gain: float = 0.5, mode: str = "a", n: int = 1) -> None:
            super().__init__()
            self.gain, self.mode, self.n = gain, mode, n

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gain * x

    assert "half-norm" in norm_names()
    built = build_norm("halfnorm:gain=2,mode=b,n=3", 4, dtype=torch.float32)
    assert isinstance(built, HalfNorm)
    assert (built.gain, built.mode, built.n) == (2.0, "b", 3)
    assert built.spec == "half-norm:gain=2.0,mode=b,n=3"
    assert norm_info("half-norm").summary == "Scales by a gain."
    assert norm_info("half-norm").options == {"gain": 0.5, "mode": "a", "n": 1}
    with pytest.raises(UserError, match="whole number"):
        build_norm("half-norm:n=1.5", 4)


def test_a_function_and_options_of_unknown_type() -> None:
    @register_norm("made")
    def make(dim: int, *, size: Any = None) -> nn.Module:
        module = nn.Identity()
        module.size = size
        return module

    assert build_norm("made:size=3", 4).size == 3
    assert build_norm("made:size=0.5", 4).size == 0.5
    assert build_norm("made:size=wide", 4).size == "wide"
    assert build_norm("made:size=true", 4).size is True


def test_names_are_taken_once() -> None:
    with pytest.raises(UserError, match="taken"):
        register_norm("RMS_norm")(nn.Identity)
    assert type(build_norm("rmsnorm", 4)).__name__ == "RMSNorm"


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a=b", "-a", 3])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        register_norm(name)


def test_a_factory_that_builds_no_module() -> None:
    register_norm("broken")(lambda dim: dim)
    with pytest.raises(UserError, match="torch module"):
        build_norm("broken", 4)


class _Point:
    """Stands in for an installed package's entry point."""

    def __init__(self, name: str, loaded: object) -> None:
        self.name, self.value, self._loaded = name, f"package:{name}", loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def _offer(monkeypatch: pytest.MonkeyPatch, *points: _Point) -> list[str]:
    groups: list[str] = []

    def entry_points(*, group: str) -> list[_Point]:
        groups.append(group)
        return list(points)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return groups


class _Plain(nn.Module):
    """A norm of a package."""

    def __init__(self, dim: int) -> None:
        super().__init__()


def test_entry_points_are_found_by_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = _offer(monkeypatch, _Point("from-package", _Plain))
    assert isinstance(build_norm("from_package", 4), _Plain)
    assert set(groups) == {"normtrain.norms"}
    assert "from-package" in norm_names()


def test_a_broken_entry_point_breaks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, _Point("bad", ImportError("no such thing")), _Point("good", _Plain))
    with pytest.warns(UserWarning, match=r"'bad'.*no such thing"):
        assert isinstance(build_norm("good", 4), _Plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once is enough
        with pytest.raises(UserError, match="unknown norm 'bad'"):
            build_norm("bad", 4)


def test_an_entry_point_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, _Point("rmsnorm", _Plain))
    with pytest.warns(UserWarning, match="taken"):
        norm_names()
    assert type(build_norm("rmsnorm", 4)).__name__ == "RMSNorm"


def test_an_entry_point_whose_module_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    register_norm("itself")(_Plain)
    _offer(monkeypatch, _Point("itself", _Plain))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "itself" in norm_names()


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "l1norm", "dyt"])
def test_flags_are_true_or_false(name: str) -> None:
    with pytest.raises(UserError, match="must be True or False"):
        registry.lookup(name).factory(4, bias="no")


def test_eps_has_an_end() -> None:
    with pytest.raises(UserError, match="eps must be at most"):
        build_norm("rmsnorm", 4, eps=1e30)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_only_floating_point_is_normalised(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="needs floating-point input"):
        build_norm(name, 4)(torch.ones(2, 4, dtype=dtype))
