"""The sources of Python's standard library: a corpus that every installation has."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from normtrain.data.documents import Documents, documents_of
from normtrain.data.reading import SPLITS, unreadable
from normtrain.errors import UserError
from normtrain.tasks.language.text_files import fixed_splits

# Left out: installed packages, tests, files generated when Python is built, and IDLE and lib2to3,
# which some distributions do not ship and which have files that are invalid on purpose.
_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
)
_GENERATED = ("_sysconfigdata", "config-", "lib-dynload")
# Percent of the files; the rest is test.
_TRAIN, _VALID = 90, 5


def load_python(
    splits: Sequence[str] | None, root: Path | None = None
) -> tuple[dict[str, Documents], int]:
    """Return the running interpreter's own ``.py`` files, about 10 MB; a file is a document.

    A hash of its relative name decides the split of a file, so that most files keep their split
    from one version of Python to the next. Files that are not UTF-8 are skipped.

    Args:
        splits: which of train, valid and test; None takes all.
        root: the library's folder; None takes the running interpreter's.

    Returns:
        The splits, and how many files were skipped.

    Raises:
        UserError: a split is not found, or the library's sources are not installed.
        RunError: a file cannot be read.
    """
    wanted = fixed_splits(splits)
    root = root or Path(sysconfig.get_path("stdlib"))
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
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
    """Names relative to the root, sorted, since the order of `os.walk` depends on the disk."""
    names = []
    for folder, inside, files in os.walk(root):
        inside[:] = filter(_wanted, inside)
        here = Path(folder).relative_to(root)
        names += [(here / f).as_posix() for f in files if f.endswith(".py") and _wanted(f)]
    return sorted(names)


def _wanted(name: str) -> bool:
    return name not in _LEFT_OUT and not name.startswith(_GENERATED)


def _split_of(name: str) -> str:
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "train" if percent < _TRAIN else "valid" if percent < _TRAIN + _VALID else "test"


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
