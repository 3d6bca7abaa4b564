"""Running text for language modelling: corpora, tokenizers, encoded text and windows.

Names are resolved on first use, so that importing this room imports neither torch, Lightning,
`datasets` nor `tokenizers`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "TextCorpus": "corpora",
    "load_text": "corpora",
    "text_names": "corpora",
    "Documents": "documents",
    "Piece": "documents",
    "documents_of": "documents",
    "BpeTokenizer": "bpe",
    "bpe_from_folder": "bpe",
    "ByteTokenizer": "plain",
    "CharTokenizer": "plain",
    "WordTokenizer": "word",
    "TextTokenizer": "protocol",
    "cached_text_tokenizer": "tokenizers",
    "text_tokenizer_kinds": "tokenizers",
    "tokenizer_from_json": "tokenizers",
    "train_text_tokenizer": "tokenizers",
    "EncodedText": "encoding",
    "TextCounts": "encoding",
    "encode_text": "encoding",
    "EvaluationWindows": "windows",
    "TextWindows": "windows",
    "WindowBatches": "windows",
    "LanguageData": "module",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
