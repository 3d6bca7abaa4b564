"""No normalization: the identity under the name ``none``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normtrain.norms.registry import checked_dim, register_norm


@register_norm("none", formula="x", parameters="none", source="no paper")
class NoNorm(nn.Module):
    """Returns the input unchanged.

    For ablations without normalization. Deep models rarely train without it: in the comparison of
    Xu et al. 12 layers diverge on En-De and lose 2.8 BLEU on En-Vi against LayerNorm. It is also
    the value of an optional norm (of embeddings, of queries and keys) that is switched off.

    Args:
        dim: size of the last axis, at least 1; only stored.
        device: unused, as there are no parameters.
        dtype: unused, as there are no parameters.

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
        """Do nothing, as there are no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` unchanged."""
        return x

    def extra_repr(self) -> str:
        """Return the size, for ``print(model)``."""
        return str(self.dim)
