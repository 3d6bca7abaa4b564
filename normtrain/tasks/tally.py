"""Sum losses over batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from normtrain.ranks import several_ranks


@dataclass
class Tally:
    """A sum of losses and the number of tokens it is over."""

    loss: float = 0.0
    tokens: int = 0

    def over_ranks(self, device: torch.device) -> Tally:
        """Return the sum of all ranks' tallies."""
        if not several_ranks():
            return self
        totals = torch.tensor([self.loss, self.tokens], dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        return Tally(float(totals[0]), int(totals[1]))

    @property
    def mean(self) -> float:
        """Loss per token; 0 without tokens."""
        return self.loss / max(1, self.tokens)
