"""Byte-pair encoding over bytes (Radford et al. 2019): trained, or read from a model folder."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from normtrain.data.documents import raw_bytes
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import RunError, UserError, on_one_line

END_OF_TEXT = "<|endoftext|>"
# The 256 bytes and the special token.
_MIN_SIZE = 257

# Loader workers never encode, so the warning that `tokenizers` prints at every fork is noise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# Lone surrogates, which the `tokenizers` library rejects.
_SURROGATE = re.compile("[\ud800-\udfff]")
_RUNS = re.compile("([\udc80-\udcff]+)")
# GPT-2's rules always split where white space begins. So words can be encoded one by one, each with
# the white space before it, and every word only once.
_WORDS = re.compile(r"[ \t\n\r]*[^ \t\n\r]+|[ \t\n\r]+")
# White space that the pattern above takes for part of a word.
_OTHER_SPACE = re.compile(r"[^\S \t\n\r]")
# Characters of the words whose ids are cached.
_CACHED = 1 << 24


class BpeTokenizer(TextTokenizer):
    """Byte-level byte-pair encoding: ``decode(encode(text))`` is the text.

    Text is never encoded as a special id: ``"<|endoftext|>"`` is encoded as its characters. A lone
    surrogate that stands for a byte (``surrogateescape``) is encoded as that byte. Decoding leaves
    special ids out, and bytes that are not UTF-8 become U+FFFD.

    A tokenizer read from a Hugging Face folder keeps its ids and rules, which may lose some text.

    Args:
        core: a tokenizer of the `tokenizers` library.
        eos: the token that ends a document.

    Raises:
        UserError: `core` has no such token.
    """

    kind = "bpe"

    def __init__(self, core: Any, eos: str = END_OF_TEXT) -> None:
        found = core.token_to_id(eos)
        if found is None:
            raise UserError(f"the tokenizer has no token {eos!r} to end a document with")
        self.eos: int = found
        self._end = eos
        self._core = core
        core.encode_special_tokens = True  # text that spells a special token is plain text
        core.no_truncation()
        core.no_padding()
        self.vocab_size: int = 1 + max(core.get_vocab(with_added_tokens=True).values())
        ids = [core.token_to_id(character) for character in _byte_characters()]
        self._bytes = None if None in ids else ids
        self._by_words = _has_gpt2_rules(core)
        self._cached: dict[str, list[int]] = {}
        self._cached_size = 0

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without `eos`; the empty text gives none."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, encoded on all cores."""
        odd = {i for i, text in enumerate(texts) if _SURROGATE.search(text)}
        plain = ["" if i in odd else text for i, text in enumerate(texts)]
        ids = self._encode(plain)
        for i in odd:
            ids[i] = self._encode_surrogates(texts[i])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special ids and ids outside the vocabulary are left out."""
        known = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        return self._core.decode(known, skip_special_tokens=True)

    def to_json(self) -> str:
        """Return text that `tokenizer_from_json` reads; with ``<|endoftext|>`` as `eos`, the
        `tokenizers` library reads it too."""
        if self._end == END_OF_TEXT:
            return self._core.to_str()
        rules = json.loads(self._core.to_str())
        return json.dumps({"kind": self.kind, "eos": self._end, "rules": rules}, ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own copies forget that special tokens in text are plain text.
        return bpe_from_rules, (self._core.to_str(), self._end)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._by_words:
            return self._encode_directly(texts)
        odd = {i for i, text in enumerate(texts) if _OTHER_SPACE.search(text)}
        words = [[] if i in odd else _WORDS.findall(text) for i, text in enumerate(texts)]
        ids = self._encode_words(words)
        for i in odd:
            ids[i] = self._encode_directly([texts[i]])[0]
        return ids

    def _encode_words(self, texts: list[list[str]]) -> list[list[int]]:
        """The result of `_encode_directly`, faster on text whose words repeat."""
        if self._cached_size > _CACHED:
            self._cached, self._cached_size = {}, 0
        known, chained = self._cached, itertools.chain.from_iterable
        new = list(dict.fromkeys(word for word in chained(texts) if word not in known))
        if new:
            known.update(zip(new, self._encode_directly(new), strict=True))
            self._cached_size += sum(map(len, new))
        return [list(chained(map(known.__getitem__, words))) for words in texts]

    def _encode_directly(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._core.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _encode_surrogates(self, text: str) -> list[int]:
        """Ids of a text with lone surrogates, encoded as the bytes they stand for if possible."""
        text = raw_bytes(text).decode("utf-8", "surrogateescape")
        if self._bytes is None:
            return self._encode([raw_bytes(text).decode("utf-8", "replace")])[0]
        ids: list[int] = []
        for part in _RUNS.split(text):
            if _RUNS.match(part):
                ids += [self._bytes[byte] for byte in raw_bytes(part)]
            else:
                ids += self._encode([part])[0]
        return ids


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train a byte-level byte-pair encoding; the same text gives the same tokenizer.

    Args:
        texts: pieces of text; no token spans two.
        vocab_size: ids at most, with the 256 bytes and ``<|endoftext|>`` (0). A small text gives
            fewer.

    Raises:
        UserError: there is no text, or `vocab_size` is below 257.
    """
    if vocab_size < _MIN_SIZE:
        raise UserError(f"vocab_size must be >= {_MIN_SIZE} with bpe, got {vocab_size}")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_byte_characters(),
        show_progress=False,
    )
    some = False

    def encodable() -> Iterable[str]:
        nonlocal some
        for text in texts:
            some = some or bool(text)
            odd = _SURROGATE.search(text)
            yield raw_bytes(text).decode("utf-8", "replace") if odd else text

    core.train_from_iterator(encodable(), trainer)
    if not some:
        raise UserError("the training split has no text to train a tokenizer on")
    return BpeTokenizer(core)


