"""AdaNorm: an input-dependent factor in place of a learned gain and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from normtrain import kernels
from normtrain.norms.base import NormBase, not_negative, positive
from normtrain.norms.registry import register_norm


@register_norm(
    "adanorm",
    formula="C * (1 - k * y) * y, y = (x - mean) / sqrt(variance + eps), factor not differentiated",
    parameters="none",
    source="Xu et al. 2019, Understanding and Improving Layer Normalization, arXiv:1911.07013",
    invariances=("scale", "shift"),
)
class AdaNorm(NormBase):
    """Adaptive normalization: LayerNorm-simple times a factor that depends on its output.

    In place of a learned gain and bias every feature y is scaled by ``C * (1 - k * y)``, which
    decreases features above the mean and increases those below. The factor is a constant in the
    backward pass; the mean and deviation in y are differentiated. The authors report it ahead of
    LayerNorm on seven of eight tasks. The output is not centred: the mean of each output vector is
    ``-k * C``, so the norm cannot be used where vectors of mean zero are required.

    Published defaults: k = 1/10. C is tuned by task; the authors' command line and their De-En
    script have 2.0, with 1.5, 1 and 0.8 tried. Here C is 1 by default.

    Departures: the authors' code takes the unbiased deviation (over dim - 1) and adds eps to it,
    in the input's dtype; here the variance is the population variance, eps is inside the root
    unless ``eps_mode="outside"``, and statistics are float32. Their module allocates a weight and a
    bias that it does not use. In their published fork the layers call LayerNorm without its
    arguments, so that only the final norm of a stack is AdaNorm; its scripts would not give the
    paper's results.

    Args:
        dim: size of the last axis, at least 1.
        C: scale of the output, above 0.
        k: slope of the factor, at least 0; the paper uses 1/10.
        eps: added to the variance (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: unused, as there are no parameters.
        dtype: unused, as there are no parameters.

    Raises:
        UserError: dim, C, k, eps or eps_mode is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        C: float = 1.0,
        k: float = 0.1,
        eps: float = 1e-5,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.C = positive("C", C)
        self.k = not_negative("k", k)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.ada_norm(x, self.eps, self.C, self.k, self.eps_mode)
