"""Batched beam search over any model that decodes step by step.

The log-probability of a hypothesis is the sum of the model's log-softmax over its tokens and its
EOS; its score is that sum divided by the length penalty of Wu et al. 2016 (arXiv:1609.08144,
equation 14), ``((5 + length) / 6) ** alpha``, where the length counts the EOS.

In each step, for every sentence, the continuations of the live hypotheses are ranked together.
Those among the best ``beam`` that end in EOS are finished; the best ``beam`` of the others stay
live. Equal scores are ranked by hypothesis, then by logit, then by token id, so the result is a
function of the logits alone. A sentence ends only when no live hypothesis can still score better
than its ``beam`` finished ones: stopping early never changes the result.

Shapes: B sentences still in the batch, K beams, R = B * K rows (row-major by sentence), V tokens
in the vocabulary, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.tasks.translation.decoding.candidates import row_candidates


class BeamState(Protocol):
    """A model's state between steps: its caches, laid out as B * K rows."""

    def reorder(self, index: Tensor) -> None:
        """Make row ``i`` a copy of the old row ``index[i]`` ((R,) int64, within a sentence)."""

    def keep(self, sentences: Tensor) -> None:
        """Drop every sentence but these ((n,) int64, ascending positions in the batch)."""


class StepModel(Protocol):
    """A model that can be decoded step by step, such as ``Seq2Seq``."""

    def start(self, source: Tensor, beams: int, max_length: int) -> BeamState:
        """Encode ``source`` (B, S) for at most ``max_length`` steps of ``B * beams`` rows."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Take each row's newest token (R,) and return the next one's logits (R, V)."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished output.

    Attributes:
        tokens: the token ids, without BOS and EOS.
        score: ``log_prob`` divided by the length penalty; hypotheses are ranked by it.
        log_prob: the natural logarithm of the probability of the tokens and the EOS.
    """

    tokens: list[int]
    score: float
    log_prob: float


