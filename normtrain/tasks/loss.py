"""Label-smoothed cross-entropy of a linear head, and plain cross-entropy for validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NONE = -100  # an index that no token has
CACHED = 4 << 20  # bytes of float32 logits processed at once on a CPU, to stay in its cache
COPIED = 256 << 20  # the same on other devices, where half-precision logits are copied
_UNIT = {torch.float16: 256.0}  # largest sum of a row, so that its products stay below 65504


@dataclass
class _Rows:
    """Statistics of each row x of logits, ``(tokens, 1)``.

    ``most`` is max(x), ``mean`` the mean of x - max, ``sums`` the sum of ``exp(x - max)``, and
    ``unit`` the sum of these exponentials as they are stored, which is smaller for float16.
    """

    most: Tensor
    sums: Tensor
    unit: Tensor
    mean: Tensor

    def __getitem__(self, part: slice) -> _Rows:
        return _Rows(self.most[part], self.sums[part], self.unit[part], self.mean[part])


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean smoothed cross-entropy of a linear map, in one array of its logits.

    The largest arrays of a training step are (tokens, vocab). `F.cross_entropy` has up to four of
    them: logits, float32 log-probabilities, the gradient of `nll_loss` and its own result. This
    has one, and takes one exponential of each logit. Its rows are multiples of the gradient's;
    the factors are applied to the rows it is multiplied with, which are shorter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        smoothing: float,
        ignore_index: int,
    ) -> Tensor:
        """Return the loss of ``hidden`` (tokens, dim) and ``target`` (tokens,)."""
        logits = F.linear(hidden, weight, bias)
        wide = torch.float32 if logits.dtype.itemsize < 4 else logits.dtype
        real = target.ne(ignore_index)[:, None]
        index = target[:, None].masked_fill(~real, 0)
        truth = logits.gather(1, index).to(wide)
        rows = _Rows(*(torch.empty_like(truth) for _ in range(4)))
        step = max(1, (CACHED if logits.is_cpu else COPIED) // (4 * logits.size(1)))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            _to_exponentials(logits[part], rows[part], smoothing)
        truth -= rows.most
        loss = rows.sums.log() - (1 - smoothing) * truth
        if smoothing:
            loss -= smoothing * rows.mean
        true = truth.exp() / rows.sums - smoothing / logits.size(1) - (1 - smoothing)
        logits.scatter_(1, index, (true * rows.unit).to(logits.dtype))
        factor = real / (real.sum() * rows.unit)
        ctx.save_for_backward(hidden, weight, logits, factor)
        return loss.masked_fill(~real, 0.0).sum() / real.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias."""
        hidden, weight, multiples, factor = ctx.saved_tensors
        factor, needed = factor * grad, ctx.needs_input_grad
        of_hidden = of_weight = of_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if needed[0]:
                of_hidden = (multiples @ weight * factor).to(hidden.dtype)
            if needed[1]:
                of_weight = multiples.T @ (hidden * factor).to(hidden.dtype)
            if needed[2]:
                of_bias = (multiples.T @ factor.to(multiples.dtype)).squeeze(1)
        return of_hidden, of_weight, of_bias, None, None, None


def _to_exponentials(logits: Tensor, rows: _Rows, smoothing: float) -> None:
    """Replace rows x by ``exp(x - max)`` less their share of the smoothing."""
    values = logits.to(rows.sums.dtype)  # the same tensor, unless of half precision
    torch.amax(values, -1, keepdim=True, out=rows.most)
    values.sub_(rows.most)
    if smoothing:
        torch.mean(values, -1, keepdim=True, out=rows.mean)
    torch.sum(values.exp_(), -1, keepdim=True, out=rows.sums)
    limit = _UNIT.get(logits.dtype, math.inf)
    torch.clamp(rows.sums, max=limit, out=rows.unit)
    if limit < math.inf:
        values.mul_(rows.unit / rows.sums)
    if smoothing:
        values.sub_(smoothing / values.size(1) * rows.unit)
    if values is not logits:
        logits.copy_(values)


def training_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    smoothing: float,
    bias: Tensor | None = None,
    *,
    ignore_index: int = NONE,
) -> Tensor:
    """Return the mean label-smoothed cross-entropy of real tokens (Szegedy et al. 2016, section 7).

    Args:
        hidden: ``(batch, time, dim)``.
        weight: ``(vocab, dim)``, the output matrix.
        target: ``(batch, time)`` int64.
        smoothing: share of the probability spread evenly over the vocabulary.
        bias: ``(vocab,)``, the logits' bias, or None.
        ignore_index: the target of padding, if there is any.

    Returns:
        A scalar, in nats per token; NaN if there is no real token.
    """
    kind = hidden.device.type
    # As autocast does for a linear layer, which the function below hides from it.
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(
            hidden.flatten(0, 1), weight, bias, target.flatten(), smoothing, ignore_index
        )
    return loss


def summed_loss(logits: Tensor, target: Tensor, *, ignore_index: int = NONE) -> Tensor:
    """Return the cross-entropy without smoothing, summed over real tokens: nats, float64 scalar."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return losses.double().sum()
