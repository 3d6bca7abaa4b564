"""Parallel corpora from the Hugging Face Hub, through `datasets`; plain data files only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normtrain.data.text import clean_lines
from normtrain.errors import RunError, UserError

IWSLT15 = "thainq107/iwslt2015-en-vi"

#: A loader takes (repository, revision) and returns a mapping from split name to dataset.
Loader = Callable[[str, str | None], Mapping[str, Any]]

_SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    # IWSLT'15's own names for its validation and test sets.
    "valid": ("validation", "valid", "dev"),
    "test": ("test",),
    "tst2012": ("tst2012", "validation"),
    "tst2013": ("tst2013", "test"),
}
_OFFLINE = (
    "train offline with '--data phrasebook', or on your own files with '--data DIR' (train.en, "
    "train.vi, valid.en, valid.vi)"
)
# `datasets` lists them both where none was chosen and where there is no such one.
_CONFIGURATIONS = re.compile(r"(?:available configs|not found\. Available): \[(.*?)\]")
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def load_hub(
    repository: str,
    revision: str | None,
    splits: Sequence[str] | None,
    loader: Loader | None = None,
) -> tuple[dict[str, tuple[list[str], list[str]]], str | None]:
    """Read a two-language dataset.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; None takes the newest.
        splits: which splits; None takes train, valid and, where there is one, test.
        loader: stands in for the Hub (tests read local files in its format).

    Returns:
        ``{split: (English lines, Vietnamese lines)}`` and the commit that was read, None where
        it can't be told.

    Raises:
        UserError: no such dataset, revision, split, or it hasn't the columns ``en`` and ``vi``
            (or a ``translation`` column that holds them).
        RunError: the Hub can't be reached and the dataset isn't cached.
    """
    tables = (loader or _download)(repository, revision)
    wanted = splits if splits is not None else ("train", "valid", "test")
    found: dict[str, tuple[list[str], list[str]]] = {}
    commit: str | None = None
    for split in wanted:
        name = next((n for n in _SPLITS.get(split, (split,)) if n in tables), None)
        if name is None:
            if splits is None and split == "test":
                continue
            raise UserError(
                f"the dataset {repository} has no split {split!r}; it has {', '.join(tables)}"
            )
        found[split] = _columns(repository, tables[name])
        commit = commit or commit_of(tables[name])
    return found, commit or resolve(repository, revision, loader is None)


def _columns(repository: str, table: Any) -> tuple[list[str], list[str]]:
    names = list(table.column_names)
    if "en" in names and "vi" in names:
        source, target = table["en"], table["vi"]
    elif "translation" in names and {"en", "vi"} <= set(table.features["translation"]):
        both = table["translation"]
        source, target = [row["en"] for row in both], [row["vi"] for row in both]
    else:
        raise UserError(
            f"the dataset {repository} has the columns {', '.join(names)}; it needs 'en' and 'vi', "
            "or 'translation' with both"
        )
    return clean_lines(text or "" for text in source), clean_lines(text or "" for text in target)


def commit_of(table: Any) -> str | None:
    """The commit that `datasets` puts into the path of the files it caches."""
    for file in getattr(table, "cache_files", None) or ():
        commits = _COMMIT.findall(str(file.get("filename", "")))
        if commits:
            return commits[-1]
    return None


def resolve(repository: str, revision: str | None, ask: bool) -> str | None:
    """The commit that a revision stands for; the revision itself where it can't be told.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; None is the newest.
        ask: whether the Hub may be asked.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    if not ask:
        return revision
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(repository, revision=revision).sha
    except Exception:  # offline with a cached copy: the data are there, only the commit isn't known
        return revision


def _download(repository: str, revision: str | None) -> Mapping[str, Any]:
    return download(repository, _OFFLINE, revision=revision)


def download(repository: str, offline: str, **choice: str | None) -> Mapping[str, Any]:
    """Read a dataset of the Hub, or its cached copy; code in it is never run.

    Args:
        repository: ``owner/name``.
        offline: what else can be done, for whom the Hub doesn't answer.
        choice: ``revision`` and whatever else `datasets.load_dataset` takes to choose data.

    Raises:
        UserError: no such dataset, revision or configuration, or it needs its own code.
        RunError: the Hub can't be reached and the dataset isn't cached.
    """
    import datasets

    try:
        return datasets.load_dataset(repository, **choice)
    except datasets.exceptions.DatasetNotFoundError as error:
        at = f" at revision {choice['revision']}" if choice.get("revision") else ""
        raise UserError(
            f"the Hub has no public dataset {repository}{at}; check the name, or log in with "
            "'hf auth login' if it is private"
        ) from error
    except Exception as error:
        if "script" in str(error) and isinstance(error, RuntimeError):
            raise UserError(
                f"the dataset {repository} needs its own Python code, which is never run here; "
                "use one made of plain data files"
            ) from error
        if isinstance(error, ValueError) and (known := _CONFIGURATIONS.search(str(error))):
            raise UserError(
                f"the dataset {repository} has the configurations {known.group(1)}; choose one as "
                "hf:owner/name:configuration"
            ) from error
        raise unreachable(repository, error, offline) from error


def unreachable(repository: str, error: BaseException, offline: str) -> RunError:
    """The error for a Hub that doesn't answer, with what to do about it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RunError(
        f"can't get {repository} from the Hugging Face Hub ({first}); {offline}, or fetch the "
        "dataset once where there is a network and copy the folder ~/.cache/huggingface here "
        "(then HF_HUB_OFFLINE=1 skips the network)"
    )
