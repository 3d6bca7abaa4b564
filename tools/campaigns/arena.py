"""Runs one bad input through the real command line and says which promises it broke."""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tools.campaigns.stock import Stock

SECONDS = 90
"""Longer than any accepted input here needs."""
MEMORY = 6 << 30
"""Bytes that an input may ask for, above what the process has mapped when it begins."""
LONGEST = 900
"""Characters of an error's line: beyond, nobody reads it."""
CANARY = "canary"
"""What code smuggled into a checkpoint would make, in the folder the command runs in."""

# What says where a run was held, and by whom; it is no output.
_LOCK = ".lock"
# A run that steps over a damaged checkpoint keeps that under another name, and says so.
_LEFT_OVER = re.compile(r"(\.tmp|\.part)$")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Lay = Callable[[Stock, Path], None]


class TookTooLong(BaseException):
    """Not an Exception, so that nothing in between takes it for a failure of its own."""


@dataclass(frozen=True)
class Case:
    """One command with one bad input.

    Attributes:
        words: the command line; paths are relative to the folder it runs in.
        about: what is bad about it, in a few words.
        lay: puts files into that folder first.
        stdin: what the command reads.
        streams: its output comes piece by piece, so that some may precede a refusal.
    """

    words: tuple[str, ...]
    about: str
    lay: Lay = lambda stock, place: None
    stdin: bytes | None = None
    streams: bool = False


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        code: the exit code; -1 where something escaped.
        said: the last line on stderr.
        broken: the promises it broke, a sentence each.
    """

    code: int
    said: str
    broken: list[str] = field(default_factory=list)


class Arena:
    """Folders to run cases in, one after the other.

    Args:
        root: where they are made.
        stock: good material to copy from.
        cache: the cache folder of the tool.
    """

    def __init__(self, root: Path, stock: Stock, cache: Path) -> None:
        self.root, self.stock, self.cache = root, stock, cache
        self.done = 0

    def run(self, case: Case) -> Outcome:
        """Run a case in a new folder, which goes afterwards if nothing was broken."""
        self.done += 1
        place = self.root / f"{self.done:05d}"
        place.mkdir(parents=True)
        case.lay(self.stock, place)
        before = snapshot(place)
        with contextlib.chdir(place):
            result, broken = _invoked(case)
            outcome = Outcome(-1, "", broken) if result is None else _checked(case, result)
            after = snapshot(place)
            outcome.broken += _left(outcome.code, before, after, self.cache)
        if not outcome.broken:
            _remove(place)
        return outcome


def snapshot(place: Path) -> dict[str, str]:
    """Every name below a folder with what it holds; links are not followed."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(os.fsencode(place)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(place)))
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and os.path.basename(key) != _LOCK:
                with open(path, "rb") as file:
                    found[key] = hashlib.file_digest(file, "sha256").hexdigest()
            elif os.path.basename(key) != _LOCK:
                found[key] = stat.filemode(mode)[0]
    return found


def _remove(place: Path) -> None:
    shutil.rmtree(os.fsencode(place), ignore_errors=True)


def _invoked(case: Case) -> tuple[Result | None, list[str]]:
    from normtrain.cli import cli

    try:
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CliRunner().invoke(
                cli, list(case.words), input=case.stdin, prog_name="normtrain"
            ), []
    except TookTooLong:
        return None, [f"took longer than {SECONDS} s"]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return None, [f"{type(error).__name__} escaped: {error}"]


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """No input may take hours or all the memory; both would be a failure to report."""

    def ring(*_: Any) -> None:
        raise TookTooLong

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    watch, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # a test has a watch of its own
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, held)
        signal.setitimer(signal.ITIMER_REAL, watch)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _checked(case: Case, result: Result) -> Outcome:
    lines = result.stderr.splitlines()
    outcome = Outcome(result.exit_code, lines[-1] if lines else "")
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        outcome.broken.append(f"{type(error).__name__} escaped: {error}")
    if result.exit_code not in (0, 1, 2):
        outcome.broken.append(f"exit code {result.exit_code}")
    if "Traceback" in result.output:
        outcome.broken.append("a traceback was shown")
    if result.exit_code == 2:
        outcome.broken += _refused_badly(case, result)
    if result.exit_code == 1 and not outcome.said.startswith("error: "):
        outcome.broken.append(f"the last line is no error: {outcome.said[:300]}")
    if result.exit_code and len(outcome.said) > LONGEST:
        outcome.broken.append(f"a message of {len(outcome.said)} characters")
    if result.exit_code and _CONTROL.search(result.stderr):
        outcome.broken.append("a message with control characters")
    return outcome


def _refused_badly(case: Case, result: Result) -> Iterator[str]:
    lines = result.stderr.splitlines()
    if len(lines) > 2 or not any(line.startswith("error: ") for line in lines):
        yield f"a refusal of {len(lines)} lines: {lines[:4]}"
    if result.stdout and not case.streams:
        yield "a refusal with something on stdout"


def _left(code: int, before: dict[str, str], after: dict[str, str], cache: Path) -> Iterator[str]:
    """What a command left that it should not have, in the folder it ran in and in its cache."""
    if CANARY in after:
        yield "CODE WAS EXECUTED"
    changed = sorted(key for key in after if before.get(key) != after[key])
    gone = sorted(before.keys() - after.keys())
    if code == 2 and (changed or gone):
        yield f"a refusal that left {changed[:5]} and took {gone[:5]}"
    if parts := [key for key in changed if _LEFT_OVER.search(key)]:
        yield f"left-overs: {parts}"
    if parts := [path.name for path in cache.glob(".*")]:
        for path in cache.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        yield f"left-overs in the cache: {parts}"
    for key in changed:
        yield from _half_written(Path(key), code)


def _half_written(path: Path, code: int) -> Iterator[str]:
    """Whether something newly written cannot be read again."""
    from normtrain.config.recipe import load
    from normtrain.training import read_checkpoint

    try:
        if path.suffix == ".ckpt" and path.is_file():
            read_checkpoint(path)
        elif path.name == "recipe.yaml":
            load(path)
        elif path.is_dir() and path.name == "checkpoints":
            load(path.parent / "recipe.yaml")
    except Exception as error:
        yield f"exit {code} left {path}, which cannot be read again: {error}"
