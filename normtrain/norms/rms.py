"""Norms that divide without centring: RMSNorm, pRMSNorm, CRMSNorm, ScaleNorm and FixNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.norms.base import NormBase, positive
from normtrain.norms.registry import register_norm

_SOURCE = "Zhang, Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467"
_JIANG = "Jiang et al. 2023, Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv:2305.14858"
_NGUYEN = "Nguyen, Salazar 2019, Transformers without Tears, arXiv:1910.05895"


class _OptionalGainNorm(NormBase):
    """The constructor of `RMSNorm` and `CRMSNorm`: gain by default, bias on request."""

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        bias: bool = False,
        affine: bool = True,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.affine = affine
        self.add_parameters(weight=affine, bias=bias, device=device, dtype=dtype)


@register_norm(
    "rmsnorm",
    formula="x / sqrt(mean(x^2) + eps) * weight",
    parameters="weight (affine=false drops it, bias=true adds a bias)",
    source=_SOURCE,
    invariances=("scale",),
)
class RMSNorm(_OptionalGainNorm):
    """Root mean square normalization: scaled but not centred.

    LayerNorm without the mean: each input vector is divided by its root mean square, which takes
    one pass fewer over the data. For vectors of mean zero the two are equal. Use it wherever
    LayerNorm is used; the paper reports the same quality in less time. Parameters are named and
    initialized as in `torch.nn.RMSNorm`, so state dicts load in both directions.

    Published defaults: a gain that starts at 1, no bias. eps is 1e-8 in the authors' PyTorch and
    TensorFlow code, 1e-5 in their Theano code (as here) and 1e-6 in their CIFAR-10 code.

    Departures: the authors' PyTorch code adds eps to the root (``eps_mode="outside"``), their
    TensorFlow and Theano code adds it under the root, as here. Their code computes in the input's
    dtype, where a float16 vector of zeros gives NaN; here statistics are float32. Their CIFAR-10
    layer takes the mean square over the pixels of each channel, which is a different norm.
    `torch.nn.RMSNorm` takes its default eps from the dtype; here it is always a number.

    Args:
        dim: size of the last axis, at least 1.
        eps: added to the mean square (``eps_mode="inside"``) or to its root (``"outside"``,
            as in the authors' PyTorch code).
        bias: whether there is a learned bias.
        affine: whether there is a learned gain.
        eps_mode: ``"inside"`` or ``"outside"``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: an argument is out of range.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.rms_norm(x, *self.weight_and_bias(), self.eps, self.eps_mode)


def share(p: float, dim: int) -> int:
    """Return ceil(p * dim), at least 1 and at most dim.

    A product within rounding error of a whole number (0.1 * 30) counts as that number.

    Args:
        p: share of the features, above 0 and at most 1.
        dim: number of features.
    """
    product = p * dim
    whole = round(product)
    count = whole if abs(product - whole) < 1e-9 * max(1, whole) else math.ceil(product)
    return min(dim, max(1, count))


@register_norm(
    "prmsnorm",
    formula="x / sqrt(mean(x[:k]^2) + eps) * weight, k = max(1, ceil(p * dim))",
    parameters="weight",
    source=_SOURCE,
    invariances=("scale",),
)
class PRMSNorm(NormBase):
    """Partial RMSNorm: the root mean square of the first ``p * dim`` features scales all of them.

    A cheaper and noisier estimate of the RMSNorm statistic, for features that are distributed
    alike. Only these first features receive the gradient of the statistic. With few features the
    estimate can make gradients explode; with ``p=1`` the norm equals ``rmsnorm``.

    Published defaults: p = 0.0625 on translation and reading, 0.125 on CIFAR-10; a gain that starts
    at 1.

    Departures: the paper takes ceil(p * dim) features, as here; the authors' code rounds the
    product down and divides by zero where the result is 0 (dim 8 with p = 0.0625). Here at least
    one feature is taken. Their code uses plain RMSNorm without a warning for p outside of 0 to 1;
    here such a p is an error. eps and dtypes as for ``rmsnorm``.

    Args:
        dim: size of the last axis, at least 1.
        p: share of the features that the statistic is taken from, above 0 and at most 1.
        eps: added to the mean square (``eps_mode="inside"``) or to its root (``"outside"``).
        eps_mode: ``"inside"`` or ``"outside"``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        p: float = 0.0625,
        eps: float = 1e-5,
        eps_mode: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, eps_mode)
        self.p = positive("p", p)
        if self.p > 1:
            raise UserError(f"p must be at most 1 (it is a share of the features), got {p!r}")
        self.k = share(self.p, dim)
        self.add_parameters(weight=True, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.rms_norm(x, *self.weight_and_bias(), self.eps, self.eps_mode, self.k)


@register_norm(
    "crmsnorm",
    formula="x / sqrt((sum(x^2) + sum(x)^2) / (dim + 1) + eps) * weight",
    parameters="weight (affine=false drops it, bias=true adds a bias)",
    source=_JIANG,
    invariances=("scale",),
)
class CRMSNorm(_OptionalGainNorm):
    """Compressed RMSNorm: the RMSNorm of dim + 1 features that sum to zero, one of them implied.

    A vector whose features sum to zero is determined by all features but the last, which is minus
    the sum of the others. The output is the first dim features of LayerNorm on the whole vector. A
    Pre-LN Transformer has this norm once its residual stream drops the feature that centring made
    redundant, so use it for converted models. Trained from scratch it is the same model with
    different parameters.

    Published defaults: no gain and no bias (folded into the next layer), eps 1e-5 in PyTorch and
    1e-6 in JAX, inside the root. Here the gain is on unless ``affine=false``.

    Departures: the authors' PyTorch module inherits a weight and a bias from LayerNorm and ignores
    both; here they are applied. Their benchmarks also time the operation at the width of the whole
    vector ("pre-crms-same-dim"), which is not equivalent to any norm; here dim is the stored width.

    Args:
        dim: number of stored features, one fewer than the vector stands for.
        eps: added to the mean square (``eps_mode="inside"``) or to its root (``"outside"``).
        bias: whether there is a learned bias.
        affine: whether there is a learned gain.
        eps_mode: ``"inside"`` or ``"outside"``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        UserError: an argument is out of range.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.crms_norm(x, *self.weight_and_bias(), self.eps, self.eps_mode)


@register_norm(
    "scalenorm",
    formula="x / max(|x|, eps) * weight, |x| the Euclidean length",
    parameters="weight (one scalar, sqrt(dim) at the start)",
    source=_NGUYEN,
    invariances=("scale",),
)
class ScaleNorm(NormBase):
    """Scales every input vector to one learned length.

    RMSNorm with a single gain, weight / sqrt(dim), for all features: fewer parameters and one
    multiplication less. The authors use it before each sublayer of translation models trained on
    little data, together with ``fixnorm`` on the embeddings.

    Published defaults: weight sqrt(dim) at the start, eps 1e-5 as the least length.

    Departures: the authors' code computes the length in the input's dtype; here it is float32. The
    paper's variant with the weight fixed at sqrt(d) is not in their code; here it is
    ``requires_grad_(False)`` on the weight.

    Args:
        dim: size of the last axis, at least 1.
        eps: the least length that is divided by.
        device: device of the parameter.
        dtype: dtype of the parameter.

    Raises:
        UserError: dim or eps is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps)
        self.weight = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``weight`` to the square root of dim."""
        assert self.weight is not None
        nn.init.constant_(self.weight, math.sqrt(self.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.l2_norm(x, self.weight, self.eps)


@register_norm(
    "fixnorm",
    formula="x / max(|x|, eps), |x| the Euclidean length",
    parameters="none",
    source=_NGUYEN,
    invariances=("scale",),
)
class FixNorm(NormBase):
    """Scales every input vector to length 1; for word embeddings.

    A model applies it to the embedding vectors before it multiplies them by sqrt(d_model), and to
    the rows of an output matrix that shares the embedding's weights. The length of a word's vector
    then has no influence on its logit. Between sublayers it gives features of size 1 / sqrt(dim);
    use ``scalenorm`` there.

    Published defaults: unit length; the embeddings start uniform in (-0.01, 0.01).

    Departures: the authors' least length is 1e-12, that of torch.nn.functional.normalize; here eps
    is 1e-5 by default, because the gradient of a vector of zeros is the upstream gradient over eps.

    Args:
        dim: size of the last axis, at least 1.
        eps: the least length that is divided by.
        device: unused, as there are no parameters.
        dtype: unused, as there are no parameters.

    Raises:
        UserError: dim or eps is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., dim)``; same shape and dtype."""
        self.check(x)
        return kernels.l2_norm(x, None, self.eps)
