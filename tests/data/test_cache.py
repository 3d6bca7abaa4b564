"""The cache: built once, by whichever of several processes comes first."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

from normtrain.data.cache import cached_entry

PROCESS = """
import sys, time
from pathlib import Path
from normtrain.data.cache import cached_entry

def build(folder):
    with open(sys.argv[2], "a") as file:
        file.write("built\\n")
    time.sleep(0.5)
    (folder / "part").write_text("whole")

entry, _ = cached_entry(Path(sys.argv[1]), "entry", build)
assert (entry / "part").read_text() == "whole"
"""


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    words = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(witness)]
    started = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert witness.read_text() == "built\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["entry"]


def test_where_the_system_has_no_locks_a_file_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: Any, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def build(folder: Path) -> None:
        with pytest.raises(filelock.Timeout):
            filelock.SoftFileLock(folder.parent / ".entry.lock").acquire(timeout=0)
        (folder / "part").write_text("whole")

    for _ in range(2):
        entry, _ = cached_entry(tmp_path, "entry", build)
    assert (entry / "part").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [entry]


def test_a_build_that_fails_leaves_the_lock_free(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            cached_entry(tmp_path, "entry", fails)
    assert not list(tmp_path.iterdir())
