"""Models that only look convertible, and descriptions that leave something out."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scrambled import relative_error, scramble
from torch import Tensor, nn
from torch.nn.utils import prune

from normtrain.convert import Stream, streams_of, to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.models.config import CausalLMConfig


class Small(nn.Module):
    """A Pre-LN model with one block."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)
        self.last = nn.LayerNorm(6)
        self.head = nn.Linear(6, 9)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.outer(self.inner(self.norm(x)).relu())
        return self.head(self.last(x))


STREAM = Stream(6, {"norm": ("inner",), "last": ("head",)}, ("outer",), ("table",))
IDS = torch.arange(9)[None]


def stream(**changes: Any) -> list[Stream]:
    plain = {"width": 6, "norms": STREAM.norms, "writers": ("outer",), "inputs": ("table",)}
    return [Stream(**plain | changes)]


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class Doubled(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _weight_norm(name: str) -> Callable[[Small], None]:
    return lambda m: nn.utils.parametrizations.weight_norm(getattr(m, name)) and None


def _prune(name: str) -> Callable[[Small], None]:
    return lambda m: prune.random_unstructured(getattr(m, name), "weight", 0.3)


def _hook(name: str) -> Callable[[Small], None]:
    return lambda m: getattr(m, name).register_forward_hook(lambda *_: None) and None


def _patch(model: Small) -> None:
    model.outer.forward = lambda x: torch.zeros(*x.shape[:-1], 6)  # type: ignore[method-assign]


def _share(model: Small) -> None:
    model.spare = nn.Linear(8, 6)
    model.spare.weight = model.outer.weight


def _scale_table(model: Small) -> None:
    model.table = Scaled(9, 6)


def _double_norm(model: Small) -> None:
    model.last = Doubled(6)


def _clip_table(model: Small) -> None:
    model.table.max_norm = 1.0


def _meta(model: Small) -> None:
    model.to("meta")


CHANGES: dict[str, tuple[Callable[[Small], None], str]] = {
    "parametrized writer": (_weight_norm("outer"), "the weight of outer must be a plain"),
    "parametrized norm": (_weight_norm("norm"), "the weight of norm must be a plain"),
    "pruned writer": (_prune("outer"), "outer has forward hooks"),
    "pruned norm": (_prune("last"), "last has forward hooks"),
    "hooked writer": (_hook("outer"), "outer has forward hooks"),
    "hooked norm": (_hook("norm"), "norm has forward hooks"),
    "hooked table": (_hook("table"), "table has forward hooks"),
    "patched writer": (_patch, "a patched forward"),
    "shared writer": (_share, "outer shares its weight with spare"),
    "scaling table": (_scale_table, "table is a Scaled, which may do more"),
    "other maths in a norm": (_double_norm, "last (torch.nn.Doubled) cannot be converted"),
    "clipping table": (_clip_table, "(max_norm)"),
    "no values": (_meta, "has no values yet"),
}


@pytest.mark.parametrize("to", [to_rmsnorm, to_crmsnorm], ids=["rmsnorm", "crmsnorm"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_computes_something_else_is_refused(change: str, to: Any) -> None:
    alter, message = CHANGES[change]
    model = scramble(Small())
    alter(model)
    kinds = [type(m) for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError) as failure:
        to(model, streams=[STREAM])
    assert message in str(failure.value)
    assert [type(m) for m in model.modules()] == kinds
    if change != "no values":
        assert all(torch.equal(*p) for p in zip(weights, model.parameters(), strict=True))


DESCRIPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no readers": ({"norms": {"norm": ("inner",), "last": ()}}, "the output of last leaves"),
    "one reader of two": ({"norms": {"norm": ("inner",), "last": ("inner",)}}, "reads two norms"),
    "narrow reader": ({"norms": {"norm": ("outer",), "last": ("head",)}}, "outer reads 8"),
    "writer twice": ({"writers": ("outer", "outer")}, "are one module"),
    "no streams": ({"width": 5}, "has 5 features"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_wrong_descriptions_change_nothing(case: str) -> None:
    changes, message = DESCRIPTIONS[case]
    model = scramble(Small())
    expected = model(IDS)
    with pytest.raises(UserError) as failure:
        to_crmsnorm(model, streams=stream(**changes))
    assert message in str(failure.value)
    assert torch.equal(model(IDS), expected)


def test_descriptions_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="sequence of names"):
        Stream(6, {"norm": "inner"}, ("outer",))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="sequence of names"):
        Stream(6, {"norm": ("inner",)}, "outer")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        to_rmsnorm("model")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no residual stream"):
        to_rmsnorm(Small(), streams=[])
    model = scramble(Small())
    assert to_rmsnorm(model, streams=STREAM).replaced  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "name"), [({"writers": ()}, "outer"), ({"inputs": ()}, "table")]
)
def test_a_forgotten_writer_is_pointed_out(changes: dict[str, Any], name: str) -> None:
    report = to_rmsnorm(scramble(Small()), streams=stream(**changes))
    assert f"no stream names {name}" in str(report)
    assert "no stream names" not in str(to_rmsnorm(scramble(Small()), streams=[STREAM]))


