"""Writing files so that no kill and no full disk leaves half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normtrain.errors import RunError, UserError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then rename: ``path`` is the old file or the whole new one.

    Raises:
        UserError: if ``path`` is a device, a pipe or a folder, which a rename would replace.
        RunError: if the disk is full or the folder can't be written; the temporary is removed.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; name a new file or one to replace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError that names places in its own source.
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise RunError(
            f"could not write {path}: {reason}; free some space or make the folder writable, "
            f"then try again (a run goes on with --resume)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all.

    Raises:
        RunError: as :func:`write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
