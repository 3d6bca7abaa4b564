"""The best next tokens of each row of logits, with their log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def row_candidates(
    logits: Tensor, count: int, banned: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rank the ``count`` best allowed tokens of every row, equal logits by token id.

    Banned tokens keep their share of the softmax and get a log-probability of minus infinity.

    Args:
        logits: (R, V) float32 or float64.
        count: allowed tokens of each row.
        banned: ids that may not be generated.

    Returns:
        Log-probabilities (R, C) in falling order (except the banned), their token ids (R, C), and
        the log-probabilities of all tokens (R, V); C is ``count + len(banned)`` or V. None if a
        row has NaN or Inf logits.
    """
    wanted = min(count + len(banned), logits.shape[1])
    # One more than wanted shows whether the last one is tied.
    best, tokens = logits.topk(min(wanted + 1, logits.shape[1]), dim=1)
    every = logits.log_softmax(dim=1)
    # The order of equal values in topk is undefined.
    tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] != -torch.inf)).any(dim=1)
    if bool(tied.any()):
        rows = tied.nonzero().squeeze(1)
        order = logits[rows].sort(dim=1, descending=True, stable=True).indices
        tokens[rows] = order[:, : tokens.shape[1]]
    tokens = tokens[:, :wanted].contiguous()
    log_probs = every.gather(1, tokens)
    # A NaN or +Inf logit makes every log-probability of its row non-finite, the best one too.
    if not bool(log_probs[:, 0].isfinite().all()):
        return None
    for token in banned:
        log_probs = log_probs.masked_fill(tokens == token, -torch.inf)
    return log_probs, tokens, every
