"""Text corpora for language modelling by name: Python's library, the Hub, a folder or a file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from normtrain.data.cache import fingerprint
from normtrain.data.documents import Documents
from normtrain.data.reading import corpus_not_found, expand_user
from normtrain.errors import UserError
from normtrain.tasks.language.stdlib import load_python
from normtrain.tasks.language.text_files import load_file, load_folder
from normtrain.tasks.language.text_hub import (
    CONFIGURATIONS,
    ENWIK8,
    WIKITEXT,
    Loader,
    load_hub_text,
)

_NAMES = ("enwik8", "python", "wikitext103", "wikitext2")


@dataclass(frozen=True)
class TextCorpus:
    """A corpus of running text, which is read from its source at every pass.

    Attributes:
        splits: the documents by split name.
        provenance: plain values: ``kind`` (python, hub, folder or file), ``source``, ``revision``,
            ``sha256`` of all the text, ``documents_<split>``; for Python's library also
            ``python``, its version, and ``skipped``, how many files were not UTF-8.
    """

    splits: dict[str, Documents]
    provenance: dict[str, str | int | None]


def text_names() -> list[str]:
    """Return the names of the text corpora that have one."""
    return sorted(_NAMES)


def load_text(
    source: str,
    *,
    revision: str | None = None,
    splits: Sequence[str] | None = None,
    hub_loader: Loader | None = None,
) -> TextCorpus:
    """Load a corpus for language modelling; the text is kept exactly as it is.

    All of it is read once, for its checksum and its errors.

    Args:
        source: ``"python"``, ``"wikitext2"``, ``"wikitext103"``, ``"enwik8"``, ``"hf:owner/name"``
            or ``"hf:owner/name:configuration"`` (with a ``text`` column), a folder (see
            `load_folder`) or a file (see `load_file`). A folder or file that is named like a
            corpus is reached as ``./python``.
        revision: pins a dataset of the Hub; ignored for the others.
        splits: which splits; None takes train, valid and, where it exists, test.
        hub_loader: replaces the Hub (see `load_hub_text`).

    Raises:
        UserError: the corpus, file or split is not found, or a file cannot be used.
        RunError: the Hub cannot be reached, or a file cannot be read.
    """
    plain: dict[str, str | int | None] = {"kind": "file", "source": source, "revision": None}
    path = expand_user(source)
    if source == "python":
        found, skipped = load_python(splits)
        plain |= {"kind": "python", "python": platform.python_version(), "skipped": skipped}
    elif source in _NAMES or source.startswith("hf:"):
        repository, configuration = _dataset(source)
        found, commit = load_hub_text(repository, configuration, revision, splits, hub_loader)
        full = f"{repository}:{configuration}" if configuration else repository
        plain |= {"kind": "hub", "source": full, "revision": commit}
    elif path.is_dir():
        found = load_folder(path, splits)
        plain["kind"] = "folder"
    elif path.is_file():
        found = load_file(path, splits)
    else:
        path_help = "a folder with train.txt, or a text file"
        raise corpus_not_found(source, _NAMES, path_help, "hf:owner/name")
    for split, documents in found.items():
        if documents.empty:
            raise UserError(f"{source}: the split {split!r} is empty; it must have text")
    parts = (part for split, d in found.items() for part in (split, d.fingerprint))
    plain["sha256"] = fingerprint(*parts)
    plain |= {f"documents_{split}": documents.count for split, documents in found.items()}
    return TextCorpus(found, plain)


def _dataset(source: str) -> tuple[str, str | None]:
    """The repository and configuration of a corpus on the Hub."""
    if source == "enwik8":
        return ENWIK8, None
    if source in CONFIGURATIONS:
        return WIKITEXT, CONFIGURATIONS[source]
    repository, colon, configuration = source[3:].partition(":")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or (colon and not configuration):
        raise UserError(
            f"{source!r} is not a Hub dataset; write it as hf:owner/name or "
            "hf:owner/name:configuration"
        )
    return repository, configuration or None
