"""Translate lines of text: batching around the beam search, in the order of the lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.models.modes import evaluating
from normtrain.models.token_ids import EOS, PAD
from normtrain.tasks.translation.decoding.beam import StepModel, beam_search
from normtrain.tasks.translation.decoding.chunks import chunks_as_they_come

# A translation may be this many tokens longer than its source (Nguyen & Salazar 2019).
_MARGIN = 50


class TextCodec(Protocol):
    """The part of a tokenizer that translation needs."""

    def encode_batch(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text, without BOS and EOS."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of token ids."""


@dataclass(frozen=True)
class TranslationResult:
    """Translations, with scores and counts.

    Attributes:
        lines: one translation for each source line, in order, without line breaks.
        scores: the beam search score of each translation; 0 for a blank line.
        truncated: indices of the source lines that were truncated to ``max_source`` tokens.
        tokens: generated target tokens, with the EOS of each translation.
        mine: indices of the lines that this process translated; all lines on a single process.
    """

    lines: list[str]
    scores: list[float]
    truncated: list[int]
    tokens: int
    mine: list[int]


@dataclass(frozen=True)
class SearchSettings:
    """How lines are translated.

    Attributes:
        beam: see `normtrain.tasks.translation.decoding.beam.beam_search`.
        length_penalty: likewise.
        max_length: tokens of a translation at most, with its EOS. A translation is also at most 50
            tokens longer than its source.
        max_source: source lines of more tokens (without EOS) are truncated.
        batch_tokens: source positions, with padding and times ``beam``, decoded at once.

    Raises:
        UserError: ``max_source`` or ``beam`` is below 1.
    """

    beam: int
    length_penalty: float
    max_length: int
    max_source: int
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("beam", "max_source"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")


def translate_lines(
    model: StepModel,
    tokenizer: TextCodec,
    lines: Sequence[str],
    settings: SearchSettings,
    *,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TranslationResult:
    """Translate lines in batches of similar length.

    Blank lines are returned empty. The model is in eval mode meanwhile; afterwards the mode of
    each of its modules is restored.

    Args:
        model: translates on the device of its parameters.
        tokenizer: of the model.
        lines: source lines; a line break at the end of a line is ignored.
        settings: of the search.
        rank: this process. Each takes every world-th of the batches that a single process would
            make, so together they give the same translations.
        world: number of processes that share the lines; the same on all.
        progress: called after each batch with the number of lines done and of all lines.

    Returns:
        As many lines as were given; those that other processes translate are empty.

    Raises:
        UserError: ``max_length`` is below 1.
        RunError: memory ran out, or the model gave non-finite logits.
    """
    filled = [i for i, line in enumerate(lines) if line.strip()]
    encoded = dict(
        zip(filled, tokenizer.encode_batch([lines[i].strip() for i in filled]), strict=True)
    )
    truncated = [i for i in filled if len(encoded[i]) > settings.max_source]
    sources = {i: ids[: settings.max_source] + [EOS] for i, ids in encoded.items() if ids}
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
    settings: SearchSettings,
    *,
    chunk: int = 512,
    on_truncated: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Translate lines while they arrive, from a pipe or a terminal.

    Lines that are already available are translated together, ``chunk`` at most, and a single line
    at once: a file is translated in batches, and typed lines without delay.

    Args:
        model: as for :func:`translate_lines`.
        tokenizer: of the model.
        lines: for example ``sys.stdin``; read in a separate thread.
        settings: of the search.
        chunk: lines translated together at most.
        on_truncated: called with the number, from 1, of each line that was truncated.

    Yields:
        One translation for each line, in order.

    Raises:
        UserError: as :func:`translate_lines`.
        RunError: as :func:`translate_lines`.
        BaseException: whatever reading ``lines`` raises, after the lines before it.
    """
    before = 0
    for available in chunks_as_they_come(lines, chunk):
        result = translate_lines(model, tokenizer, available, settings)
        if on_truncated is not None:
            for position in result.truncated:
                on_truncated(before + position + 1)
        before += len(available)
        yield from result.lines


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()).strip()


def _batches(sources: dict[int, list[int]], settings: SearchSettings) -> Iterator[list[int]]:
    """Longest lines first, so that running out of memory shows at once."""
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
    model: StepModel, sources: list[list[int]], device: torch.device, settings: SearchSettings
) -> list[tuple[list[int], float]]:
    """The best output of each source, or an empty one if the search found none."""
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
        # On the CPU running out of memory is a plain RuntimeError.
        on_cpu = "DefaultCPUAllocator" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise RunError(
            f"out of memory translating {len(sources)} lines of up to {width} tokens with beam "
            f"{settings.beam}; lower the beam, or batch_tokens={settings.batch_tokens}"
        ) from error
    return [(best[0].tokens, best[0].score) if best else ([], 0.0) for best in found]


def _limits(sources: list[list[int]], settings: SearchSettings) -> Tensor:
    # Both lengths count the EOS, so the margin is between the sentences.
    return torch.tensor([min(settings.max_length, len(ids) + _MARGIN) for ids in sources])
