"""A corpus that every machine has: the sources of Python's standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from normtrain.data.documents import Documents, documents_of
from normtrain.errors import RunError, UserError
from normtrain.tasks.language.text_files import chosen

# Installed packages, tests and what is generated when Python is built are left out. So are IDLE
# and lib2to3, which some distributions leave out, and whose grammars are broken on purpose.
_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
)
_GENERATED = ("_sysconfigdata", "config-", "lib-dynload")
# Of a hundred files, this many and the rest.
_TRAIN, _VALID = 90, 5


def load_python(
    splits: Sequence[str] | None, root: Path | None = None
) -> tuple[dict[str, Documents], int]:
    """The running interpreter's own ``.py`` files, about 10 MB; a file is a document.

    A hash of its relative name says which split a file is in, so that most files stay in theirs
    from one version of Python to the next. Files that aren't UTF-8 are skipped.

    Args:
        splits: which of train, valid and test; None takes all.
        root: the library's folder; None asks Python.

    Returns:
        The splits, and how many files were skipped.

    Raises:
        UserError: no such split, or the library's sources aren't installed.
        RunError: a file can't be read.
    """
    wanted = chosen(splits)
    root = root or Path(sysconfig.get_path("stdlib"))
    files: dict[str, list[Path]] = {split: [] for split in ("train", "valid", "test")}
    skipped = 0
    for name in _names(root):
        if _text(root / name) is None:
            skipped += 1
        else:
            files[_split_of(name)].append(root / name)
    for split in wanted:
        if not files[split]:
            raise UserError(
                f"the standard library in {root} has too few .py files to train on; give another "
                "corpus, for example a folder with train.txt, valid.txt and test.txt"
            )
    return {split: _documents(files[split]) for split in wanted}, skipped


def _documents(paths: list[Path]) -> Documents:
    def texts() -> Iterator[str]:
        for path in paths:
            yield _text(path) or ""

    return documents_of(texts)


def _names(root: Path) -> list[str]:
    """Names relative to the root, sorted; the order of a folder's entries is the disk's."""
    names = []
    for folder, inside, files in os.walk(root):
        inside[:] = filter(_wanted, inside)
        here = Path(folder).relative_to(root)
        names += [(here / f).as_posix() for f in files if f.endswith(".py") and _wanted(f)]
    return sorted(names)


def _wanted(name: str) -> bool:
    return name not in _LEFT_OUT and not name.startswith(_GENERATED)


def _split_of(name: str) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "train" if place < _TRAIN else "valid" if place < _TRAIN + _VALID else "test"


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror or error}") from error
