"""Corpora, tokenizers, encoded data and batches; `normtrain.data.language` is for running text.

Names are resolved on first use, so that importing this room imports neither torch, Lightning,
`datasets` nor `tokenizers`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Corpus": "corpora",
    "Pairs": "corpora",
    "load_corpus": "corpora",
    "corpus_names": "corpora",
    "BOS": "tokenization",
    "EOS": "tokenization",
    "PAD": "tokenization",
    "UNK": "tokenization",
    "Tokenizer": "tokenization",
    "train_tokenizer": "tokenization",
    "EncodedPairs": "encoding",
    "EncodingReport": "encoding",
    "cached_tokenizer": "encoding",
    "encode_pairs": "encoding",
    "ResumableLoader": "epochs",
    "SortedBatches": "batching",
    "TokenBatches": "batching",
    "TranslationBatches": "batching",
    "collate": "batching",
    "padding_efficiency": "batching",
    "LanguageData": "language",
    "TranslationData": "module",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
