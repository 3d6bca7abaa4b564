"""Label-smoothed cross-entropy of a linear head, and the plain one that validation reports."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NONE = -100  # an index that no token has
CACHED = 4 << 20  # bytes of float32 logits worked on at once on a CPU, to stay in its cache
COPIED = 256 << 20  # and elsewhere, where those of half precision are copied


class _CrossEntropy(torch.autograd.Function):
    """Mean smoothed cross-entropy that turns its logits into their gradient, in place.

    A step's largest arrays are (tokens, vocab). `F.cross_entropy` has up to four of them: logits,
    log-probabilities (of float32), the gradient of `nll_loss` (zeros but for one number a row) and
    its own result. This has one, and takes one exponential of each logit. So the logits must be
    nobody else's, and a graph can be gone through once; a second time is autograd's error.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, smoothing: float, ignore_index: int
    ) -> Tensor:
        logits = logits.detach()
        wide = torch.float32 if logits.dtype.itemsize < 4 else logits.dtype
        counts = target.ne(ignore_index)
        index = target.masked_fill(~counts, 0)[:, None]
        truth = logits.gather(1, index).to(wide)
        most, sums = torch.empty_like(truth), torch.empty_like(truth)
        below = torch.empty_like(truth) if smoothing else None
        rows = max(1, (CACHED if logits.is_cpu else COPIED) // (4 * logits.size(1)))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            mean = None if below is None else below[part]
            _exponentials(logits[part], most[part], sums[part], mean)
        loss = sums.log() + (1 - smoothing) * (most - truth)
        if below is not None:
            loss -= smoothing * below
        weight = counts[:, None].to(wide) / counts.sum()
        ctx.save_for_backward(logits, index, (truth - most).exp() / sums, weight, sums)
        ctx.smoothing = smoothing
        return loss.masked_fill(~counts[:, None], 0.0).sum() / counts.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out, index, probability, weight, sums = ctx.saved_tensors
        weight = weight * grad
        spread = ctx.smoothing / out.size(1)
        if ctx.smoothing:
            torch.addcmul(-spread * weight, out, weight / sums, out=out)
        else:
            out.mul_(weight / sums)
        true = weight * (probability - spread - (1 - ctx.smoothing))
        return out.scatter_(1, index, true.to(out.dtype)), None, None, None


def _exponentials(logits: Tensor, most: Tensor, sums: Tensor, below: Tensor | None) -> None:
    """Put ``exp(x - max)`` in the place of some rows.

    ``most``, ``sums`` and, if there is one, ``below`` take each row's maximum, the sum of its
    exponentials, and the mean of ``x - max``.
    """
    values = logits.to(sums.dtype)  # itself, unless of half precision
    torch.amax(values, -1, keepdim=True, out=most)
    values.sub_(most)
    if below is not None:
        torch.mean(values, -1, keepdim=True, out=below)
    torch.sum(values.exp_(), -1, keepdim=True, out=sums)
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
    """Mean label-smoothed cross-entropy over real tokens (Szegedy et al. 2016, section 7).

    Args:
        hidden: ``(batch, time, dim)``.
        weight: ``(vocab, dim)``, the output matrix.
        target: ``(batch, time)`` int64.
        smoothing: share of the probability spread evenly over the vocabulary.
        bias: ``(vocab,)``, the logits' bias, or None.
        ignore_index: the target that is no real token, if there is one.

    Returns:
        A scalar, nats a token.
    """
    logits = F.linear(hidden, weight, bias).flatten(0, 1)
    loss: Tensor = _CrossEntropy.apply(logits, target.flatten(), smoothing, ignore_index)
    return loss


def summed_loss(logits: Tensor, target: Tensor, *, ignore_index: int = NONE) -> Tensor:
    """Cross-entropy without smoothing, summed over real tokens: nats, as a float64 scalar."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return losses.double().sum()
