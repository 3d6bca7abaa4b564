"""Label-smoothed cross-entropy of a linear head, and the plain one that validation reports."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NONE = -100  # an index that no token has


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
    return F.cross_entropy(
        logits, target.flatten(), ignore_index=ignore_index, label_smoothing=smoothing
    )


def summed_loss(logits: Tensor, target: Tensor, *, ignore_index: int = NONE) -> Tensor:
    """Cross-entropy without smoothing, summed over real tokens: nats, as a float64 scalar."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return losses.double().sum()
