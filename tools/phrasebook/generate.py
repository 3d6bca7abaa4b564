"""From constructions to splits that ask for combinations never seen in training.

Every sentence carries the combinations it is made of (``object|read|book``,
``modifier|red|car``, ``subject|she|future``, …). A stable hash declares a few percent of all
combinations *held out*: training holds no sentence with a held-out combination, validation and
test hold only sentences with at least one. The parts of such a combination all occur in
training, only never together.
"""

from collections import Counter
from functools import cache
from typing import NamedTuple
from zlib import crc32

from tools.phrasebook import (
    activities,
    compound,
    descriptions,
    questions,
    settings,
    situations,
    statements,
)
from tools.phrasebook.grammar import Draw

PHRASEBOOK_VERSION = "1"
"""Changes whenever the sentences do."""

TRAIN_SIZE, VALID_SIZE, TEST_SIZE = 30_000, 500, 1_000
SEED = 20_240_611
SURPLUS = 1.2
"""How many more sentences are drawn than kept."""
RARE = 40
"""Sentences with a word drawn less often than this are all kept for training."""
COMMON = 15
"""Every word of validation and test occurs at least this often in training."""
_PUNCTUATION = str.maketrans("", "", ".,?!")
HELD_OUT_PER_MILLE = {"subject": 20, "tense": 30}
"""How much of each kind of combination is held out; kinds not named here take ``DEFAULT``."""
DEFAULT_PER_MILLE = 40

CONSTRUCTIONS = (
    *statements.ALL,
    *activities.ALL,
    *questions.ALL,
    *descriptions.ALL,
    *situations.ALL,
    *settings.ALL,
    *compound.ALL,
)
Splits = dict[str, tuple[list[str], list[str]]]


class Sentence(NamedTuple):
    """A finished pair, the construction it comes from and the combinations in it."""

    english: str
    vietnamese: str
    construction: str
    combinations: tuple[str, ...]


@cache
def is_held_out(combination: str) -> bool:
    """Whether training may not contain ``combination`` (``kind|first|second``)."""
    kind = combination.partition("|")[0]
    share = HELD_OUT_PER_MILLE.get(kind, DEFAULT_PER_MILLE)
    return crc32(combination.encode()) % 1000 < share


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _rank(sentence: Sentence) -> tuple[int, str]:
    return crc32(sentence.english.encode()), sentence.english


def words(text: str) -> list[str]:
    """The words of a sentence, lower case, punctuation left out."""
    return text.lower().translate(_PUNCTUATION).split()


def _tagged(sentence: Sentence) -> list[str]:
    """The words of both sides; the Vietnamese ones are marked to keep the languages apart."""
    return words(sentence.english) + [f"{word}'" for word in words(sentence.vietnamese)]


@cache
def generate() -> dict[str, tuple[Sentence, ...]]:
    """All sentences by split, each split in an order that mixes the constructions."""
    total = sum(weight for _, weight in CONSTRUCTIONS)
    train: dict[str, Sentence] = {}
    pool: dict[str, Sentence] = {}
    for index, (construction, weight) in enumerate(CONSTRUCTIONS):
        quota = round(TRAIN_SIZE * SURPLUS * weight / total)
        _fill(construction, index, quota, train, pool)
    chosen = _chosen(sorted(train.values(), key=_rank))
    counts = Counter(word for sentence in chosen for word in _tagged(sentence))
    seen = {sentence.vietnamese for sentence in train.values()}
    fresh: dict[str, Sentence] = {}
    for sentence in sorted(pool.values(), key=_rank):
        if sentence.vietnamese not in seen and all(counts[w] >= COMMON for w in _tagged(sentence)):
            fresh.setdefault(sentence.vietnamese, sentence)
    held = list(fresh.values())
    return {
        "train": tuple(chosen),
        "valid": tuple(held[:VALID_SIZE]),
        "test": tuple(held[VALID_SIZE : VALID_SIZE + TEST_SIZE]),
    }


def _chosen(drawn: list[Sentence]) -> list[Sentence]:
    """The training sentences: those with rare words first, so that no word stays rare."""
    tagged = [_tagged(sentence) for sentence in drawn]
    counts = Counter(word for text in tagged for word in text)
    rare = {word for word, count in counts.items() if count < RARE}
    common = [rare.isdisjoint(text) for text in tagged]
    precious = [s for s, plain in zip(drawn, common, strict=True) if not plain]
    others = [s for s, plain in zip(drawn, common, strict=True) if plain]
    return sorted((precious + others)[:TRAIN_SIZE], key=_rank)


def _fill(
    construction: statements.Construction,
    index: int,
    quota: int,
    train: dict[str, Sentence],
    pool: dict[str, Sentence],
) -> None:
    """Draw from one construction until training has its ``quota`` (or it runs dry)."""
    draw = Draw(SEED + index)
    attempts = 0
    while quota > 0 and attempts < 3 * quota + 3000:
        attempts += 1
        draw.combinations = []
        en, vi = construction(draw)
        english = _capitalized(en)
        target = pool if any(map(is_held_out, draw.combinations)) else train
        if english in train or english in pool:
            continue
        target[english] = Sentence(
            english, _capitalized(vi), construction.__name__, tuple(draw.combinations)
        )
        if target is train:
            quota -= 1


def phrasebook_splits() -> Splits:
    """The corpus: ``{"train" | "valid" | "test": (english sentences, Vietnamese sentences)}``.

    The same on every Python version and platform; see :data:`PHRASEBOOK_VERSION`.
    """
    return {
        split: ([row.english for row in rows], [row.vietnamese for row in rows])
        for split, rows in generate().items()
    }
