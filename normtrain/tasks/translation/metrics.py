"""Corpus BLEU and chrF by sacreBLEU, with the signatures that make scores comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from normtrain.errors import UserError
from normtrain.tasks.translation.detokenize import detokenize


@dataclass(frozen=True)
class TokenizedBleu:
    """BLEU of tokenized text without detokenizing it, as reported in older papers.

    Attributes:
        bleu_13a: with sacreBLEU's 13a tokenization on top; it changes little on such text.
        bleu_none: split at white space only, as by ``multi-bleu.perl``.
        signature_13a: of ``bleu_13a``.
        signature_none: of ``bleu_none``.
    """

    bleu_13a: float
    bleu_none: float
    signature_13a: str
    signature_none: str


@dataclass(frozen=True)
class Scores:
    """Scores of a corpus of translations against its references.

    Attributes:
        bleu: BLEU in percent, 13a tokenization of detokenized text.
        bleu_signature: sacreBLEU's.
        precisions: of 1- to 4-grams, in percent.
        brevity_penalty: 1 unless the translations are shorter than the references.
        length_ratio: words in the translations divided by words in the references.
        chrf: chrF2 in percent (character 1- to 6-grams, beta 2, no words).
        chrf_signature: sacreBLEU's.
        sentences: number of sentences.
        tokenized: BLEU without detokenizing, if both sides are tokenized; else None.
    """

    bleu: float
    bleu_signature: str
    precisions: tuple[float, ...]
    brevity_penalty: float
    length_ratio: float
    chrf: float
    chrf_signature: str
    sentences: int
    tokenized: TokenizedBleu | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as plain types, ready for JSON."""
        return asdict(self) | {"precisions": list(self.precisions)}


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenized: bool,
    target_lang: str,
    tokenized_output: bool | None = None,
) -> Scores:
    """Score translations against one reference each.

    Args:
        hypotheses: one translation a sentence; may be empty strings.
        references: as many; may be empty strings.
        tokenized: the references are tokenized; they are then detokenized for BLEU and chrF.
        target_lang: language code, for detokenization; BLEU's own tokenization is 13a for all.
        tokenized_output: the translations are tokenized, as those of a model trained on tokenized
            text; None takes `tokenized`. If both are, they are also scored without detokenizing.

    Returns:
        The scores, with the signatures of the metrics.

    Raises:
        UserError: the counts differ, or there is nothing to score.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} translations for {len(references)} references; "
            "both must have one line for each sentence"
        )
    if not references:
        raise UserError("there are no sentences to score")
    from sacrebleu.metrics.chrf import CHRF

    as_tokenized = None
    if tokenized_output is None:
        tokenized_output = tokenized
    if tokenized and tokenized_output:
        with_13a, signature_13a = _bleu(hypotheses, references, "13a")
        with_none, signature_none = _bleu(hypotheses, references, "none")
        as_tokenized = TokenizedBleu(with_13a.score, with_none.score, signature_13a, signature_none)
    if tokenized_output:
        hypotheses = [detokenize(line, target_lang) for line in hypotheses]
    if tokenized:
        references = [detokenize(line, target_lang) for line in references]
    bleu, signature = _bleu(hypotheses, references, "13a")
    chrf = CHRF()
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)]).score
    return Scores(
        bleu=bleu.score,
        bleu_signature=signature,
        precisions=tuple(bleu.precisions),
        brevity_penalty=bleu.bp,
        length_ratio=bleu.ratio,
        chrf=chrf_score,
        chrf_signature=str(chrf.get_signature()),
        sentences=len(references),
        tokenized=as_tokenized,
    )


def _bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> tuple[Any, str]:
    from sacrebleu.metrics.bleu import BLEU

    # force: no warning about tokenized text, which is intended here or was detokenized.
    metric = BLEU(tokenize=tokenize, force=True)
    return metric.corpus_score(list(hypotheses), [list(references)]), str(metric.get_signature())
