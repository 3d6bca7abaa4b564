"""Text from a language model, piece by piece as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from normtrain.config.recipe import LanguageRecipe
from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.tasks.language.sampling import generate as generate_ids
from normtrain.training.evaluating import ready


def generate(
    target: Path,
    prompt: str = "",
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Go on with a prompt.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        prompt: the beginning of the text; empty begins a new text.
        max_tokens: tokens to write at most; by default the recipe's ``decode.max_length``.
        temperature: by default the recipe's, as the next two; 0 takes the likeliest token.
        top_k: only the k likeliest tokens.
        top_p: only the smallest set of tokens of that probability.
        seed: the same text again for the same seed; None writes another one each time.
        stop: writing ends before the first of these texts.

    Yields:
        Pieces of the text after the prompt; together they are it.

    Raises:
        ValueError: for a checkpoint that can't be used, or settings out of range; before the
            first piece.
    """
    if any(not text for text in stop):
        raise UserError("--stop takes a text, and not an empty one")
    checkpoint, model = ready(Path(target), "language")
    tokenizer, decode = checkpoint.tokenizer, cast(LanguageRecipe, checkpoint.recipe).decode
    given = tokenizer.encode(prompt)
    ids = generate_ids(
        cast(CausalLM, model),
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
    """Text as its tokens come; a character is held back until its last byte is there.

    Args:
        decode: ids to text.
        before: the ids that come before, whose text is not given.
        ids: those whose text is wanted.
    """
    # Text is decoded from a token on that is known to be whole, since a token's text can depend on
    # the one before it.
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
    """The texts up to the first stop text, which may lie across several of them.

    Args:
        texts: pieces of one text.
        stop: what ends it; left out of what is given.
    """
    held, longest = "", max(map(len, stop), default=0)
    for text in texts:
        held += text
        found = [at for at in (held.find(each) for each in stop) if at >= 0]
        if found:
            yield held[: min(found)]
            return
        # what could still be the beginning of a stop text stays
        safe = max(0, len(held) - max(0, longest - 1))
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held
