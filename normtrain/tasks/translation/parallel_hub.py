"""Parallel corpora from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normtrain.data.hub import ALIASES, download, find_commit, select_splits
from normtrain.data.text import clean_lines
from normtrain.errors import UserError

IWSLT15 = "thainq107/iwslt2015-en-vi"

#: A loader takes (repository, revision) and returns a mapping from split name to dataset.
Loader = Callable[[str, str | None], Mapping[str, Any]]

# IWSLT'15's own names for its validation and test sets.
_ALIASES = ALIASES | {"tst2012": ("tst2012", "validation"), "tst2013": ("tst2013", "test")}


def load_parallel_hub(
    repository: str,
    revision: str | None,
    splits: Sequence[str] | None,
    source_lang: str,
    target_lang: str,
    loader: Loader | None = None,
) -> tuple[dict[str, tuple[list[str], list[str]]], str | None]:
    """Read a dataset with a column for each language, or a ``translation`` column with both.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; None takes the newest.
        splits: which splits; None takes train, valid and, where it exists, test.
        source_lang: name of the source column.
        target_lang: name of the target column.
        loader: replaces the Hub (tests read local files in its format).

    Returns:
        ``{split: (source lines, target lines)}``, and the commit that was read, None where it
        cannot be told.

    Raises:
        UserError: the dataset, revision, split or columns are not found.
        RunError: the Hub cannot be reached and the dataset is not cached.
    """
    languages = (source_lang, target_lang)
    if loader is None:
        files = ", ".join(f"{split}.{lang}" for split in ("train", "valid") for lang in languages)
        offline = (
            "train offline with '--data phrasebook', or on your own files with '--data DIR' "
            f"({files})"
        )
        tables = download(repository, offline, revision=revision)
    else:
        tables = loader(repository, revision)
    chosen = select_splits(repository, tables, splits, _ALIASES)
    found = {split: _columns(repository, table, languages) for split, table in chosen.items()}
    return found, find_commit(repository, revision, chosen.values(), ask=loader is None)


def _columns(
    repository: str, table: Any, languages: tuple[str, str]
) -> tuple[list[str], list[str]]:
    names = list(table.column_names)
    if set(languages) <= set(names):
        sides = [table[language] for language in languages]
    elif "translation" in names and set(languages) <= set(table.features["translation"]):
        rows = table["translation"]
        sides = [[row[language] for row in rows] for language in languages]
    else:
        raise UserError(
            f"the dataset {repository} has the columns {', '.join(names)}; expected "
            f"{languages[0]!r} and {languages[1]!r}, or 'translation' with both"
        )
    source, target = (clean_lines(text or "" for text in side) for side in sides)
    return source, target
