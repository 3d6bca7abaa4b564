"""Exact conversions of somebody else's model, whose streams the caller describes."""

import copy
from typing import Any

import pytest
import torch
from scrambled import relative_error, scramble
from torch import Tensor, nn

from normtrain.convert import Stream, to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.errors import UserError


class Custom(nn.Module):
    """Somebody's own Pre-LN model, its embedding tied to its head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)
        self.last = nn.LayerNorm(6, elementwise_affine=False)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.outer(self.inner(self.norm(x)).relu())
        return self.head(self.last(x))


CUSTOM = Stream(6, {"norm": ("inner",), "last": ("head",)}, ("outer",), ("table",))


@pytest.mark.parametrize("to", ["rmsnorm", "crmsnorm", "layernorm"])
def test_any_model_with_its_streams_described(to: str) -> None:
    model = scramble(Custom()).double()
    ids = torch.randint(9, (4, 5))
    expected = model(ids).detach()
    with pytest.raises(UserError, match="streams of a Custom are not known"):
        to_rmsnorm(model)
    if to == "crmsnorm":
        to_crmsnorm(model, streams=[CUSTOM])
    else:
        to_rmsnorm(model, streams=[CUSTOM])
        assert model.head.weight is model.table.weight
    if to == "layernorm":
        to_layernorm(model, streams=[CUSTOM])
        assert type(model.norm) is nn.LayerNorm
        assert type(model.table) is nn.Embedding
    assert relative_error(model(ids).detach(), expected) <= 1e-12
    assert relative_error(copy.deepcopy(model)(ids).detach(), expected) <= 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"writers": ("missing",)}, "no module or parameter missing"),
        ({"writers": ("norm",)}, "norm is a LayerNorm, not a plain linear layer"),
        ({"writers": ("inner",)}, "inner writes 8 features into a stream of 6"),
        ({"norms": {"absent": ()}}, "no module absent"),
        ({"norms": {"inner": ()}}, "inner (Linear) cannot be converted"),
        ({"width": 7}, r"norm norms (6,), but its stream has 7"),
        ({"entry": "nowhere"}, "no module nowhere"),
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, Any], message: str) -> None:
    plain = {"width": 6, "norms": {"norm": ("inner",)}, "writers": ("outer",)} | change
    with pytest.raises(UserError) as failure:
        to_rmsnorm(Custom(), streams=[Stream(**plain)])
    assert message in str(failure.value)
