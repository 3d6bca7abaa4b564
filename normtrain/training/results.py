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


def write_results(
    target: Path,
    checkpoint: Checkpoint,
    found: Evaluation,
    *,
    data: str | None,
    split: str,
    write: bool = True,
) -> dict[str, Any]:
    """Write ``evaluation-….json`` and, where there are outputs, ``hypotheses-….txt``.

    Args:
        target: the run folder or checkpoint file that the user named.
        checkpoint: the checkpoint read from it.
        found: the scores and how they were obtained.
        data: a corpus other than the run's, as the user named it.
        split: the split of the corpus.
        write: whether this process writes; one of several ranks does.

    Returns:
        The content of the JSON file, in plain types.

    Raises:
        RunError: a file cannot be written.
    """
    folder = _results_folder(target, checkpoint.path)
    # what differs from the run's best checkpoint and recipe
    words = [*([] if data is None else [_short(data)]), split]
    words += [*([] if target.is_dir() else [checkpoint.path.stem]), *found.variant]
    stem = re.sub(r"[^\w.=-]+", "-", "-".join(words))
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
        hypotheses = folder / f"hypotheses-{stem}.txt"
        report["hypotheses"] = str(hypotheses)
        if write:
            write_text(hypotheses, "".join(line + "\n" for line in found.lines))
    if write:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / f"evaluation-{stem}.json", text)
    return report


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
