"""Translate with a trained model, and score what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from normtrain.data.text import clean, looks_tokenized
from normtrain.models import Seq2Seq
from normtrain.ranks import all_gather
from normtrain.tasks.base import Evaluation, EvaluationRequest, TrainedModel
from normtrain.tasks.translation.config import TranslationRecipe
from normtrain.tasks.translation.corpora import Pairs, load_corpus
from normtrain.tasks.translation.decoding.translate import (
    SearchSettings,
    translate_lines,
    translate_stream,
)
from normtrain.tasks.translation.metrics import Scores, score
from normtrain.tasks.translation.tokenizer import Tokenizer


def translate_and_score(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    pairs: Pairs,
    search: SearchSettings,
    *,
    target_lang: str,
    tokenized_output: bool,
    **share: Any,
) -> tuple[list[str], Scores, list[int]]:
    """Translate a split on all ranks and score it.

    Args:
        model: on this rank's device.
        tokenizer: of the model.
        pairs: the split.
        search: settings of the search.
        target_lang: the language of the translations.
        tokenized_output: whether the model was trained on tokenised text.
        share: ``rank``, ``world`` and ``progress``, as for `translate_lines`.

    Returns:
        All translations in order, their scores, and the positions of the sources that were cut.
    """
    result = translate_lines(model, tokenizer, pairs.source, search, **share)
    found = {i: line for part in all_gather({i: result.lines[i] for i in result.mine})
             for i, line in part.items()}  # fmt: skip
    lines = [found[i] for i in range(len(result.lines))]
    scores = score(
        lines,
        pairs.target,
        tokenized=looks_tokenized(pairs.target),
        target_lang=target_lang,
        tokenized_output=tokenized_output,
    )
    return lines, scores, result.truncated


def evaluate(trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
    """Translate a split and score it; see `Task.evaluate`.

    Raises:
        UserError: the corpus cannot be used, or the beam is below 1.
    """
    recipe = cast(TranslationRecipe, trained.recipe)
    corpus = load_corpus(
        request.data or recipe.data.source,
        source_lang=recipe.data.source_lang,
        target_lang=recipe.data.target_lang,
        revision=trained.data["revision"] if request.data is None else None,
        splits=[request.split],
    )
    search = search_settings(recipe, **request.options)
    lines, scores, truncated = translate_and_score(
        cast(Seq2Seq, trained.model),
        trained.tokenizer,
        corpus.splits[request.split],
        search,
        target_lang=recipe.data.target_lang,
        tokenized_output=bool(trained.data.get("tokenized")),
        rank=request.rank,
        world=request.world,
        progress=request.progress,
    )
    variant = []
    if search.beam != recipe.decode.beam:
        variant.append(f"beam{search.beam}")
    if search.length_penalty != recipe.decode.length_penalty:
        variant.append(f"penalty{search.length_penalty:g}")
    used = {name: getattr(search, name) for name in ("beam", "length_penalty", "max_length")}
    return Evaluation(
        scores={**scores.to_dict(), **used, "sources_truncated": truncated},
        corpus=corpus.provenance,
        variant=variant,
        lines=lines,
    )


def search_settings(
    recipe: TranslationRecipe, beam: int | None = None, length_penalty: float | None = None
) -> SearchSettings:
    """Return the settings of beam search: those given, else the recipe's.

    Raises:
        UserError: the beam is below 1.
    """
    decode = recipe.decode
    return SearchSettings(
        beam=decode.beam if beam is None else beam,
        length_penalty=decode.length_penalty if length_penalty is None else length_penalty,
        max_length=decode.max_length,
        max_source=recipe.data.max_length,
    )


def translate(
    trained: TrainedModel,
    lines: Iterable[str],
    *,
    beam: int | None = None,
    length_penalty: float | None = None,
    on_truncated: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Translate line by line; as many lines come out as go in, in order.

    Args:
        trained: the model.
        lines: source lines; empty ones stay empty.
        beam: beam width; by default the recipe's.
        length_penalty: by default the recipe's.
        on_truncated: called with the number, from 1, of each line that is longer than the
            recipe's ``data.max_length`` and was cut.

    Raises:
        UserError: the beam is below 1.
    """
    settings = search_settings(cast(TranslationRecipe, trained.recipe), beam, length_penalty)
    return translate_stream(
        cast(Seq2Seq, trained.model),
        trained.tokenizer,
        map(clean, lines),
        settings,
        on_truncated=on_truncated,
    )