def bpe_from_rules(rules: str, eos: str = END_OF_TEXT) -> BpeTokenizer:
    """Read a tokenizer from the JSON text of the `tokenizers` library.

    Raises:
        UserError: the text is no such tokenizer, or it has no token `eos`.
    """
    from tokenizers import Tokenizer

    try:
        core = Tokenizer.from_str(rules)
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"the text is not a tokenizer file: {on_one_line(error)}") from error
    return BpeTokenizer(core, eos)


def bpe_from_folder(folder: str | os.PathLike[str]) -> BpeTokenizer:
    """Read ``tokenizer.json`` of a Hugging Face model's folder.

    The token that ends a document is the ``eos_token`` of ``tokenizer_config.json`` (or of
    ``special_tokens_map.json``); without these files, ``<|endoftext|>``.

    Raises:
        UserError: the file is not found, or cannot be used.
        RunError: the file cannot be read.
    """
    folder = Path(folder)
    rules = _read(folder / "tokenizer.json")
    if rules is None:
        raise UserError(f"no tokenizer.json found in {folder}; save the model's tokenizer there")
    eos = END_OF_TEXT
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        found = _eos_of(_read(folder / name) or "{}", folder / name)
        if found is not None:
            eos = found
            break
    try:
        return bpe_from_rules(rules, eos)
    except UserError as error:
        raise UserError(f"{folder / 'tokenizer.json'}: {error}") from error


def _eos_of(text: str, path: Path) -> str | None:
    try:
        token = json.loads(text).get("eos_token")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object; save the tokenizer again") from error
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise UserError(f"{path}: eos_token must be a string, got {token!r}")
    return token


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; save the tokenizer again") from error
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def _has_gpt2_rules(core: Any) -> bool:
    """Whether the rules are exactly GPT-2's: its split of text, and nothing else."""
    rules = json.loads(core.to_str())
    plain = [token for token in rules["added_tokens"] if not token["special"]]
    before = rules["pre_tokenizer"] or {}
    return (
        rules["normalizer"] is None
        and not plain  # a plain added token is found anywhere in text, across words too
        and before.get("type") == "ByteLevel"
        and before.get("use_regex") is True
        and before.get("add_prefix_space") is False
    )


def _byte_characters() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in a byte-level vocabulary.

    A byte whose Latin-1 character is visible is that character; the others are, in order, those
    from U+0100 on (Radford et al. 2019).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
