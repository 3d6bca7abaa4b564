"""The cache on disk: entries named by a fingerprint, complete or absent, rebuilt when damaged."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from normtrain.errors import RunError

CACHE_VARIABLE = "NORMTRAIN_CACHE"
_SEAL = "entry.json"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds cached tokenizers and encodings.

    Args:
        cache_dir: what the caller asked for; None takes the environment variable
            ``NORMTRAIN_CACHE``, and without it a folder beside the caches of `datasets`.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from datasets import config

    return Path(config.HF_DATASETS_CACHE).parent / "normtrain"


def fingerprint(*parts: str) -> str:
    """SHA-256 of the parts in hexadecimal; ``("ab", "c")`` and ``("a", "bc")`` differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def fingerprint_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines, none of which holds a newline."""
    return fingerprint("\n".join(lines))


def cached_entry(
    root: Path, name: str, build: Callable[[Path], None]
) -> tuple[Path, dict[str, Any]]:
    """Find a complete cache entry, or build it; processes that want the same one build it once.

    Args:
        root: the cache folder, made when missing.
        name: the entry's folder name, with the fingerprint of everything it depends on.
        build: writes the entry's files into the empty folder it is given.

    Returns:
        The entry's folder, and what its seal says (file name to size and checksum).

    Raises:
        RunError: the cache can't be written.
    """
    entry = root / name
    seal = _read_seal(entry)
    if seal is not None:
        return entry, seal
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{name}.lock"):
            seal = _read_seal(entry)  # another process may have built it meanwhile
            if seal is not None:
                return entry, seal
            _build(entry, build)
    except OSError as error:
        raise RunError(
            f"can't write the data cache {root} ({error.strerror or error}); free some space "
            f"there, or set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    seal = _read_seal(entry)
    if seal is None:
        raise RunError(
            f"the cache entry {entry} is damaged as soon as it is written; check the disk"
        )
    return entry, seal


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock, so that of several processes one builds and the others take what it made.

    The system's locks hold on network file systems too, where these have any; elsewhere the lock
    is a file that says who holds it.
    """
    try:
        held = _locked(lock)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        lock.unlink(missing_ok=True)
        with filelock.SoftFileLock(lock.with_suffix(".held")):
            yield
        return
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.close()


def _locked(lock: Path) -> IO[str]:
    """Lock a file that is still there by then: who held it before has removed it."""
    while True:
        held = open(lock, "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held.fileno()), os.stat(lock)):
                    return held
        except BaseException:
            held.close()
            raise
        held.close()


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
            if _read_seal(entry) is not None:
                return
            # A damaged entry: moved aside first, so that it never is half there.
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


def _read_seal(entry: Path) -> dict[str, Any] | None:
    """The seal, or None where the entry is absent, incomplete or differs from its seal."""
    try:
        seal = json.loads((entry / _SEAL).read_text(encoding="utf-8"))
        return seal if seal == _seal_of(entry) else None
    except (OSError, ValueError):
        return None
