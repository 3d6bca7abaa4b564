"""Parallel corpora by name: the phrasebook, the Hub, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from normtrain.data.cache import fingerprint, fingerprint_lines
from normtrain.data.phrasebook import PHRASEBOOK_VERSION, read_phrasebook
from normtrain.data.reading import SPLITS, corpus_not_found, expand_user
from normtrain.data.text import looks_tokenized
from normtrain.errors import UserError
from normtrain.tasks.translation.parallel_files import read_parallel_folder
from normtrain.tasks.translation.parallel_hub import IWSLT15, Loader, load_parallel_hub

# The corpora with a name are all English-Vietnamese.
_NAMES = ("iwslt15", "phrasebook")
_NAMED_PAIR = ("en", "vi")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs, cleaned as described in `normtrain.data.text`; both lists have one length."""

    source: list[str]
    target: list[str]

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise UserError(
                f"{len(self.source):,} source lines but {len(self.target):,} target lines; "
                "both sides must have one line for each sentence"
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
        splits: by split name. In ``valid`` and ``test`` every line of the files is kept, an empty
            one too, so that line counts are those of the files.
        provenance: plain values: ``kind`` (phrasebook, hub or folder), ``source``, ``revision``,
            ``sha256`` of all the text, the number of pairs of each split, and ``tokenized``.
        tokenized: whether the text is tokenized (see `normtrain.data.text.looks_tokenized`).
    """

    splits: dict[str, Pairs]
    provenance: dict[str, str | int | None]
    tokenized: bool


def corpus_names() -> list[str]:
    """Return the names of the corpora that have one."""
    return sorted(_NAMES)


def load_corpus(
    source: str,
    *,
    source_lang: str = "en",
    target_lang: str = "vi",
    revision: str | None = None,
    splits: Sequence[str] | None = None,
    hub_loader: Loader | None = None,
) -> Corpus:
    """Load a parallel corpus.

    Args:
        source: ``"phrasebook"``, ``"iwslt15"``, ``"hf:owner/name"`` or a folder. A folder that is
            named like a corpus is reached as ``./phrasebook``.
        source_lang: code of the source language: the ending of its files (``train.en``) and the
            name of its column on the Hub.
        target_lang: likewise for the target language.
        revision: pins a dataset of the Hub; ignored for the others.
        splits: which splits; None takes train, valid and, where it exists, test. A folder may
            hold any other pair of files by stem, ``tst2013.en`` and ``tst2013.vi``.
        hub_loader: replaces the Hub (see `load_parallel_hub`).

    Raises:
        UserError: the corpus, folder, file or split is not found or cannot be used, or it is not in
            these languages.
        RunError: the Hub cannot be reached, or a file cannot be read.
    """
    if source in _NAMES and {source_lang, target_lang} != set(_NAMED_PAIR):
        raise UserError(
            f"the corpus {source} is English-Vietnamese: data.source_lang and data.target_lang "
            f"must be en and vi, got {source_lang} and {target_lang}"
        )
    revision_read: str | None = None
    if source == "phrasebook":
        kind, revision_read = "phrasebook", PHRASEBOOK_VERSION
        texts = {
            split: (read_phrasebook(split, source_lang), read_phrasebook(split, target_lang))
            for split in splits or SPLITS
        }
    elif source == "iwslt15" or source.startswith("hf:"):
        kind, repository = "hub", IWSLT15 if source == "iwslt15" else source[3:]
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise UserError(f"{source!r} is not a Hub dataset; write it as hf:owner/name")
        texts, revision_read = load_parallel_hub(
            repository, revision, splits, source_lang, target_lang, hub_loader
        )
    else:
        kind, folder = "folder", expand_user(source)
        if not folder.is_dir():
            raise _no_folder(source, folder, source_lang, target_lang)
        texts = read_parallel_folder(folder, splits, source_lang, target_lang)
    pairs = {split: Pairs(*sides) for split, sides in texts.items()}
    for split, side in pairs.items():
        if not any(s and t for s, t in zip(side.source, side.target, strict=True)):
            raise UserError(f"{source}: the split {split!r} has no pair with text on both sides")
    provenance = _provenance(source, kind, revision_read, pairs)
    return Corpus(pairs, provenance, bool(provenance["tokenized"]))


def _provenance(
    source: str, kind: str, revision: str | None, pairs: dict[str, Pairs]
) -> dict[str, str | int | None]:
    shown = pairs["train"] if "train" in pairs else next(iter(pairs.values()))
    return {
        "kind": kind,
        "source": IWSLT15 if source == "iwslt15" else source,
        "revision": revision,
        "sha256": fingerprint(*(part for k, v in pairs.items() for part in (k, v.fingerprint))),
        **{f"pairs_{split}": len(side) for split, side in pairs.items()},
        "tokenized": looks_tokenized(shown.target),
    }


def _no_folder(source: str, path: Path, source_lang: str, target_lang: str) -> UserError:
    folder = f"a folder with train.{source_lang} and train.{target_lang}"
    if path.is_file():
        return UserError(f"{source} is a file; give {folder}")
    return corpus_not_found(source, _NAMES, folder, "hf:owner/name")
