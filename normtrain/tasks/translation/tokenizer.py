"""A joint byte-pair encoding of both languages, lossless for any text.

The layout follows SentencePiece (Kudo and Richardson 2018): words start with ``▁``, and a
character that is not in the vocabulary is encoded as its UTF-8 bytes, so nothing is unknown.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from normtrain.data.cache import fingerprint
from normtrain.data.text import fold
from normtrain.errors import UserError, on_one_line

#: Part of every cache key: raise it when the same text would give another tokenizer.
TOKENIZER_VERSION = "1"

_SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
_RESERVED = _SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_0 = len(_SPECIALS)
_MARK = "▁"
MIN_VOCAB_SIZE = 300

# Loader workers never encode, so the warning that `tokenizers` prints at every fork is noise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class Tokenizer:
    """A trained tokenizer. ``decode(encode(text))`` is the text in NFC with white space folded.

    Text is never encoded as a special id: ``"</s>"`` is encoded as four characters. Lone
    surrogates, which UTF-8 cannot represent, become ``?``.

    Attributes:
        vocab_size: ids are 0 to vocab_size-1; `PAD`, `BOS`, `EOS` and `UNK` are 0 to 3.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        tokens = [core.id_to_token(i) for i in range(core.get_vocab_size())]
        if tokens[: len(_RESERVED)] != _RESERVED:
            raise UserError("the tokenizer was not made by normtrain: its first ids differ")
        self._bytes = [b""] * _BYTE_0 + [bytes([b]) for b in range(256)]
        self._bytes += [t.replace(_MARK, " ").encode() for t in tokens[len(_RESERVED) :]]
        self._alphabet = {t for t in tokens if len(t) == 1}
        self.vocab_size: int = len(tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS; the empty text gives none."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, encoded on all cores."""
        folded = [fold(_encodable(text)) for text in texts]
        marked = [i for i, text in enumerate(folded) if _MARK in text]
        stand_ins = {i: self._stand_in(folded[i]) for i in marked}
        for i, stand_in in stand_ins.items():
            folded[i] = folded[i].replace(_MARK, stand_in)
        encoded = self._core.encode_batch_fast(folded, add_special_tokens=False)
        ids: list[list[int]] = [encoding.ids for encoding in encoded]
        for i, stand_in in stand_ins.items():
            ids[i] = _swap_bytes(ids[i], stand_in, _MARK)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special ids and ids outside the vocabulary are left out.

        Bytes that are not UTF-8, which a model may generate, become U+FFFD.
        """
        table, size = self._bytes, self.vocab_size
        raw = b"".join(table[i] for i in map(int, ids) if 0 <= i < size)
        return raw.decode("utf-8", "replace").removeprefix(" ")

    def to_json(self) -> str:
        """Return the tokenizer as JSON text that the `tokenizers` library reads."""
        return self._core.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read what `to_json` wrote.

        Raises:
            UserError: the text is not such a tokenizer.
        """
        from tokenizers import Tokenizer as Core

        try:
            core = Core.from_str(text)
        except Exception as error:
            raise UserError(f"the text is not a tokenizer file: {on_one_line(error)}") from error
        return cls(core)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded."""
        return fingerprint(TOKENIZER_VERSION, self.to_json())

    def _stand_in(self, text: str) -> str:
        """A replacement for a literal ``▁``, which would be decoded as a space: a noncharacter of
        three UTF-8 bytes like ``▁``, in neither this text nor the vocabulary."""
        taken = set(text) | self._alphabet
        candidates = [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]
        return next(c for c in map(chr, candidates) if c not in taken)


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a joint byte-pair encoding (Sennrich et al. 2016).

    The same lines give the same tokenizer. A small corpus gives fewer than `vocab_size` ids.

    Args:
        lines: sentences of both languages.
        vocab_size: ids at most, with the 4 special ones and 256 bytes; at least 300.

    Raises:
        UserError: `vocab_size` is too small, or there is no text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size must be >= {MIN_VOCAB_SIZE}, got {vocab_size}")
    from tokenizers import Tokenizer as Core
    from tokenizers import models, pre_tokenizers, trainers

    budget = vocab_size - len(_RESERVED)
    texts = _common_characters([fold(_encodable(line)) for line in lines], budget // 2)
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=budget, show_progress=False)
    core.train_from_iterator(texts, trainer)
    learned = json.loads(core.to_str())["model"]
    return Tokenizer(_build(learned["vocab"], [tuple(pair) for pair in learned["merges"]]))


def _build(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Put the learned vocabulary behind the reserved ids.

    The special tokens are not "added tokens" of the library, which would be found in the text;
    merges that would spell a reserved name are left out for the same reason.
    """
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    ids = {name: i for i, name in enumerate(_RESERVED)}
    dropped: set[str] = set()
    kept = []
    for left, right in merges:
        if left + right in _RESERVED or left in dropped or right in dropped:
            dropped.add(left + right)
        else:
            kept.append((left, right))
    for token in sorted(vocab, key=vocab.__getitem__):
        if token not in dropped:
            ids.setdefault(token, len(ids))
    core = Core(models.BPE(vocab=ids, merges=kept, byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def _common_characters(texts: list[str], limit: int) -> list[str]:
    """Replace all but the `limit` most frequent characters by spaces: rare ones become bytes.

    The trainer has such a limit too, but breaks ties by the order of a hash table.
    """
    counts = Counter("\n".join(texts))
    for character in ("\n", " ", _MARK):
        counts.pop(character, None)
    if not counts:
        raise UserError("the training split has no text to train a tokenizer on")
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    rare = dict.fromkeys(map(ord, [*ranked[max(1, limit) :], _MARK]), " ")
    if len(rare) == 1 and not any(_MARK in text for text in texts):
        return texts
    return [text.translate(rare) for text in texts]


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _swap_bytes(ids: list[int], old: str, new: str) -> list[int]:
    """Replace the bytes of `old` by those of `new`; both are three bytes long."""
    find = [_BYTE_0 + byte for byte in old.encode()]
    replacement = [_BYTE_0 + byte for byte in new.encode()]
    out = list(ids)
    for i in range(len(out) - 2):
        if out[i : i + 3] == find:
            out[i : i + 3] = replacement
    return out
