"""From lines of text to lines of text: batching around the beam search, order kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.models.modes import evaluating
from normtrain.tasks.translation.decoding.beam import StepModel, beam_search
from normtrain.tasks.translation.decoding.chunks import chunks_as_they_come

PAD, EOS = 0, 2
# A translation may be this many tokens longer than its source (Nguyen & Salazar 2019).
MARGIN = 50


class TextCodec(Protocol):
    """The part of a tokenizer that translating needs."""

    def encode_batch(self, texts: list[str], /) -> list[list[int]]:
        """Token ids of each text, without BOS and EOS."""

    def decode(self, ids: list[int], /) -> str:
        """The text of token ids."""


@dataclass(frozen=True)
class TranslationResult:
    """Translations and what happened on the way.

    Attributes:
        lines: one translation for each source line, in its order; none holds a line break.
        scores: each translation's score in the search; 0 for a blank line.
        truncated: positions of the source lines that were cut to ``max_source`` tokens.
        tokens: target tokens generated, the EOS of each translation counted.
        mine: positions of the lines that this process translated; all of them on a single one.
    """

    lines: list[str]
    scores: list[float]
    truncated: list[int]
    tokens: int
    mine: list[int]


@dataclass(frozen=True)
class _Settings:
    beam: int
    length_penalty: float
    max_length: int
    max_source: int
    batch_tokens: int


def translate_lines(
    model: StepModel,
    tokenizer: TextCodec,
    lines: Sequence[str],
    *,
    beam: int,
    length_penalty: float,
    max_length: int,
    max_source: int,
    batch_tokens: int = 8192,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TranslationResult:
    """Translate lines in batches of similar length.

    Blank lines come back empty without the model being asked. The model is in eval mode
    meanwhile; afterwards each of its modules is in the mode that it was in.

    Args:
        model: on whichever device its parameters are.
        tokenizer: of the model.
        lines: source lines; a line break at the end of one is ignored.
        beam: see :func:`~normtrain.tasks.translation.decoding.beam.beam_search`.
        length_penalty: likewise.
        max_length: the most tokens of a translation, its EOS counted. No translation gets
            longer than its source by more than 50 tokens either.
        max_source: source lines of more tokens (EOS not counted) are cut.
        batch_tokens: source positions, padding counted and times ``beam``, decoded at once.
        rank: which of ``world`` processes this one is. Each takes every world-th of the batches
            that one process would make, so together they find what it finds.
        world: how many processes share the lines; it must be the same on all.
        progress: called after each batch with the lines done and all lines.

    Returns:
        As many lines as were given; those that other processes translate are empty.

    Raises:
        UserError: ``max_source``, ``max_length`` or ``beam`` is below 1.
        RunError: memory ran out, or the model gave NaN.
    """
    if max_source < 1:
        raise UserError(f"max_source is {max_source}; it must be at least 1")
    if beam < 1:
        raise UserError(f"beam is {beam}; it must be at least 1")
    settings = _Settings(beam, length_penalty, max_length, max_source, batch_tokens)
    filled = [i for i, line in enumerate(lines) if line.strip()]
    encoded = dict(
        zip(filled, tokenizer.encode_batch([lines[i].strip() for i in filled]), strict=True)
    )
    truncated = [i for i in filled if len(encoded[i]) > max_source]
    sources = {i: ids[:max_source] + [EOS] for i, ids in encoded.items() if ids}
    texts, scores = [""] * len(lines), [0.0] * len(lines)
    done, tokens = len(lines) - len(sources), 0
    mine = [i for i in range(len(lines)) if i not in sources] if rank == 0 else []
    with evaluating(model) as device:
        for batch in itertools.islice(_batches(sources, settings), rank, None, world):
            found = _decode(model, [sources[i] for i in batch], device, settings)
            for i, (ids, score) in zip(batch, found, strict=True):
                texts[i], scores[i] = _one_line(tokenizer.decode(ids)), score
                tokens += len(ids) + 1
            done += len(batch)
            mine += batch
            if progress is not None:
                progress(min(len(lines), done * world), len(lines))
    return TranslationResult(texts, scores, truncated, tokens, mine)


def translate_stream(
    model: StepModel,
    tokenizer: TextCodec,
    lines: Iterable[str],
    *,
    beam: int,
    length_penalty: float,
    max_length: int,
    max_source: int,
    batch_tokens: int = 8192,
    chunk: int = 512,
    on_truncated: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Translate lines while they arrive, for pipes and for typing.

    Lines that are there already are taken together, ``chunk`` at most; one that comes alone is
    answered at once. So a file goes through in batches, and a person typing does not wait.

    Args:
        model: see :func:`translate_lines`, as for all that is not said here.
        tokenizer: of the model.
        lines: for example ``sys.stdin``; read in a thread of its own.
        beam: hypotheses of each line.
        length_penalty: alpha of the length penalty.
        max_length: the most tokens of a translation.
        max_source: the most tokens of a source line.
        batch_tokens: source positions decoded at once.
        chunk: the most lines taken together.
        on_truncated: called with the number, from 1, of each line that was cut.

    Yields:
        One translation a line, in order.

    Raises:
        UserError, RunError: as :func:`translate_lines`; and whatever reading ``lines`` raises,
            once the lines before it are translated.
    """
    before = 0
    for some in chunks_as_they_come(lines, chunk):
        result = translate_lines(
            model,
            tokenizer,
            some,
            beam=beam,
            length_penalty=length_penalty,
            max_length=max_length,
            max_source=max_source,
            batch_tokens=batch_tokens,
        )
        if on_truncated is not None:
            for position in result.truncated:
                on_truncated(before + position + 1)
        before += len(some)
        yield from result.lines


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()).strip()


def _batches(sources: dict[int, list[int]], settings: _Settings) -> Iterator[list[int]]:
    """Longest first, so that a batch too large for the memory shows at once."""
    batch: list[int] = []
    for i in sorted(sources, key=lambda i: (-len(sources[i]), i)):
        width = len(sources[batch[0]]) if batch else 0
        if batch and (len(batch) + 1) * width * settings.beam > settings.batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _decode(
    model: StepModel, sources: list[list[int]], device: torch.device, settings: _Settings
) -> list[tuple[list[int], float]]:
    """The best output of each source, or an empty one where the search found none."""
    width = max(map(len, sources))
    source = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in sources], device=device)
    try:
        found = beam_search(
            model,
            source,
            beam=settings.beam,
            length_penalty=settings.length_penalty,
            max_length=_limits(sources, settings),
        )
    except RuntimeError as error:
        # On the CPU running out of memory has no class of its own.
        known = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not known:
            raise
        raise RunError(
            f"out of memory translating {len(sources)} lines of up to {width} tokens with beam "
            f"{settings.beam}; lower the beam, or batch_tokens={settings.batch_tokens}"
        ) from error
    return [(best[0].tokens, best[0].score) if best else ([], 0.0) for best in found]


def _limits(sources: list[list[int]], settings: _Settings) -> Tensor:
    # A source's EOS counts like the output's, so the margin is between their words.
    return torch.tensor([min(settings.max_length, len(ids) + MARGIN) for ids in sources])
