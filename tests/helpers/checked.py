"""A small model to break, and what its check should be like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.swap.check import SwapCheck

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3)) + 1
PADDING = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]
ALL = [
    "train forward",
    "backward",
    "eval forward",
    "eval contexts",
    "eval as in training",
    "deepcopy",
    "state dict",
    "bf16 autocast",
]


class Small(nn.Module):
    """Linear, norm, linear; what `tail` does with their results is the fault of the day."""

    def __init__(self, tail: Callable[..., Any] = lambda model, y: y) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.tail = tail
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, 0.5, 1.5)

    @property
    def swapped(self) -> bool:
        return type(self.norm) is not nn.LayerNorm

    def forward(self, x: Tensor) -> Any:
        return self.tail(self, self.last(self.norm(self.first(x))))


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


def outcome(result: SwapCheck, name: str) -> tuple[str, str]:
    [found] = [(check.status, check.detail) for check in result.checks if check.name == name]
    return found


def assert_sound(result: SwapCheck, *skipped: str) -> None:
    assert [check.name for check in result.checks] == ALL
    wrong = [c for c in result.checks if c.status != ("skipped" if c.name in skipped else "ok")]
    assert wrong == []
    assert result.failed == []