def test_grouped_convolutions_and_tied_inputs_are_refused() -> None:
    model = Small()
    model.patches = nn.Conv1d(4, 6, 2, groups=2)
    with pytest.raises(UserError, match="patches is a grouped convolution"):
        to_rmsnorm(model, streams=stream(inputs=("patches",)))
    model = Small()
    model.first, model.again = nn.Linear(4, 6), nn.Linear(4, 6)
    model.again.weight = model.first.weight
    with pytest.raises(UserError, match="first shares its weight with again"):
        to_rmsnorm(model, streams=stream(inputs=("first",)))


def decoder(**options: Any) -> CausalLMConfig:
    """A decoder's config, of one layer."""
    sizes = {"norm": "layernorm", "d_model": 6, "heads": 2, "d_ff": 8, "dropout": 0.0, "layers": 1}
    sizes |= {"positions": "learned", "max_positions": 8, "activation": "relu"}
    return CausalLMConfig(**(sizes | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [6, 64, 512])
def test_weights_that_were_never_recentred_are_told_apart(dtype: torch.dtype, width: int) -> None:
    """In bfloat16 rounding is coarse, but a random mean is coarser."""
    config = decoder(norm="rmsnorm:bias=true", d_model=width)
    model = CausalLM(config, 11).to(dtype)
    with pytest.raises(UserError, match="adds a mean"):
        to_layernorm(model)
    with pytest.raises(UserError, match="reads the mean"):
        to_crmsnorm(model)
    config = decoder(norm="layernorm", d_model=width)
    model = CausalLM(config, 11).to(dtype)
    to_rmsnorm(model)
    assert "agree to that precision" in str(to_layernorm(copy.deepcopy(model))) or (
        dtype == torch.float32
    )
    to_crmsnorm(model)


def test_own_streams_can_not_be_chosen() -> None:
    config = decoder()
    model = CausalLM(config, 11)
    with pytest.raises(UserError, match="leave streams out"):
        to_rmsnorm(model, streams=stream())
    assert to_rmsnorm(copy.deepcopy(model), streams=streams_of(model)).replaced
    with pytest.raises(UserError, match="the model to convert is the 0 of this module"):
        to_rmsnorm(nn.Sequential(model), streams=[STREAM])
    with pytest.raises(UserError, match=r"convert its \.module before"):
        to_rmsnorm(nn.DataParallel(model))
    with pytest.raises(UserError, match=r"convert its \._orig_mod before"):
        to_rmsnorm(torch.compile(model, backend="eager"))  # type: ignore[arg-type]

    class Other(CausalLM):
        pass

    with pytest.raises(UserError, match="a Other are not known"):
        to_rmsnorm(Other(config, 11))


def test_frozen_parameters_stay_frozen() -> None:
    model = scramble(Small())
    model.requires_grad_(False)
    model.inner.bias.requires_grad_(True)
    to_crmsnorm(model, streams=[STREAM])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"inner.bias"}


def test_an_rmsnorm_without_an_eps_of_its_own() -> None:
    """torch.nn.RMSNorm takes the dtype's rounding unit; with a gain its dtype is known."""
    model = scramble(Small()).double()
    to_rmsnorm(model, streams=[STREAM])
    with torch.no_grad():
        expected = model(IDS)
    for name in ("norm", "last"):
        old = getattr(model, name)
        new = nn.RMSNorm(6, eps=None, dtype=torch.float64)
        assert old.bias is not None
        new.weight = old.weight
        setattr(model, name, new)
    with torch.no_grad():
        expected = model(IDS)
    to_layernorm(model, streams=[STREAM])
    assert relative_error(model(IDS).detach(), expected) < 1e-12
    model.norm = nn.RMSNorm(6, elementwise_affine=False)
    with pytest.raises(UserError, match="norm takes its eps from its input's dtype"):
        to_layernorm(model, streams=[STREAM])
