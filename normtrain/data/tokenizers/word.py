"""Whole words, by the convention that WikiText and the Penn Treebank are measured with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from normtrain.data.tokenizers.plain import most_frequent
from normtrain.data.tokenizers.protocol import UNKNOWN, TextTokenizer
from normtrain.errors import UserError

_END, _UNKNOWN_ID = "<eos>", 1


class WordTokenizer(TextTokenizer):
    """Words between white space, and ``<eos>`` for each line end.

    ``<unk>`` in the text is the unknown word, and so is every word that is not in the vocabulary
    (and a literal ``<eos>``). Decoding joins words by one space and writes ``<eos>`` as a line end.

    Args:
        words: the vocabulary in the order of its ids, without ``<eos>`` (0) and ``<unk>`` (1).
    """

    kind = "word"
    eos = 0

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [_END, UNKNOWN, *words]
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._ids[_END] = _UNKNOWN_ID
        self.vocab_size = len(self._words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words, and `eos` for each line end."""
        get, ids = self._ids.get, []
        lines = text.split("\n")
        for line in lines[:-1]:
            ids += [get(word, _UNKNOWN_ID) for word in line.split()]
            ids.append(self.eos)
        return ids + [get(word, _UNKNOWN_ID) for word in lines[-1].split()]

    def decode(self, ids: Iterable[int]) -> str:
        """Return words joined by spaces and lines by line ends; unknown ids are left out."""
        lines: list[list[str]] = [[]]
        for i in map(int, ids):
            if i == self.eos:
                lines.append([])
            elif 0 < i < self.vocab_size:
                lines[-1].append(self._words[i])
        return "\n".join(" ".join(line) for line in lines)

    def to_json(self) -> str:
        """Return the tokenizer as text that `tokenizer_from_json` reads."""
        return json.dumps({"kind": self.kind, "words": self._words[2:]})


def train_word(texts: Iterable[str], vocab_size: int | None) -> WordTokenizer:
    """Take all words of a text, or the most frequent ones; ties go by the alphabet.

    Args:
        texts: pieces of text that do not cut words.
        vocab_size: ids at most, with ``<eos>`` and ``<unk>``; None takes all words.

    Raises:
        UserError: there is no text, or `vocab_size` is below 3.
    """
    if vocab_size is not None and vocab_size < 3:
        raise UserError(f"vocab_size must be >= 3 with the word tokenizer, got {vocab_size}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    ranked = most_frequent(counts, None)
    words = [word for word in ranked if word not in (_END, UNKNOWN)]
    return WordTokenizer(words if vocab_size is None else words[: vocab_size - 2])
