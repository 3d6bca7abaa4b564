"""What several processes find, put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from normtrain.tasks.translation.decoding.translate import TranslationResult

_T = TypeVar("_T")


@dataclass
class Tally:
    """A sum of losses and the number of tokens it is over."""

    loss: float = 0.0
    tokens: int = 0

    def over_ranks(self, device: torch.device) -> Tally:
        """The sum of all ranks' tallies."""
        if not several_ranks():
            return self
        totals = torch.tensor([self.loss, self.tokens], dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        return Tally(float(totals[0]), int(totals[1]))

    @property
    def mean(self) -> float:
        """Loss a token; 0 where there were none."""
        return self.loss / max(1, self.tokens)


def several_ranks() -> bool:
    """Whether other processes take part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(mine: dict[int, _T]) -> dict[int, _T]:
    """All ranks' parts of a numbered list."""
    if not several_ranks():
        return mine
    everyone: list[dict[int, _T] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {i: each for part in everyone if part for i, each in part.items()}


def all_lines(result: TranslationResult) -> list[str]:
    """The translations of all ranks, in the order of the lines."""
    found = gathered({i: result.lines[i] for i in result.mine})
    return [found[i] for i in range(len(result.lines))]
