"""A run's folder: its files, its lock, and finding the one to resume."""

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
    """The files of one run.

    Attributes:
        path: the folder.
        recipe_file: the resolved recipe.
        metrics_file: one row a report.
        tokenizer_file: the tokenizer, as the ``tokenizers`` library reads it.
        start_file: origin of pretrained weights, if the run started from some.
        launch_file: how the run was launched, as checkpoints say too.
        checkpoints: ``last.ckpt``, ``best.ckpt`` and numbered ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.start_file = self.path / "init.json"
        self.launch_file = self.path / "machine.json"
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
        """Record that the run is done, after ``step`` optimizer steps."""
        self._status_file.write_text(json.dumps({"finished": True, "step": step}) + "\n")

    def finished(self) -> int | None:
        """Return the step after which the run was done, or None while it is not."""
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
            UserError: the folder holds no run.
        """
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path} holds no run: there is no recipe.yaml in it")
        return recipes.load(str(self.recipe_file))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UserError: another process holds it.
            RunError: the folder cannot be locked.
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
            raise RunError(f"cannot lock {path}: {error.strerror or error}") from error
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
        UserError: ``out`` already holds something.
        RunError: it cannot be written.
    """
    if out is None and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("several processes of another launcher need --out")
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
            f"{out} already holds a run; resume it with --resume {out}, or choose another --out"
        )
    if out.is_file() or (out.is_dir() and any(p.name != ".lock" for p in out.iterdir())):
        raise UserError(f"--out must be a new or empty folder, got {out}")
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
            f"cannot write the run folder {out}: {error.strerror}; free some space or choose "
            f"another --out"
        ) from error
    return folder


def await_folder(out: Path | None, seconds: float = 300) -> RunFolder:
    """Return the folder that rank 0 makes, on the other ranks.

    Args:
        out: where it will be; processes that Lightning starts read the environment.
        seconds: how long to wait for it.

    Raises:
        UserError: nothing says where it will be.
        RunError: it does not appear in time.
    """
    told = os.environ.get(FOLDER_VARIABLE)
    if told is None and out is None:
        raise UserError("several processes of another launcher need --out")
    folder = RunFolder(Path(told) if told else Path(str(out)))
    deadline = time.monotonic() + seconds
    while not folder.recipe_file.exists():
        if time.monotonic() > deadline:
            raise RunError(f"rank 0 made no run folder at {folder.path}")
        time.sleep(0.05)
    return folder


def _claim(file: Path, text: str) -> None:
    """Write a file that must not exist yet, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.link(temporary, file)  # fails where a rename would replace another process's file
    finally:
        temporary.unlink(missing_ok=True)


def newest_run(recipe: Recipe | None, home: Path = HOME) -> RunFolder | None:
    """Return the newest run folder below ``home`` that can be resumed.

    Args:
        recipe: only runs of exactly this recipe; any run if None.
        home: the folder that holds run folders.
    """
    found = []
    for last in home.glob("*/checkpoints/last.ckpt"):
        folder = RunFolder(last.parent.parent)
        try:
            found_recipe = folder.recipe()
        except ValueError:
            continue
        if recipe is None or found_recipe == recipe:
            found.append((last.stat().st_mtime, folder))
    return max(found, key=lambda pair: pair[0])[1] if found else None
