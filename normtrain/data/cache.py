"""The cache on disk: entries named by a fingerprint, complete or absent, rebuilt when damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from normtrain.errors import RunError

CACHE_VARIABLE = "NORMTRAIN_CACHE"
_SEAL = "entry.json"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds cached tokenizers and encodings.

    Args:
        cache_dir: the folder to use; None takes the environment variable
            ``NORMTRAIN_CACHE``, and without it a folder beside the caches of `datasets`.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from datasets import config

    return Path(config.HF_DATASETS_CACHE).parent / "normtrain"


def fingerprint(*parts: str) -> str:
    """Return the SHA-256 of the parts as hex; ``("ab", "c")`` and ``("a", "bc")`` differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def fingerprint_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines, none of which may contain a newline."""
    return fingerprint("\n".join(lines))


def cached_entry(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Find a complete cache entry, or build it, once for all processes that ask for it.

    Args:
        root: the cache folder, created if absent.
        name: the entry's folder name, with the fingerprint of everything it depends on.
        build: writes the entry's files into the empty folder it is given.

    Returns:
        The entry's folder.

    Raises:
        RunError: the cache cannot be written.
    """
    entry = root / name
    if _is_intact(entry):
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _exclusive(root / f".{name}.lock"):
            if not _is_intact(entry):  # another process may have built it meanwhile
                _build(entry, build)
    except OSError as error:
        raise RunError(
            f"cannot write the data cache {root} ({error.strerror or error}); free some space "
            f"there, or set {CACHE_VARIABLE} to a writable folder"
        ) from error
    if not _is_intact(entry):
        raise RunError(f"the cache entry {entry} is damaged right after writing; check the disk")
    return entry


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock, so that one process builds an entry and the others use what it made.

    File systems without locks get a lock file that says who holds it.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path.unlink(missing_ok=True)
        lock = filelock.SoftFileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        if isinstance(lock, filelock.FileLock):  # the other kind removes its own file
            path.unlink(missing_ok=True)
        lock.release()


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    work = entry.with_name(f".{entry.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    work.mkdir()
    try:
        build(work)
        (work / _SEAL).write_text(json.dumps(_seal_of(work)), encoding="utf-8")
        _publish(work, entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, entry: Path) -> None:
    """Move a finished folder into place; another process may have been first."""
    for _ in range(3):
        try:
            work.rename(entry)
            return
        except OSError:
            if not entry.is_dir():
                raise
            if _is_intact(entry):
                return
            # A damaged entry is moved away first, so that no process reads half of it.
            aside = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.damaged")
            with contextlib.suppress(FileNotFoundError):
                entry.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"could not replace {entry}")


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _seal_of(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.iterdir() if path.name != _SEAL)
    return {path.name: [path.stat().st_size, _checksum(path)] for path in files}


def _is_intact(entry: Path) -> bool:
    """Whether an entry is there, complete, and has the checksums of its seal."""
    try:
        return json.loads((entry / _SEAL).read_text(encoding="utf-8")) == _seal_of(entry)
    except (OSError, ValueError):
        return False
