"""Comparing outputs, switching dropout off, counting calls, keeping generators."""

from __future__ import annotations

import contextlib
import math
import random
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain.swap.check import probe

NAN, INF = math.nan, math.inf


def out(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"y": torch.tensor(values, dtype=dtype)}


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (out(3, 4), out(3, 4), 0.0),
        (out(3, 4.5), out(3, 4), 0.5 / 5),
        (out(0, 0), out(3, 4), 1.0),
        (out(1), out(0), INF),
        (out(0), out(0), 0.0),
        (out(NAN, INF, 4), out(NAN, INF, 4), 0.0),
        (out(NAN, 4), out(1, 4), INF),
        (out(1, 4), out(NAN, 4), INF),
        (out(INF), out(-INF), INF),
        (out(1, 2), out(1), INF),
        ({}, out(1), INF),
        ({}, {}, 0.0),
    ],
)
def test_relative_difference(found: Any, wanted: Any, expected: float) -> None:
    assert probe.relative_difference(found, wanted)[0] == pytest.approx(expected, rel=1e-6)


def test_the_worst_tensor_is_named() -> None:
    wanted = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    found = wanted | {"a": torch.ones(2) * 1.1, "b": torch.ones(2) * 0.5}
    assert probe.relative_difference(found, wanted) == (pytest.approx(0.5), "b")


def test_outputs_agree_up_to_rounding_only() -> None:
    assert probe.agree(out(1, 1.00001), out(1, 1), 1e-4)
    assert not probe.agree(out(1, 1.001), out(1, 1), 1e-4)
    # What cancels out to nothing is rounding, however unlike.
    assert probe.agree(out(1e-8), out(-2e-8), 1e-4)
    assert not probe.agree(out(1e-5), out(-2e-5), 1e-4)
    assert not probe.agree(
        out(1e-8) | {"z": torch.ones(1) * 2}, out(2e-8) | {"z": torch.ones(1)}, 0.1
    )
    assert not probe.agree(out(NAN), out(1), 1e-4)


def test_the_coarsest_dtype_decides_the_tolerance() -> None:
    half, double = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).double()
    assert probe.tolerance(half, out(1)) > probe.tolerance(nn.Linear(2, 2), out(1))
    assert probe.tolerance(double, out(1)) > probe.tolerance(double, out(1, dtype=torch.float64))


def test_floats_are_found_wherever_they_are() -> None:
    @dataclass
    class Output:
        loss: Tensor
        rest: Any

    Pair = namedtuple("Pair", "left right")
    x = torch.ones(1)
    value = Output(x, {"ids": torch.ones(1, dtype=torch.long), "h": [x, Pair(None, x)], "n": 3})
    assert [path for path, _ in probe.floats(value)] == ["loss", "rest.h.0", "rest.h.1.1"]
    assert [path for path, _ in probe.floats(x)] == ["the output"]


def test_what_is_kept_does_not_change_any_more() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    seen = probe.kept({"y": y})
    with torch.no_grad():
        y.zero_()
    assert seen["y"].tolist() == [2, 2]
    assert not seen["y"].requires_grad


class Dropping(nn.Module):
    """Drops in every way that people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.planes = nn.Dropout(0.5), nn.Dropout2d(0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.rnn = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)
        self.attention_dropout, self.drop_prob = 0.5, 0.5
        self.config = SimpleNamespace(resid_pdrop=0.5, drop_last=True, dropless=3.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.planes(self.plain(x)[:, None])[:, 0]
        y = self.rnn(y + self.attention(x, x, x)[0])[0]
        for p in (self.attention_dropout, self.drop_prob, self.config.resid_pdrop):
            y = F.dropout(y, p, self.training)
        return y


def test_dropout_goes_off_and_nothing_else() -> None:
    model, x = Dropping(), torch.randn(2, 5, 8)
    assert not torch.equal(model(x), model(x))
    assert probe.without_dropout(model) is model
    assert torch.equal(model(x), model(x))
    assert (model.config.drop_last, model.config.dropless) == (True, 3.0)


def test_calls_are_counted_without_hooks_and_nothing_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    shared = nn.Sequential(model[0], model[1], model[0])
    with probe.calls_counted({"a": model[0], "b": model[1]}) as counts:
        shared(torch.ones(2))
        assert not model[0]._forward_hooks
        assert not model[0]._forward_pre_hooks
    shared(torch.ones(2))
    assert dict(counts) == {"a": 2, "b": 1}
    assert "forward" not in vars(model[0])


def test_generators_are_put_back_after_a_failure_too() -> None:
    probe.seed_all(3)
    first = random.random(), np.random.rand(), torch.rand(1).item()
    probe.seed_all(3)
    with contextlib.suppress(KeyError), probe.generators_kept():
        probe.seed_all(4)
        assert (random.random(), np.random.rand(), torch.rand(1).item()) != first
        raise KeyError
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_the_device_is_meta_if_any_of_the_model_is() -> None:
    assert probe.device_of(nn.Identity()).type == "cpu"
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert probe.device_of(model).type == "meta"
