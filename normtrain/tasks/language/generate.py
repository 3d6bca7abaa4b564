"""Continue a prompt, piece by piece as the text is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.tasks.base import TrainedModel
from normtrain.tasks.language.config import LanguageRecipe
from normtrain.tasks.language.sampling import generate as generate_ids


def generate(
    trained: TrainedModel,
    prompt: str = "",
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt.

    Args:
        trained: the model.
        prompt: the start of the text; empty starts a new text.
        max_tokens: most tokens to write; by default the recipe's ``decode.max_length``.
        temperature: by default the recipe's, as the next two; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens.
        top_p: sample from the smallest set of tokens of that probability.
        seed: the same seed gives the same text; None gives another one each time.
        stop: end before the first of these texts.

    Yields:
        Pieces of the text after the prompt; joined they are the text.

    Raises:
        UserError: a setting is out of range; before the first piece.
    """
    if any(not text for text in stop):
        raise UserError("--stop must be a text that is not empty")
    tokenizer, decode = trained.tokenizer, cast(LanguageRecipe, trained.recipe).decode
    given = tokenizer.encode(prompt)
    ids = generate_ids(
        cast(CausalLM, trained.model),
        given or [tokenizer.eos],
        max_tokens=decode.max_length if max_tokens is None else max_tokens,
        temperature=decode.temperature if temperature is None else temperature,
        top_k=decode.top_k if top_k is None else top_k,
        top_p=decode.top_p if top_p is None else top_p,
        seed=seed,
        stop_ids=() if tokenizer.kind == "word" else (tokenizer.eos,),
    )
    return until(pieces(tokenizer.decode, given, ids), stop)


def pieces(
    decode: Callable[[Sequence[int]], str], before: Sequence[int], ids: Iterable[int]
) -> Iterator[str]:
    """Yield the text of ids as they come; a character waits for its last byte.

    Args:
        decode: ids to text.
        before: the ids of the prompt, whose text is not yielded.
        ids: those whose text is yielded.
    """
    # A token's text can depend on the token before, so decoding starts at a whole character.
    window, shown = list(before[-8:]), decode(before[-8:])
    for each in ids:
        window.append(each)
        text = decode(window)
        if text.endswith("\ufffd"):
            continue
        yield text[len(shown) :]
        if "\ufffd" not in (alone := decode([each])) and alone:
            window = [each]
        shown = decode(window)
    if len(rest := decode(window)) > len(shown):
        yield rest[len(shown) :]


def until(texts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield texts up to the first stop text, which may span several of them.

    Args:
        texts: pieces of one text.
        stop: what ends it; not yielded.
    """
    held, longest = "", max(map(len, stop), default=0)
    for text in texts:
        held += text
        found = [at for at in (held.find(each) for each in stop) if at >= 0]
        if found:
            yield held[: min(found)]
            return
        # the end could still be the start of a stop text
        safe = max(0, len(held) - max(0, longest - 1))
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held
