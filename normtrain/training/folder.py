"""A run's folder: its names, its lock, and finding the one to go on with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.errors import RunError, UserError

HOME = Path("runs")
# Processes that a launcher starts for further ranks find the run's folder here.
FOLDER_VARIABLE = "NORMTRAIN_RUN_FOLDER"


class RunFolder:
    """Where everything of one run lies.

    Attributes:
        path: the folder.
        recipe_file: the resolved recipe.
        metrics_file: one row a report.
        tokenizer_file: the tokenizer, as the ``tokenizers`` library reads it.
        start_file: where the weights came from that it began with, if they weren't random.
        machine_file: what it was started on; checkpoints say so too, once there is one.
        checkpoints: ``last.ckpt``, ``best.ckpt`` and numbered ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.start_file = self.path / "init.json"
        self.machine_file = self.path / "machine.json"
        self.checkpoints = self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint that validated best."""
        return self.checkpoints / "best.ckpt"

    def finish(self, step: int) -> None:
        """Note that the run is done, after ``step`` optimizer steps."""
        self._status_file.write_text(json.dumps({"finished": True, "step": step}) + "\n")

    def finished(self) -> int | None:
        """The step after which the run was done, or None while it isn't."""
        try:
            status = json.loads(self._status_file.read_text())
        except (OSError, ValueError):
            return None
        return status["step"] if status.get("finished") else None

    @property
    def _status_file(self) -> Path:
        return self.path / "status.json"

    def recipe(self) -> Recipe:
        """Read the resolved recipe.

        Raises:
            ValueError: if the folder holds no run.
        """
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path} holds no run: there is no recipe.yaml in it")
        return recipes.load(str(self.recipe_file))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            ValueError: if another process holds it.
            RunError: if the folder can't be locked.
        """
        path = self.path / ".lock"
        try:
            held = filelock.FileLock(path).acquire(blocking=False)
        except filelock.Timeout:
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
            raise UserError(
                f"{self.path} is in use by another run (process {holder}); wait for it or "
                f"choose another folder with --out"
            ) from None
        except OSError as error:
            raise RunError(f"can't lock {path}: {error.strerror or error}") from error
        with held:
            with contextlib.suppress(OSError):  # the disk may be full; the lock needs no content
                path.write_text(str(os.getpid()), encoding="utf-8")
            yield


def _slug(norm: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", norm).strip("-")


def new_folder(recipe: Recipe, out: Path | None) -> RunFolder:
    """Make the folder of a new run and write its recipe.

    Args:
        recipe: the resolved recipe.
        out: the folder; by default ``runs/<recipe>-<norm>-<time>``.

    Raises:
        ValueError: if ``out`` already holds something.
        RunError: if it can't be written.
    """
    if out is None and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("with several processes started from outside, name the folder by --out")
    if out is None:
        stem = f"{recipe.name}-{_slug(recipe.model.norm)}-{time.strftime('%Y%m%d-%H%M%S')}"
        out = HOME / stem
        for again in range(2, 1000):
            if not out.exists():
                break
            out = HOME / f"{stem}-{again}"
    folder = RunFolder(out)
    if folder.recipe_file.exists():
        raise UserError(
            f"{out} already holds a run; go on with it by --resume {out}, or choose another --out"
        )
    if out.is_file() or (out.is_dir() and any(p.name != ".lock" for p in out.iterdir())):
        raise UserError(f"{out} exists and is no run's folder; choose a new or empty --out")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _claim(folder.recipe_file, recipes.dump(recipe))
        folder.checkpoints.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"{out}: another run was started there just now; choose --out") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.path.rmdir()  # only if nothing is in it
        raise RunError(
            f"can't write the run folder {out}: {error.strerror}; free some space or choose "
            f"another --out"
        ) from error
    return folder


def await_folder(out: Path | None, seconds: float = 300) -> RunFolder:
    """The folder that the first process makes, for the others.

    Args:
        out: where it will be; processes that Lightning starts are told by the environment.
        seconds: how long to wait for it.

    Raises:
        ValueError: if nothing says where it will be.
        RunError: if it doesn't come.
    """
    told = os.environ.get(FOLDER_VARIABLE)
    if told is None and out is None:
        raise UserError("with several processes started from outside, name the folder by --out")
    folder = RunFolder(Path(told) if told else Path(str(out)))
    deadline = time.monotonic() + seconds
    while not folder.recipe_file.exists():
        if time.monotonic() > deadline:
            raise RunError(f"the first process made no run folder at {folder.path}")
        time.sleep(0.05)
    return folder


def _claim(file: Path, text: str) -> None:
    """Write a file that must not be there yet, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.link(temporary, file)  # fails where a rename would replace another process's file
    finally:
        temporary.unlink(missing_ok=True)


def newest_run(recipe: Recipe | None, home: Path = HOME) -> RunFolder | None:
    """The newest run folder below ``home`` that can be gone on with.

    Args:
        recipe: only runs of just this recipe; any run if None.
        home: the folder that holds run folders.
    """
    found = []
    for last in home.glob("*/checkpoints/last.ckpt"):
        folder = RunFolder(last.parent.parent)
        try:
            theirs = folder.recipe()
        except ValueError:
            continue
        if recipe is None or theirs == recipe:
            found.append((last.stat().st_mtime, folder))
    return max(found, key=lambda pair: pair[0])[1] if found else None
