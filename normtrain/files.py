"""Write files completely or not at all; read data without executing code."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normtrain.errors import DamagedFile, RunError, UserError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then rename it, so that ``path`` is never incomplete.

    Raises:
        UserError: ``path`` is a device, a pipe or a folder, which a rename would replace.
        RunError: the disk is full or the folder cannot be written; the temporary file is removed.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; name a new file or one to replace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError about its own source.
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise RunError(
            f"could not write {path}: {reason}; free some space or make the folder writable, "
            f"then try again (--resume continues a run)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def as_utf8(text: str) -> bytes:
    """Encode as UTF-8; lone surrogates, as in folder names that are not UTF-8, are escaped.

    The escape is JSON's, so a JSON text reads back the same.
    """
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write text encoded by :func:`as_utf8`, completely or not at all.

    Raises:
        RunError: as :func:`write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(as_utf8(text)))


def read_plain(path: Path, *, mmap: bool = False) -> Any:
    """Read a ``torch.save`` file as plain data on the CPU; nothing in it is executed.

    The checksums that ``torch.save`` stores are compared, since ``torch.load`` does not notice
    flipped bytes; for 500 MB that takes 0.7 s, the reading itself 1 s.

    Args:
        path: the file.
        mmap: map tensors from the file instead of reading them; checksums are not compared then.

    Raises:
        DamagedFile: the file is truncated, changed, or not a ``torch.save`` file.
        UserError: the file is not found, or holds more than plain data.
        RunError: the file cannot be read.
    """
    import torch

    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} not found") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    try:
        if not mmap and zipfile.is_zipfile(path):
            _compare_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in str(error):
            kind = str(error).partition("GLOBAL ")[2].split()[0]
            detail = f"it holds objects ({kind}) that would have to be executed, which is not done"
            raise UserError(f"cannot read the checkpoint {path}: {detail}") from error
        detail = "it is truncated, damaged or not a checkpoint; use an earlier one of the run"
        raise DamagedFile(f"cannot read the checkpoint {path}: {detail}") from error


def _compare_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (member := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{member} has changed since it was written")


def write_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_folder)``, then rename: ``folder`` is complete or unchanged.

    Args:
        folder: a new or empty folder.
        write: fills a folder with files; subfolders are unsupported.

    Raises:
        UserError: ``folder`` is a file, or not empty.
        RunError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; export into a new folder")
    new = not folder.exists()
    # An empty folder is kept (it may be a mount), and the files are moved into it.
    parent = folder.parent if new else folder
    temporary = parent / f".{folder.name}.{os.getpid()}.tmp"
    moved: list[Path] = []
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for file in sorted(temporary.iterdir()):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if new:
            os.rename(temporary, folder)
            return
        for file in sorted(temporary.iterdir()):
            moved.append(folder / file.name)
            os.rename(file, moved[-1])
        temporary.rmdir()
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in moved:
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise RunError(f"could not write {folder}: {reason}; free some space") from error
