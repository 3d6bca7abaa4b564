"""Scores and translations from a run or a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from normtrain import __version__
from normtrain.data.corpora import load_corpus
from normtrain.data.text import clean, looks_tokenized
from normtrain.decoding.translate import translate_lines, translate_stream
from normtrain.errors import UserError
from normtrain.files import write_text
from normtrain.models import Seq2Seq
from normtrain.run.checkpoint import Checkpoint, read_checkpoint
from normtrain.run.machine import keep_freed_memory
from normtrain.scoring import score


def _decoding(
    checkpoint: Checkpoint, beam: int | None, length_penalty: float | None
) -> dict[str, Any]:
    decode, data = checkpoint.recipe.decode, checkpoint.recipe.data
    beam = decode.beam if beam is None else beam
    if beam < 1:
        raise UserError(f"--beam is 1 or more, not {beam}")
    return {
        "beam": beam,
        "length_penalty": decode.length_penalty if length_penalty is None else length_penalty,
        "max_length": decode.max_length,
        "max_source": data.max_length,
    }


def _ready(target: Path) -> tuple[Checkpoint, Seq2Seq]:
    keep_freed_memory()
    checkpoint = read_checkpoint(target)
    model = checkpoint.model()
    return checkpoint, model.to("cuda" if torch.cuda.is_available() else "cpu")


def evaluate(
    target: Path,
    *,
    split: str = "test",
    data: str | None = None,
    beam: int | None = None,
    length_penalty: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Translate a split and score it; write the scores and the hypotheses into the run folder.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        split: ``train``, ``valid``, ``test``, or any other file stem of a corpus folder.
        data: another corpus than the run's.
        beam: beam width; by default the recipe's.
        length_penalty: by default the recipe's.
        progress: called with sentences done and in all.

    Returns:
        Plain values: scores with signatures, how they were obtained, where they were written.

    Raises:
        ValueError: for a checkpoint or a corpus that can't be used.
        RunError: if the results can't be written.
    """
    target = Path(target)
    checkpoint, model = _ready(target)
    source = data or checkpoint.recipe.data.source
    revision = checkpoint.data["revision"] if data is None else None
    corpus = load_corpus(source, revision=revision, splits=[split])
    pairs = corpus.splits[split]
    settings = _decoding(checkpoint, beam, length_penalty)
    result = translate_lines(
        model, checkpoint.tokenizer, pairs.source, progress=progress, **settings
    )
    scores = score(
        result.lines,
        pairs.target,
        tokenized=looks_tokenized(pairs.target),
        tokenized_output=bool(checkpoint.data["tokenized"]),
    )
    report = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "norm": checkpoint.recipe.model.norm,
        "data": source,
        "split": split,
        **scores.to_dict(),
        **{k: v for k, v in settings.items() if k != "max_source"},
        "sources_truncated": result.truncated,
        "corpus": corpus.provenance,
        "versions": _versions(),
    }
    folder = _results_folder(target, checkpoint.path)
    stem = _stem(target, checkpoint, data, split, settings)
    report["hypotheses"] = str(folder / f"hypotheses-{stem}.txt")
    text = "".join(line + "\n" for line in result.lines)
    write_text(folder / f"hypotheses-{stem}.txt", text)
    write_text(
        folder / f"evaluation-{stem}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    )
    return report


def _stem(
    target: Path, checkpoint: Checkpoint, data: str | None, split: str, settings: dict[str, Any]
) -> str:
    """The split's name, and whatever differs from the run's best checkpoint and its recipe."""
    decode = checkpoint.recipe.decode
    parts = [] if data is None else [_short(data)]
    parts.append(split)
    if not target.is_dir():
        parts.append(checkpoint.path.stem)
    if settings["beam"] != decode.beam:
        parts.append(f"beam{settings['beam']}")
    if settings["length_penalty"] != decode.length_penalty:
        parts.append(f"penalty{settings['length_penalty']:g}")
    return re.sub(r"[^\w.=-]+", "-", "-".join(parts))


def _short(source: str) -> str:
    """A corpus' name, the last part of its name on the Hub, or its folder's name."""
    path = Path(source)
    return path.resolve().name if path.is_dir() else path.name


def _versions() -> dict[str, str]:
    # A plain checkout has no metadata of normtrain's own, so its version comes from the code.
    others = {name: version(name) for name in ("torch", "sacrebleu")}
    return {"normtrain": __version__, **others}


def _results_folder(target: Path, checkpoint: Path) -> Path:
    """The run's folder; beside the file for a checkpoint outside a run."""
    if target.is_dir():
        return target
    parent = checkpoint.parent
    return parent.parent if (parent.parent / "recipe.yaml").is_file() else parent


def translate(
    target: Path,
    lines: Iterable[str],
    *,
    beam: int | None = None,
    length_penalty: float | None = None,
    on_truncated: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Translate line by line; as many lines come out as go in, in order.

    Args:
        target: a run folder or a checkpoint file.
        lines: source lines; empty ones stay empty.
        beam: beam width; by default the recipe's.
        length_penalty: by default the recipe's.
        on_truncated: called with the number, from 1, of each line that is longer than the
            recipe's ``data.max_length`` and was cut.

    Raises:
        ValueError: for a checkpoint that can't be used; before any line is read.
    """
    checkpoint, model = _ready(Path(target))
    settings = _decoding(checkpoint, beam, length_penalty)
    return translate_stream(
        model, checkpoint.tokenizer, map(clean, lines), on_truncated=on_truncated, **settings
    )
