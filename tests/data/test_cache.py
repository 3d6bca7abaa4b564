"""The cache: its folder, and entries built once, by whichever process comes first."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

from normtrain.data.cache import CACHE_VARIABLE, cache_root, cached_entry, fingerprint

PROCESS = """
import sys, time
from pathlib import Path
from normtrain.data.cache import cached_entry

def build(folder):
    with open(sys.argv[2], "a") as file:
        file.write("built\\n")
    time.sleep(0.3)
    (folder / "part").write_text("whole")

assert (cached_entry(Path(sys.argv[1]), "entry", build) / "part").read_text() == "whole"
"""


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    words = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(witness)]
    started = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert witness.read_text() == "built\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["entry"]


def test_without_locks_of_the_system_a_file_is_the_lock(
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
        assert (cached_entry(tmp_path, "entry", build) / "part").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fails(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            cached_entry(tmp_path, "entry", fails)
    assert not list(tmp_path.iterdir())


def test_the_variable_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_root() == tmp_path
    assert cache_root(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_root().name == "normtrain"


def test_fingerprints_know_where_parts_end() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
