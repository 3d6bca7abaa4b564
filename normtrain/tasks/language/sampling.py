"""Text from a language model, token by token: which tokens may follow, and drawing one of them."""

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
    """A model that goes on from a prompt. ``CausalLM`` is one.

    Attributes:
        vocab_size: number of token ids.
        max_positions: the longest sequence, in tokens.
    """

    vocab_size: int
    max_positions: int

    def start(self, rows: int) -> Any:
        """A state that remembers ``rows`` sequences, with no tokens yet."""

    def prefill(self, tokens: Tensor, state: Any, *, last: bool) -> Tensor:
        """Feed (rows, T) tokens; ``last`` gives the logits after the last alone, (rows, 1, V)."""


def filter_logits(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Logits of what is sampled from: divided by the temperature, tokens ruled out at -inf.

    ``top_k`` counts first, and ``top_p`` goes by the probabilities of the tokens that it left.
    Of equal logits the lower id is kept first.

    Args:
        logits: (…, V).
        temperature: below 1 sharpens, above 1 flattens; 0 leaves the likeliest token alone.
        top_k: the number of likeliest tokens kept (Fan et al. 2018); None or V and more keep all.
        top_p: the smallest set of likeliest tokens whose probability reaches this is kept, always
            at least one (nucleus sampling, Holtzman et al. 2020); None or 1 keep all.

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
    # From the largest logit: a tiny temperature would give infinities to subtract from another.
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
    """Continue a prompt, one token at a time, as each is asked for.

    The model sees the tokens so far up to its ``max_positions``. When they no longer fit, it goes
    on from the last ``max_positions // 2`` of them, which are fed anew; a longer prompt is cut to
    those too. Other than that a token costs one step of the model.

    The model is in eval mode, and gradients are off, while a token is computed; in between, and
    afterwards, everything is as the caller has it. Tokens are drawn on the CPU from a generator
    of their own, so the same seed chooses alike on any device, and torch's stays untouched.

    Args:
        model: on whichever device its parameters are.
        prompt_ids: at least one token; put the end-of-text token first to start from nothing.
        max_tokens: the most tokens generated.
        temperature: see :func:`filter_logits`; 0 is greedy, whatever ``top_k`` and ``top_p``.
        top_k: likewise.
        top_p: likewise.
        seed: the same seed gives the same tokens; None gives others each time.
        stop_ids: a token of these ends the text and is not given out.

    Returns:
        An iterator of token ids, without the prompt's. Arguments are checked before it is made.

    Raises:
        UserError: the prompt is empty or has ids outside the vocabulary, or another argument is
            out of its range.
        RunError: the model gave logits that are NaN or infinite; while iterating.
    """
    prompt, stops = [int(token) for token in prompt_ids], frozenset(map(int, stop_ids))
    _check_filter(temperature, top_k, top_p)
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1")
    _check_tokens(prompt, stops, model.vocab_size)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    choose = _Choice(temperature, top_k, top_p, generator)
    return _generated(_Window(model), prompt, choose, max_tokens, stops)


def _generated(
    window: _Window, prompt: list[int], choose: _Choice, max_tokens: int, stops: frozenset[int]
) -> Iterator[int]:
    fed = prompt
    for count in range(max_tokens):
        token = choose(window.feed(fed), count + 1)
        if token in stops:
            return
        yield token
        fed = [token]


class _Window:
    """The tokens that a model has in sight, and its state.

    Args:
        model: see `generate`.
    """

    def __init__(self, model: PrefillModel) -> None:
        self.model, self.state = model, None
        self.tokens: list[int] = []

    @torch.no_grad()
    def feed(self, tokens: list[int]) -> Tensor:
        """Logits (V,) of what follows when these tokens follow what is there."""
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
class _Choice:
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator

    @torch.no_grad()
    def __call__(self, logits: Tensor, position: int) -> int:
        """Draw a token from logits (V,)."""
        if not bool(logits.isfinite().all()):
            raise RunError(
                f"the model gave NaN or infinite logits for generated token {position}; "
                "its weights are damaged, or training diverged"
            )
        allowed = filter_logits(logits, self.temperature, self.top_k, self.top_p)
        if self.temperature == 0:
            return int(allowed.argmax())
        # float64, or the rounding of many small probabilities would favour some.
        chances = allowed.double().softmax(-1).cpu()
        return int(torch.multinomial(chances, 1, generator=self.generator))


def _top_k(logits: Tensor, count: int) -> Tensor:
    last = logits.topk(count, -1).values[..., -1:]
    above, equal = logits > last, logits == last
    wanted = count - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= wanted))
    return logits.masked_fill(~kept, -torch.inf)


def _top_p(logits: Tensor, share: float) -> Tensor:
    chances, order = logits.double().softmax(-1).sort(stable=True, dim=-1, descending=True)
    before = F.pad(chances.cumsum(-1)[..., :-1], (1, 0))
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < share)
    return logits.masked_fill(~kept, -torch.inf)


def _check_filter(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature}; it must be 0 or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1")


def _check_tokens(prompt: list[int], stops: frozenset[int], vocab_size: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; start it with the end-of-text token")
    for what, ids in (("prompt", prompt), ("stop", sorted(stops))):
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"{what} token {wrong} is not among the model's {vocab_size} tokens")
