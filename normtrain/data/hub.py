"""Datasets of the Hugging Face Hub, through `datasets`; plain data files only, no code is run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normtrain.data.reading import SPLITS
from normtrain.errors import RunError, UserError

#: Names a split may have on the Hub, preferred first; any other split is named by itself.
ALIASES: dict[str, tuple[str, ...]] = {"valid": ("validation", "valid", "dev")}

# `datasets` lists the configurations both where none was chosen and where the name is unknown.
_CONFIGURATIONS = re.compile(r"(?:available configs|not found\. Available): \[(.*?)\]")
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def select_splits(
    repository: str,
    tables: Mapping[str, Any],
    splits: Sequence[str] | None,
    aliases: Mapping[str, tuple[str, ...]] = ALIASES,
) -> dict[str, Any]:
    """Pick the tables of splits.

    Args:
        repository: ``owner/name``, for errors.
        tables: split name on the Hub to table.
        splits: names; None takes train, valid and, where it exists, test.
        aliases: the names that a split may have on the Hub.

    Raises:
        UserError: a split is not there.
    """
    found: dict[str, Any] = {}
    for split in splits if splits is not None else SPLITS:
        name = next((n for n in aliases.get(split, (split,)) if n in tables), None)
        if name is not None:
            found[split] = tables[name]
        elif splits is not None or split != "test":
            raise UserError(
                f"the dataset {repository} has no split {split!r}; it has {', '.join(tables)}"
            )
    return found


def find_commit(
    repository: str, revision: str | None, tables: Iterable[Any], *, ask: bool
) -> str | None:
    """Return the commit that was read, or the revision itself where it cannot be told.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; None is the newest.
        tables: what was read.
        ask: whether the Hub may be asked.
    """
    for table in tables:
        # `datasets` puts the commit into the path of the files it caches.
        for file in getattr(table, "cache_files", None) or ():
            commits = _COMMIT.findall(str(file.get("filename", "")))
            if commits:
                return commits[-1]
    if not ask or (revision is not None and _COMMIT.fullmatch(revision)):
        return revision
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(repository, revision=revision).sha
    except Exception:  # offline with a cached copy: only the commit is unknown
        return revision


def download(repository: str, offline: str, **choice: str | None) -> Mapping[str, Any]:
    """Read a dataset of the Hub, or its cached copy.

    Args:
        repository: ``owner/name``.
        offline: what the user can do instead when the Hub cannot be reached.
        choice: ``revision`` and whatever else `datasets.load_dataset` takes to choose data.

    Returns:
        Split name to table.

    Raises:
        UserError: the dataset, revision or configuration is not found, or it needs its own code.
        RunError: the Hub cannot be reached and the dataset is not cached.
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
                f"the dataset {repository} needs its own Python code, which is never run; "
                "use one made of plain data files"
            ) from error
        if isinstance(error, ValueError) and (known := _CONFIGURATIONS.search(str(error))):
            raise UserError(
                f"the dataset {repository} has the configurations {known.group(1)}; choose one as "
                "hf:owner/name:configuration"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"cannot get {repository} from the Hugging Face Hub ({reason}); {offline}, or download "
            "the dataset once where there is a network and copy the folder ~/.cache/huggingface "
            "to this machine (then HF_HUB_OFFLINE=1 skips the network)"
        ) from error
