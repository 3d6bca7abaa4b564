"""Label-smoothed cross-entropy of a linear head, and the plain one that validation reports."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NONE = -100  # an index that no token has


class _CrossEntropy(torch.autograd.Function):
    """Mean smoothed cross-entropy whose backward turns the log-probabilities into the gradient.

    A step's largest arrays are (tokens, vocab). `F.cross_entropy` has three of them alive in
    backward: the log-probabilities, the gradient of `nll_loss` (zeros but for one number a row) and
    its own result. Here the first becomes the last in place, so a graph can be gone through once
    only; a second time is autograd's error. Logits of half precision are summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, smoothing: float, ignore_index: int
    ) -> Tensor:
        half = logits.dtype.itemsize < 4
        log_probs = F.log_softmax(logits, -1, dtype=torch.float32 if half else None)
        counts = target.ne(ignore_index)
        index = target.masked_fill(~counts, 0)[:, None]
        loss = (smoothing - 1) * log_probs.gather(1, index).squeeze(1)
        if smoothing:
            loss = loss - smoothing / log_probs.size(1) * log_probs.sum(-1)
        weight = counts.to(loss.dtype) / counts.sum()
        ctx.save_for_backward(log_probs, index, weight)
        ctx.smoothing, ctx.dtype = smoothing, logits.dtype
        return loss.masked_fill(~counts, 0.0).sum() / counts.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        log_probs, index, weight = ctx.saved_tensors
        out = log_probs.exp_()
        if ctx.smoothing:
            out.sub_(ctx.smoothing / out.size(1))
        out.scatter_(1, index, out.gather(1, index) - (1 - ctx.smoothing))
        return out.mul_((weight * grad)[:, None]).to(ctx.dtype), None, None, None


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