def length_penalties(longest: int, alpha: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the divisors of log-probabilities by length: ``((5 + length) / 6) ** alpha``.

    Args:
        longest: the greatest length, with the EOS.
        alpha: 0 gives no penalty; larger values favour longer outputs.
        dtype: of the result.

    Returns:
        (longest + 2,); entry ``n`` is for length ``n``.
    """
    lengths = torch.arange(longest + 2, dtype=torch.float64)
    return ((5.0 + lengths) / 6.0).pow(alpha).to(dtype)


@torch.inference_mode()
def beam_search(
    model: StepModel,
    source: Tensor,
    *,
    beam: int,
    length_penalty: float,
    max_length: int | Tensor,
    eos: int = 2,
    bos: int = 1,
    pad: int = 0,
) -> list[list[Hypothesis]]:
    """Find the best outputs for each source sentence.

    Args:
        model: gives logits; must be in eval mode.
        source: (B, S) int64 token ids, as ``model.start`` takes them.
        beam: live hypotheses of each sentence; 1 is greedy search.
        length_penalty: alpha of :func:`length_penalties`.
        max_length: tokens of an output at most, **with its EOS**, for all sentences or (B,) for
            each. A hypothesis of this length is ended with an EOS, at that EOS's probability.
        eos: id that ends an output.
        bos: id that starts an output. Neither it nor ``pad`` is ever generated; both keep their
            share of the softmax.
        pad: the padding id.

    Returns:
        For each sentence its hypotheses, best first: ``beam`` of them, or fewer if fewer have a
        probability above zero.

    Raises:
        UserError: ``beam`` or ``max_length`` is below 1, or ``max_length`` has a wrong shape.
        RunError: the model gave non-finite logits.
    """
    limits = _limits(max_length, source.shape[0])
    if beam < 1:
        raise UserError(f"beam must be >= 1, got {beam}")
    if source.shape[0] == 0:
        return []
    longest = max(limits)
    state = model.start(source, beam, longest)
    tokens = torch.full((source.shape[0] * beam,), bos, dtype=torch.int64, device=source.device)
    search: _Search | None = None
    for length in range(1, longest + 1):
        logits = model.step(tokens, state)
        if search is None:
            search = _Search(limits, beam, length_penalty, (eos, bos, pad), logits)
        tokens, parents = search.advance(logits, length)
        finished = search.finished(length)
        remaining = finished.numel() - int(finished.sum())
        if remaining == 0:
            break
        if beam > 1:
            state.reorder(parents)
        # Dropping sentences copies every cache, so wait until a quarter of the batch is finished.
        if 4 * remaining <= 3 * finished.numel():
            kept = (~finished).nonzero().squeeze(1)
            state.keep(kept)
            tokens = search.keep(kept)
    assert search is not None
    return search.hypotheses()


def _limits(max_length: int | Tensor, batch: int) -> list[int]:
    """The length limit of each sentence, as plain numbers."""
    if isinstance(max_length, Tensor):
        if max_length.shape != (batch,):
            shape = tuple(max_length.shape)
            raise UserError(f"max_length must be a number or have shape ({batch},), got {shape}")
        limits = [int(limit) for limit in max_length.tolist()]
    else:
        limits = [int(max_length)] * batch
    if min(limits, default=1) < 1:
        raise UserError(f"max_length must be >= 1 (it counts the EOS), got {min(limits)}")
    return limits


class _Search:
    """The live and the finished hypotheses of a batch.

    Live hypotheses are stored as a trellis: for each step and beam the chosen token and the beam it
    continues. A finished hypothesis is then two numbers (its length, and the beam it ended from),
    and its tokens are read back once, at the end.
    """

    def __init__(
        self,
        limits: list[int],
        beam: int,
        alpha: float,
        specials: tuple[int, int, int],
        logits: Tensor,
    ) -> None:
        self.beam, self.specials = beam, specials
        batch, longest, device = len(limits), max(limits), logits.device
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.penalties = length_penalties(longest, alpha, dtype).to(device)
        self.limit_values = set(limits)
        self.limits = torch.tensor(limits, device=device)
        self.rows = torch.arange(batch, device=device)
        self.offsets = self.rows.unsqueeze(1) * beam
        # Of the equal hypotheses "BOS" only one is live, or all beams would be the same.
        self.live = torch.full((batch, beam), -torch.inf, dtype=dtype, device=device)
        self.live[:, 0] = 0
        self.tokens = torch.zeros(longest, batch, beam, dtype=torch.int64, device=device)
        self.parents = torch.zeros_like(self.tokens)
        self.scores = torch.full_like(self.live, -torch.inf)
        self.log_probs = torch.full_like(self.live, -torch.inf)
        self.ends = torch.zeros(batch, beam, dtype=torch.int64, device=device)
        self.saved = (self.scores.clone(), self.log_probs.clone(), self.ends.clone())

    def advance(self, logits: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Choose token ``length`` of every live hypothesis from ``logits`` (R, V).

        Returns:
            The chosen tokens (R,) and the row that each continues (R,).
        """
        beam, (eos, bos, pad) = self.beam, self.specials
        candidates = row_candidates(logits.to(self.live.dtype), beam + 1, (bos, pad))
        if candidates is None:
            raise RunError(
                f"the model gave NaN or Inf logits at target position {length}; "
                "its weights are damaged, or training diverged"
            )
        log_probs, tokens, every = candidates
        batch, width = self.live.shape[0], tokens.shape[1]
        totals = (self.live.reshape(-1, 1) + log_probs).view(batch, beam * width)
        totals, order = totals.sort(dim=1, descending=True, stable=True)
        totals, order = totals[:, : 2 * beam], order[:, : 2 * beam]
        tokens = tokens.view(batch, beam * width).gather(1, order)
        parents = order.div(width, rounding_mode="floor")
        ended = tokens == eos
        self._finish(every[:, eos], totals, parents, ended, length)
        if bool(ended.any()):
            # A stable sort on "is an EOS" brings the others to the front in their order.
            live = ended.to(torch.uint8).sort(dim=1, stable=True).indices[:, :beam]
            totals, tokens = totals.gather(1, live), tokens.gather(1, live)
            parents = parents.gather(1, live)
        self.live, tokens, parents = totals[:, :beam], tokens[:, :beam], parents[:, :beam]
        if length in self.limit_values:
            self.live = self.live.masked_fill((self.limits == length).unsqueeze(1), -torch.inf)
        self.tokens[length - 1, self.rows] = tokens
        self.parents[length - 1, self.rows] = parents
        self.newest = tokens
        return tokens.reshape(-1), (parents + self.offsets).view(-1)

    def _finish(
        self, eos_log_probs: Tensor, totals: Tensor, parents: Tensor, ended: Tensor, length: int
    ) -> None:
        """Merge the hypotheses that end at this step with the finished ones."""
        beam = self.beam
        ended, parents = ended[:, :beam], parents[:, :beam]
        if length in self.limit_values:
            # At its limit a sentence can only continue with an EOS, from each beam.
            last = (self.limits == length).unsqueeze(1)
            new = torch.where(ended, totals[:, :beam], -torch.inf)
            new = torch.where(last, self.live + eos_log_probs.view_as(self.live), new)
            parents = torch.where(last, torch.arange(beam, device=last.device), parents)
        elif bool(ended.any()):
            new = torch.where(ended, totals[:, :beam], -torch.inf)
        else:
            return
        scores = torch.cat([self.scores, new / self.penalties[length]], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, :beam]
        self.scores = scores[:, :beam]
        self.log_probs = torch.cat([self.log_probs, new], dim=1).gather(1, order)
        self.ends = torch.cat([self.ends, length * beam + parents], dim=1).gather(1, order)

    def finished(self, length: int) -> Tensor:
        """Which sentences (B,) cannot improve any more.

        A log-probability only falls, so that of a live hypothesis divided by the greatest penalty
        ahead (the limit's, or for a negative alpha the next length's) bounds its final score.
        """
        penalty = torch.maximum(self.penalties[self.limits], self.penalties[length + 1])
        return self.scores[:, -1] >= self.live.amax(dim=1) / penalty

    def keep(self, sentences: Tensor) -> Tensor:
        """Drop all but these sentences (n,); return their newest tokens (n * K,)."""
        self._save()
        for name in ("rows", "limits", "live", "scores", "log_probs", "ends", "newest"):
            setattr(self, name, getattr(self, name).index_select(0, sentences))
        self.offsets = self.offsets[: sentences.numel()]
        return self.newest.reshape(-1)

    def _save(self) -> None:
        for saved, current in zip(
            self.saved, (self.scores, self.log_probs, self.ends), strict=True
        ):
            saved[self.rows] = current

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Return the finished hypotheses of all sentences, with their tokens."""
        self._save()
        scores, log_probs, ends = (saved.cpu() for saved in self.saved)
        lengths, at = ends // self.beam, ends % self.beam
        steps = int(lengths.max()) - 1
        tokens, parents = self.tokens[: max(steps, 0)].cpu(), self.parents.cpu()
        words = torch.zeros(*at.shape, max(steps, 0), dtype=torch.int64)
        for step in range(steps - 1, -1, -1):
            words[:, :, step] = tokens[step].gather(1, at)
            at = torch.where(step < lengths - 1, parents[step].gather(1, at), at)
        columns = (words.tolist(), lengths.tolist(), scores.tolist(), log_probs.tolist())
        return [
            [
                Hypothesis(word[: length - 1], score, log_prob)
                for word, length, score, log_prob in zip(*sentence, strict=True)
                if log_prob != -torch.inf
            ]
            for sentence in zip(*columns, strict=True)
        ]
