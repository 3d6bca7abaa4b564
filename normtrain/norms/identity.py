"""No normalization, for the ablation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normtrain.norms.registry import checked_dim, register_norm


@register_norm("none", formula="x", parameters="none", source="no paper")
class NoNorm(nn.Module):
    """The input as it came.

    The ablation without normalization. Deep models rarely train without: in the comparison of Xu et
    al. 12 layers diverge on En-De and lose 2.8 BLEU on En-Vi against LayerNorm. Also what an
    optional norm (of embeddings, of queries and keys) is set to where there is none.

    Args:
        dim: size of the last axis, recorded only.
        device: accepted for symmetry; there are no parameters.
        dtype: accepted for symmetry; there are no parameters.

    Raises:
        UserError: dim is not a whole number of at least 1.
    """

    spec = "none"

    def __init__(
        self,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = checked_dim(dim)

    def reset_parameters(self) -> None:
        """Nothing to reset."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def extra_repr(self) -> str:
        """The size, for ``print(model)``."""
        return str(self.dim)
