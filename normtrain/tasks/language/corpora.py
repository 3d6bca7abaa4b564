"""Where text for language modelling comes from: Python itself, the Hub, a folder or a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from normtrain.data import folder as _folder
from normtrain.data.cache import fingerprint
from normtrain.data.documents import Documents
from normtrain.errors import UserError, unknown_name
from normtrain.tasks.language import files as _files
from normtrain.tasks.language import text_hub as _hub
from normtrain.tasks.language.stdlib import load_python

_NAMED = ("enwik8", "python", "wikitext103", "wikitext2")


@dataclass(frozen=True)
class TextCorpus:
    """A corpus of running text, which is read again at every pass and never held.

    Attributes:
        name: what it was asked for by.
        splits: the documents by split name.
        provenance: plain values: ``kind`` (python, hub, folder or file), ``source``, ``revision``,
            ``sha256`` of all the text, ``documents_<split>``; of Python's library also ``python``,
            its version, and ``skipped``, how many files were not UTF-8.
    """

    name: str
    splits: dict[str, Documents]
    provenance: dict[str, str | int | None]


def text_names() -> list[str]:
    """The text corpora known by name."""
    return sorted(_NAMED)


def load_text(
    source: str,
    *,
    revision: str | None = None,
    splits: Sequence[str] | None = None,
    hub_loader: _hub.Loader | None = None,
) -> TextCorpus:
    """Load a corpus for language modelling; the text is kept exactly as it is.

    All of it is read once, for its checksum and its errors.

    Args:
        source: ``"python"``, ``"wikitext2"``, ``"wikitext103"``, ``"enwik8"``, ``"hf:owner/name"``
            or ``"hf:owner/name:configuration"`` (with a ``text`` column), a folder (see
            `load_folder`) or a file (see `load_file`). A folder or file that is named like a
            corpus is reached as ``./python``.
        revision: pins a dataset of the Hub; without effect on the others.
        splits: which splits; None takes train, valid and, where there is one, test.
        hub_loader: stands in for the Hub (see `normtrain.tasks.language.text_hub.load_hub_text`).

    Raises:
        UserError: no such corpus, file or split, or a file that can't be used.
        RunError: the Hub can't be reached, or a file can't be read.
    """
    plain: dict[str, str | int | None] = {"kind": "file", "source": source, "revision": None}
    path = _folder.located(source)
    if source == "python":
        found, skipped = load_python(splits)
        plain |= {"kind": "python", "python": platform.python_version(), "skipped": skipped}
    elif source in _NAMED or source.startswith("hf:"):
        repository, configuration = _dataset(source)
        found, commit = _hub.load_hub_text(repository, configuration, revision, splits, hub_loader)
        full = f"{repository}:{configuration}" if configuration else repository
        plain |= {"kind": "hub", "source": full, "revision": commit}
    elif path.is_dir():
        found = _files.load_folder(path, splits)
        plain["kind"] = "folder"
    elif path.is_file():
        found = _files.load_file(path, splits)
    else:
        raise _no_corpus(source)
    for split, documents in found.items():
        if documents.empty:
            raise UserError(f"{source}: the split {split!r} is empty; it needs text")
    parts = (part for split, d in found.items() for part in (split, d.fingerprint))
    plain["sha256"] = fingerprint(*parts)
    plain |= {f"documents_{split}": documents.count for split, documents in found.items()}
    return TextCorpus(source, found, plain)


def _dataset(source: str) -> tuple[str, str | None]:
    if source == "enwik8":
        return _hub.ENWIK8, None
    if source in _hub.CONFIGURATIONS:
        return _hub.WIKITEXT, _hub.CONFIGURATIONS[source]
    repository, colon, configuration = source[3:].partition(":")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or (colon and not configuration):
        raise UserError(
            f"{source!r} is not a Hub dataset; write it as hf:owner/name or "
            "hf:owner/name:configuration"
        )
    return repository, configuration or None


def _no_corpus(source: str) -> UserError:
    if os.sep in source or source.startswith((".", "~")):
        return UserError(
            f"there is no folder or file {source}; give a folder that holds train.txt, or a text"
        )
    near = unknown_name("corpus", source, _NAMED)
    return UserError(f"{near}; or a folder with train.txt, a text file, or hf:owner/name")
