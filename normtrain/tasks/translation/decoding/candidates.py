"""The best next tokens of each row of logits, with their log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def row_candidates(
    logits: Tensor, count: int, banned: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rank the ``count`` best allowed tokens of every row, equal logits by token id.

    Banned tokens keep their share of the softmax and come out at minus infinity.

    Args:
        logits: (R, V) float32 or float64.
        count: allowed tokens wanted from each row.
        banned: ids that may not be generated.

    Returns:
        Log-probabilities (R, C) in falling order (but for the banned), their token ids (R, C),
        and the log-probabilities of all tokens (R, V); C is ``count + len(banned)`` or V. None if
        a row has no finite normaliser.
    """
    wanted = min(count + len(banned), logits.shape[1])
    # One more than wanted shows whether the last place was a tie.
    best, tokens = logits.topk(min(wanted + 1, logits.shape[1]), dim=1)
    every = logits.log_softmax(dim=1)
    # topk leaves the order of equal values open.
    tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] != -torch.inf)).any(dim=1)
    if bool(tied.any()):
        rows = tied.nonzero().squeeze(1)
        order = logits[rows].sort(dim=1, descending=True, stable=True).indices
        tokens[rows] = order[:, : tokens.shape[1]]
    tokens = tokens[:, :wanted].contiguous()
    log_probs = every.gather(1, tokens)
    # A NaN or an infinity among the logits leaves no finite log-probability, the best's included.
    if not bool(log_probs[:, 0].isfinite().all()):
        return None
    for token in banned:
        log_probs = log_probs.masked_fill(tokens == token, -torch.inf)
    return log_probs, tokens, every
