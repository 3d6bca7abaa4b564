"""Where parallel text comes from: a named corpus, the Hub, or a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from normtrain.data import folder as _folder
from normtrain.data import hub as _hub
from normtrain.data.cache import fingerprint, fingerprint_lines
from normtrain.data.text import looks_tokenized
from normtrain.errors import UserError, unknown_name

_NAMED = ("iwslt15", "phrasebook")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs, cleaned as `normtrain.data.text` says; both lists are equally long."""

    source: list[str]
    target: list[str]

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise UserError(
                f"{len(self.source):,} source lines but {len(self.target):,} target lines; "
                "both sides need one line for each sentence"
            )

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the text of both sides."""
        return fingerprint(fingerprint_lines(self.source), fingerprint_lines(self.target))


@dataclass(frozen=True)
class Corpus:
    """A parallel corpus.

    Attributes:
        name: what it was asked for by.
        splits: by split name. In ``valid`` and ``test`` every line of the files is kept, an empty
            one too, so that line counts stay what they were.
        provenance: plain values: ``kind`` (phrasebook, hub or folder), ``source``, ``revision``,
            ``sha256`` of all the text, and the number of pairs of each split.
        tokenized: the text comes tokenised (see `normtrain.data.text.looks_tokenized`).
    """

    name: str
    splits: dict[str, Pairs]
    provenance: dict[str, str | int | None]
    tokenized: bool


def corpus_names() -> list[str]:
    """The corpora known by name."""
    return sorted(_NAMED)


def load_corpus(
    source: str,
    *,
    revision: str | None = None,
    splits: Sequence[str] | None = None,
    hub_loader: _hub.Loader | None = None,
) -> Corpus:
    """Load a parallel English–Vietnamese corpus.

    Args:
        source: ``"phrasebook"``, ``"iwslt15"``, ``"hf:owner/name"`` or a folder. A folder that is
            named like a corpus is reached as ``./phrasebook``.
        revision: pins a dataset of the Hub; without effect on the others.
        splits: which splits; None takes train, valid and, where there is one, test. A folder may
            hold any other pair of files by stem, ``tst2013.en`` and ``tst2013.vi``.
        hub_loader: stands in for the Hub (see `normtrain.data.hub.load_hub`).

    Raises:
        UserError: no such corpus, folder, file or split, or files that can't be used.
        RunError: the Hub can't be reached, or a file can't be read.
    """
    found: str | None = None
    if source == "phrasebook":
        texts, found = _phrasebook(splits)
        kind = "phrasebook"
    elif source == "iwslt15" or source.startswith("hf:"):
        repository = _hub.IWSLT15 if source == "iwslt15" else source[3:]
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise UserError(f"{source!r} is not a Hub dataset; write it as hf:owner/name")
        texts, found = _hub.load_hub(repository, revision, splits, hub_loader)
        kind = "hub"
    else:
        texts = _from_folder(source, splits)
        kind = "folder"
    pairs = {split: Pairs(*sides) for split, sides in texts.items()}
    for split, side in pairs.items():
        if not any(s and t for s, t in zip(side.source, side.target, strict=True)):
            raise UserError(f"{source}: the split {split!r} has no pair with text on both sides")
    return _corpus(source, kind, found, pairs)


def _corpus(source: str, kind: str, revision: str | None, pairs: dict[str, Pairs]) -> Corpus:
    provenance: dict[str, str | int | None] = {
        "kind": kind,
        "source": _hub.IWSLT15 if source == "iwslt15" else source,
        "revision": revision,
        "sha256": fingerprint(*(part for k, v in pairs.items() for part in (k, v.fingerprint))),
    }
    provenance |= {f"pairs_{split}": len(side) for split, side in pairs.items()}
    shown = pairs["train"] if "train" in pairs else next(iter(pairs.values()))
    tokenized = looks_tokenized(shown.target)
    return Corpus(source, pairs, provenance | {"tokenized": tokenized}, tokenized)


def _phrasebook(
    splits: Sequence[str] | None,
) -> tuple[dict[str, tuple[list[str], list[str]]], str]:
    from normtrain.data.phrasebook import PHRASEBOOK_VERSION, phrasebook_splits

    known = phrasebook_splits()
    wanted = list(splits) if splits is not None else ["train", "valid", "test"]
    for split in wanted:
        if split not in known:
            raise unknown_name("split of the phrasebook", split, known)
    return {split: known[split] for split in wanted}, str(PHRASEBOOK_VERSION)


def _from_folder(
    source: str, splits: Sequence[str] | None
) -> dict[str, tuple[list[str], list[str]]]:
    path = _folder.located(source)
    if not path.is_dir():
        raise _no_corpus(source, path)
    if splits is None:
        splits = ["train", "valid"]
        if any(_folder.find_side(path, "test", language) for language in ("en", "vi")):
            splits.append("test")
    return {split: _folder.read_split(path, split) for split in splits}


def _no_corpus(source: str, path: Path) -> UserError:
    if path.is_file():
        return UserError(f"{source} is a file; give the folder that holds train.en and train.vi")
    if os.sep in source or source.startswith((".", "~")):
        return UserError(f"there is no folder {source}; give one that holds train.en and train.vi")
    near = unknown_name("corpus", source, _NAMED)
    return UserError(f"{near}; or a folder with train.en and train.vi, or hf:owner/name")
