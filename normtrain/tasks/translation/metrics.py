"""BLEU and chrF of a whole corpus by sacreBLEU, with the signatures that make them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from normtrain.errors import UserError
from normtrain.tasks.translation.detokenize import detokenize


@dataclass(frozen=True)
class TokenizedBleu:
    """BLEU of tokenised files just as they are, which is what older papers report.

    Attributes:
        bleu_13a: with sacreBLEU's 13a tokenisation on top; it changes little on such text.
        bleu_none: splitting at white space only, like ``multi-bleu.perl``.
        signature_13a: of ``bleu_13a``.
        signature_none: of ``bleu_none``.
    """

    bleu_13a: float
    bleu_none: float
    signature_13a: str
    signature_none: str


@dataclass(frozen=True)
class Scores:
    """How near a corpus of translations comes to its references.

    Attributes:
        bleu: BLEU in percent, 13a tokenisation of detokenised text.
        bleu_signature: sacreBLEU's, to print beside it.
        precisions: of 1- to 4-grams, in percent.
        brevity_penalty: 1 unless the translations are shorter than the references.
        length_ratio: words in the translations by words in the references.
        chrf: chrF2 in percent (character 1- to 6-grams, beta 2, no words).
        chrf_signature: sacreBLEU's.
        sentences: how many were compared.
        tokenized: BLEU of the text as it is, where it comes tokenised; else None.
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
        """Everything as plain types, ready for JSON."""
        return asdict(self) | {"precisions": list(self.precisions)}


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenized: bool,
    tokenized_output: bool | None = None,
    target_lang: str = "vi",
) -> Scores:
    """Score translations against one reference each.

    Args:
        hypotheses: one translation a sentence; may be empty strings.
        references: as many; may be empty strings.
        tokenized: the references come tokenised. They are then detokenised for BLEU and chrF.
        tokenized_output: the translations do, as from a model of tokenised text; by default as
            the references. Where both do they are scored a second time as they are.
        target_lang: language code, for detokenization; BLEU's own tokenization is 13a for all.

    Returns:
        The scores, with the signatures of the metrics.

    Raises:
        UserError: the counts differ, or there is nothing to score.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} translations for {len(references)} references; "
            "they must be line for line the same sentences"
        )
    if not references:
        raise UserError("there is nothing to score: no translation and no reference")
    from sacrebleu.metrics.chrf import CHRF

    as_they_are = None
    if tokenized_output is None:
        tokenized_output = tokenized
    if tokenized and tokenized_output:
        with_13a, signature_13a = _bleu(hypotheses, references, "13a")
        with_none, signature_none = _bleu(hypotheses, references, "none")
        as_they_are = TokenizedBleu(with_13a.score, with_none.score, signature_13a, signature_none)
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
        tokenized=as_they_are,
    )


def _bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> tuple[Any, str]:
    from sacrebleu.metrics.bleu import BLEU

    # force: sacreBLEU warns of tokenised text, and here that is either known or undone.
    metric = BLEU(tokenize=tokenize, force=True)
    return metric.corpus_score(list(hypotheses), [list(references)]), str(metric.get_signature())
