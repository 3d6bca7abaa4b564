"""Whole words, by the convention that WikiText and the Penn Treebank are measured with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from normtrain.data.tokenizers.protocol import UNKNOWN, fingerprint_of
from normtrain.errors import UserError

_END = "<eos>"


class WordTokenizer:
    """Words between white space, and ``<eos>`` for each line end.

    ``<unk>`` in the text is the unknown word, and so is every word that isn't in the vocabulary
    (and a literal ``<eos>``). Decoding joins words by one space and writes ``<eos>`` as a line end.

    Args:
        words: the vocabulary in the order of its ids, without ``<eos>`` (0) and ``<unk>`` (1).
    """

    kind = "word"
    eos = 0

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [_END, UNKNOWN, *words]
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._ids[_END] = self.unknown
        self.vocab_size = len(self._words)

    @property
    def unknown(self) -> int:
        """The id of ``<unk>``."""
        return 1

    def encode(self, text: str) -> list[int]:
        """Ids of the words, and `eos` wherever the text has a line end."""
        get, ids = self._ids.get, []
        lines = text.split("\n")
        for line in lines[:-1]:
            ids += [get(word, 1) for word in line.split()]
            ids.append(0)
        return ids + [get(word, 1) for word in lines[-1].split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by spaces, lines by line ends; ids outside the vocabulary are left out."""
        lines: list[list[str]] = [[]]
        for i in map(int, ids):
            if i == self.eos:
                lines.append([])
            elif 0 < i < self.vocab_size:
                lines[-1].append(self._words[i])
        return "\n".join(" ".join(line) for line in lines)

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind, "words": self._words[2:]})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        return fingerprint_of(self)


def train_word(texts: Iterable[str], vocab_size: int | None) -> WordTokenizer:
    """Take all words of a text, or the most frequent ones; ties go by the alphabet.

    Args:
        texts: stretches of text that don't cut words.
        vocab_size: ids at most, with ``<eos>`` and ``<unk>``; None takes all words.

    Raises:
        UserError: there is no text, or `vocab_size` is below 3.
    """
    if vocab_size is not None and vocab_size < 3:
        raise UserError(f"vocab_size is {vocab_size}; words need at least 3")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    if not counts:
        raise UserError("there is no text to train a tokenizer on")
    for special in (_END, UNKNOWN):
        counts.pop(special, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return WordTokenizer(ranked if vocab_size is None else ranked[: vocab_size - 2])
