"""Sample text from a language model, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.models.modes import evaluating


class PrefillModel(Protocol):
    """A model that continues a prompt, such as ``CausalLM``.

    Attributes:
        vocab_size: number of token ids.
        max_positions: the longest sequence, in tokens.
    """

    vocab_size: int
    max_positions: int

    def start(self, rows: int) -> Any:
        """Return the state of ``rows`` sequences without tokens."""

    def prefill(self, tokens: Tensor, state: Any, *, last: bool) -> Tensor:
        """Feed (rows, T) tokens; with ``last``, return only the last logits, (rows, 1, V)."""


def filter_logits(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Return the logits to sample from: divided by the temperature, excluded tokens at -inf.

    ``top_k`` is applied first, and ``top_p`` to the probabilities of the tokens it keeps. Of equal
    logits the lower id is kept first.

    Args:
        logits: (…, V).
        temperature: below 1 sharpens, above 1 flattens; 0 keeps only the most likely token.
        top_k: keep this many of the most likely tokens (Fan et al. 2018); None keeps all.
        top_p: keep the smallest set of the most likely tokens whose probability reaches this, at
            least one (nucleus sampling, Holtzman et al. 2020); None or 1 keep all.

    Returns:
        (…, V), float32, or float64 for float64.

    Raises:
        UserError: ``temperature`` is below 0 or not finite, ``top_k`` below 1, or ``top_p``
            outside (0, 1].
    """
    _check_filter(temperature, top_k, top_p)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return _top_k(logits, 1)
    # Relative to the largest logit, or a tiny temperature would give Inf - Inf.
    least = torch.finfo(logits.dtype).tiny
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, least)
    if top_k is not None and top_k < logits.size(-1):
        logits = _top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = _top_p(logits, top_p)
    return logits


def generate(
    model: PrefillModel,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Iterable[int] = (),
) -> Iterator[int]:
    """Continue a prompt, one token at a time, lazily.

    The model's context is the tokens so far, up to its ``max_positions``. When they no longer fit,
    it continues from the last ``max_positions // 2`` of them, which are fed again; a longer prompt
    is truncated to those too. Otherwise a token costs one step of the model.

    The model is in eval mode, and gradients are off, while a token is computed; both are restored
    between tokens. Tokens are sampled on the CPU from a separate generator, so a seed gives the
    same choices on any device, and torch's global generator is not used.

    Args:
        model: generates on the device of its parameters.
        prompt_ids: at least one token; the end-of-text token starts from nothing.
        max_tokens: generated tokens at most.
        temperature: see :func:`filter_logits`; 0 is greedy, whatever ``top_k`` and ``top_p``.
        top_k: likewise.
        top_p: likewise.
        seed: the same seed gives the same tokens; None gives others each time.
        stop_ids: any of these tokens ends the text and is not returned.

    Returns:
        An iterator of token ids, without the prompt's. Arguments are checked before it is returned.

    Raises:
        UserError: the prompt is empty or has ids outside the vocabulary, or another argument is
            out of range.
        RunError: the model gave non-finite logits; while iterating.
    """
    prompt, stops = [int(token) for token in prompt_ids], frozenset(map(int, stop_ids))
    _check_filter(temperature, top_k, top_p)
    if max_tokens < 1:
        raise UserError(f"max_tokens must be >= 1, got {max_tokens}")
    _check_tokens(prompt, stops, model.vocab_size)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    sample = _Sampler(temperature, top_k, top_p, generator)
    return _generated(_Window(model), prompt, sample, max_tokens, stops)


def _generated(
    window: _Window, prompt: list[int], sample: _Sampler, max_tokens: int, stops: frozenset[int]
) -> Iterator[int]:
    fed = prompt
    for count in range(max_tokens):
        token = sample(window.feed(fed), count + 1)
        if token in stops:
            return
        yield token
        fed = [token]


class _Window:
    """The tokens in the model's context, and its state."""

    def __init__(self, model: PrefillModel) -> None:
        self.model, self.state = model, None
        self.tokens: list[int] = []

    @torch.no_grad()
    def feed(self, tokens: list[int]) -> Tensor:
        """Append these tokens to the context and return the logits (V,) after them."""
        self.tokens += tokens
        if len(self.tokens) > self.model.max_positions:
            self.tokens = self.tokens[-max(1, self.model.max_positions // 2) :]
            self.state, tokens = None, self.tokens
        if self.state is None:
            self.state = self.model.start(1)
        with evaluating(self.model) as device:
            fed = torch.tensor([tokens], device=device)
            return self.model.prefill(fed, self.state, last=True)[0, -1]


@dataclass(frozen=True)
class _Sampler:
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator

    @torch.no_grad()
    def __call__(self, logits: Tensor, position: int) -> int:
        """Sample a token from logits (V,)."""
        if not bool(logits.isfinite().all()):
            raise RunError(
                f"the model gave NaN or Inf logits for generated token {position}; "
                "its weights are damaged, or training diverged"
            )
        allowed = filter_logits(logits, self.temperature, self.top_k, self.top_p)
        if self.temperature == 0:
            return int(allowed.argmax())
        # In float32 the rounding of many small probabilities would favour some of them.
        probabilities = allowed.double().softmax(-1).cpu()
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


def _top_k(logits: Tensor, count: int) -> Tensor:
    last = logits.topk(count, -1).values[..., -1:]
    above, equal = logits > last, logits == last
    wanted = count - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= wanted))
    return logits.masked_fill(~kept, -torch.inf)


def _top_p(logits: Tensor, share: float) -> Tensor:
    probabilities, order = logits.double().softmax(-1).sort(stable=True, dim=-1, descending=True)
    before = F.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < share)
    return logits.masked_fill(~kept, -torch.inf)


def _check_filter(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature must be finite and >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be >= 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be > 0 and <= 1, got {top_p}")


def _check_tokens(prompt: list[int], stops: frozenset[int], vocab_size: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; start it with the end-of-text token")
    for what, ids in (("prompt", prompt), ("stop", sorted(stops))):
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"{what} token ids must be >= 0 and < {vocab_size}, got {wrong}")
