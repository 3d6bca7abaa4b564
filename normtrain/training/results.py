"""Write the results of an evaluation into the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from normtrain import __version__
from normtrain.files import write_text
from normtrain.tasks.base import Evaluation, task_of
from normtrain.training.checkpoint import Checkpoint


class Results:
    """The results of one checkpoint.

    Args:
        target: the run folder or checkpoint file that the user named.
        checkpoint: the checkpoint read from it.
        write: whether this process writes; one of several ranks does.
    """

    def __init__(self, target: Path, checkpoint: Checkpoint, *, write: bool = True) -> None:
        self.target, self.checkpoint, self.writes = target, checkpoint, write
        self.folder = _results_folder(target, checkpoint.path)

    def write(self, found: Evaluation, *, data: str | None, split: str) -> dict[str, Any]:
        """Write ``evaluation-….json`` and, where there are outputs, ``hypotheses-….txt``.

        Args:
            found: the scores and how they were obtained.
            data: a corpus other than the run's, as the user named it.
            split: the split of the corpus.

        Returns:
            The content of the JSON file, in plain types.

        Raises:
            RunError: a file cannot be written.
        """
        checkpoint = self.checkpoint
        stem = self._stem(data, split, found.variant)
        report = {
            "checkpoint": str(checkpoint.path),
            "step": checkpoint.step,
            "norm": checkpoint.recipe.model.norm,
            "data": data or checkpoint.recipe.data.source,
            "split": split,
            **found.scores,
            "corpus": found.corpus,
            "versions": _versions(task_of(checkpoint.recipe).libraries),
        }
        if found.lines is not None:
            hypotheses = self.folder / f"hypotheses-{stem}.txt"
            report["hypotheses"] = str(hypotheses)
            if self.writes:
                write_text(hypotheses, "".join(line + "\n" for line in found.lines))
        if self.writes:
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            write_text(self.folder / f"evaluation-{stem}.json", text)
        return report

    def _stem(self, data: str | None, split: str, parts: Sequence[str]) -> str:
        """Return the split's name and what differs from the run's best checkpoint and recipe."""
        words = [] if data is None else [_short(data)]
        words.append(split)
        if not self.target.is_dir():
            words.append(self.checkpoint.path.stem)
        return re.sub(r"[^\w.=-]+", "-", "-".join([*words, *parts]))


def _short(source: str) -> str:
    """Return a corpus' name, the last part of its name on the Hub, or its folder's name."""
    path = Path(source)
    return path.resolve().name if path.is_dir() else path.name


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    # A checkout that is not installed has no metadata, so the version comes from the code.
    return {"normtrain": __version__, **{name: version(name) for name in libraries}}


def _results_folder(target: Path, checkpoint: Path) -> Path:
    """Return the run folder; for a checkpoint outside a run, the checkpoint's folder."""
    if target.is_dir():
        return target
    parent = checkpoint.parent
    return parent.parent if (parent.parent / "recipe.yaml").is_file() else parent
