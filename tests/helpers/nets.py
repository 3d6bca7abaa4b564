"""Small nets whose norms are swapped, and what must not change where that is refused."""

from typing import Any

from torch import Tensor, nn

from normtrain import SwapReport


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6, eps=1e-6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


class Net(nn.Module):
    """Two blocks, a last norm, a batch norm and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.LayerNorm(6)
        self.batch = nn.BatchNorm1d(6)
        self.group = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.group(self.batch(self.last(x)))


NORMS = ["blocks.0.norm", "blocks.1.norm", "last"]


def small(*norms: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), *(norms or (nn.LayerNorm(6),)))


def names_of(report: SwapReport) -> list[str]:
    return [one.name for one in report.replaced]


def state_of(model: nn.Module) -> Any:
    """Everything of a model that a failed swap must leave alone, by identity where it counts."""
    return [
        (name, id(module), {k: id(p) for k, p in module._parameters.items()})
        + tuple(list(vars(module)[key]) for key in sorted(vars(module)) if "_hooks" in key)
        for name, module in model.named_modules(remove_duplicate=False)
    ]
