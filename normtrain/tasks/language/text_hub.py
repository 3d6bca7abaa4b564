"""Text from the Hugging Face Hub, through `datasets`; plain data files only."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from normtrain.data.documents import Documents, Piece, document, documents_of, in_pieces
from normtrain.data.hub import download, find_commit, select_splits
from normtrain.errors import RunError, UserError
from normtrain.tasks.language.text_files import articles, fixed_splits, standard_cuts

WIKITEXT = "Salesforce/wikitext"
ENWIK8 = "LTCB/enwik8"
#: The tokenized, word-level versions.
CONFIGURATIONS = {"wikitext2": "wikitext-2-v1", "wikitext103": "wikitext-103-v1"}

#: A loader takes (repository, configuration, revision) and returns split name to dataset.
Loader = Callable[[str, str | None, str | None], Mapping[str, Any]]

_OFFLINE = (
    "train offline with '--data python', or on your own text with '--data DIR' (train.txt, "
    "valid.txt, test.txt) or '--data FILE'"
)
# The dataset itself is a script, which is not run; this branch holds its rows as data files.
_ENWIK8_ROWS, _ENWIK8_BRANCH = "enwik8-raw", "refs/convert/parquet"
_ROWS = 256


def load_hub_text(
    repository: str,
    configuration: str | None,
    revision: str | None,
    splits: Sequence[str] | None,
    loader: Loader | None = None,
) -> tuple[dict[str, Documents], str | None]:
    """Read a dataset with a ``text`` column; a row is a document.

    WikiText's rows are its lines, and its documents its articles. enwik8 is cut after 90 and after
    95 million bytes, and needs memory for three times its size.

    Args:
        repository: ``owner/name``.
        configuration: the dataset's configuration; None takes the only one.
        revision: a branch, tag or commit (of enwik8, one that holds its rows as data files); None
            takes the newest.
        splits: which splits; None takes train, valid and, where it exists, test.
        loader: replaces the Hub.

    Returns:
        The splits, and the commit that was read, None where it cannot be told.

    Raises:
        UserError: the dataset, configuration, revision, split or ``text`` column is not found.
        RunError: the Hub cannot be reached and the dataset is not cached.
    """
    if repository == ENWIK8:
        return _load_enwik8(revision, splits, loader)
    tables = (loader or _download)(repository, configuration, revision)
    chosen_tables = select_splits(repository, tables, splits)
    found: dict[str, Documents] = {}
    for split, table in chosen_tables.items():
        texts = _text_column(repository, table)
        found[split] = _wikitext(texts) if repository == WIKITEXT else _rows_as_documents(texts)
    return found, find_commit(repository, revision, chosen_tables.values(), ask=loader is None)


def _load_enwik8(
    revision: str | None, splits: Sequence[str] | None, loader: Loader | None
) -> tuple[dict[str, Documents], str | None]:
    wanted = fixed_splits(splits)
    revision = revision or _ENWIK8_BRANCH
    try:
        tables = (loader or _download)(ENWIK8, _ENWIK8_ROWS, revision)
    except (UserError, RunError) as error:
        hint = "; or download the file enwik8 itself and give it with '--data ./enwik8'"
        raise type(error)(f"{error}{hint}") from error
    table = _text_column(ENWIK8, tables["train"])
    first, second, size = standard_cuts(len(_joined(table)), f"the dataset {ENWIK8}")
    bounds = {"train": (0, first), "valid": (first, second), "test": (second, size)}
    commit = find_commit(ENWIK8, revision, [tables["train"]], ask=loader is None)
    return {split: _between(table, *bounds[split]) for split in wanted}, commit


def _between(table: Any, begin: int, end: int) -> Documents:
    def read() -> Iterator[Piece]:
        return document(in_pieces(io.BytesIO(_joined(table)[begin:end]), strict=False))

    return Documents(read)


def _joined(table: Any) -> bytes:
    return b"".join(text.encode("utf-8") for text in _texts(table))


def _rows_as_documents(table: Any) -> Documents:
    return documents_of(lambda: (text for text in _texts(table) if text))


def _wikitext(table: Any) -> Documents:
    def lines() -> Iterator[str]:
        for text in _texts(table):
            # A blank line is empty on the Hub, but a space in WikiText's own files.
            yield text if text.endswith("\n") else (text or " ") + "\n"

    return Documents(lambda: articles(lines()))


def _text_column(repository: str, table: Any) -> Any:
    names = list(table.column_names)
    if "text" not in names:
        raise UserError(
            f"the dataset {repository} has the columns {', '.join(names)}; expected 'text'"
        )
    if getattr(table.features["text"], "dtype", None) not in ("string", "large_string"):
        raise UserError(f"the column 'text' of the dataset {repository} must hold strings")
    return table.select_columns("text")


def _texts(table: Any) -> Iterator[str]:
    for rows in table.iter(batch_size=_ROWS):
        for text in rows["text"]:
            yield text or ""


def _download(
    repository: str, configuration: str | None, revision: str | None
) -> Mapping[str, Any]:
    # In the branch of data files a configuration is a folder.
    option = "data_dir" if repository == ENWIK8 else "name"
    return download(repository, _OFFLINE, revision=revision, **{option: configuration})
