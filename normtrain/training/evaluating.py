"""Scores and translations from a run or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from normtrain.config.recipe import TranslationRecipe
from normtrain.data.text import clean, looks_tokenized
from normtrain.errors import UserError
from normtrain.models import CausalLM, Seq2Seq
from normtrain.models.embedding import TokenModel
from normtrain.tasks.language.evaluate import measure
from normtrain.tasks.ranks import all_lines
from normtrain.tasks.translation.corpora import load_corpus
from normtrain.tasks.translation.decoding.translate import translate_lines, translate_stream
from normtrain.tasks.translation.metrics import score
from normtrain.training.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from normtrain.training.machine import keep_freed_memory
from normtrain.training.results import Results
from normtrain.training.together import Place, together


def ready(
    target: Path, task: str | None = None, device: torch.device | None = None
) -> tuple[Checkpoint, TokenModel]:
    """A checkpoint and its model, in eval mode, on the device that evaluates.

    Args:
        target: a run folder or a checkpoint file.
        task: what it has to be trained for; None takes any.
        device: by default a GPU, if there is one.

    Raises:
        ValueError: for a checkpoint that can't be used, or one of another task.
    """
    keep_freed_memory()
    checkpoint = read_checkpoint(target)
    found = checkpoint.recipe.task
    if task is not None and found != task:
        use = {"translation": "translate", "language": "generate"}[found]
        raise UserError(
            f"{checkpoint.path} is trained for the task {found}: 'normtrain {use}' uses it"
        )
    model = checkpoint.model()
    return checkpoint, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _decoding(
    checkpoint: Checkpoint, beam: int | None, length_penalty: float | None
) -> dict[str, Any]:
    recipe = cast(TranslationRecipe, checkpoint.recipe)
    decode, data = recipe.decode, recipe.data
    beam = decode.beam if beam is None else beam
    if beam < 1:
        raise UserError(f"--beam is 1 or more, not {beam}")
    return {
        "beam": beam,
        "length_penalty": decode.length_penalty if length_penalty is None else length_penalty,
        "max_length": decode.max_length,
        "max_source": data.max_length,
    }


def evaluate(
    target: Path,
    *,
    split: str = "test",
    data: str | None = None,
    beam: int | None = None,
    length_penalty: float | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a split: translate it, or measure its perplexity; write the result into the run folder.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        split: ``train``, ``valid``, ``test``, or any other file stem of a corpus folder.
        data: another corpus than the run's.
        beam: of a translation: beam width; by default the recipe's.
        length_penalty: of a translation; by default the recipe's.
        stride: of a language model: see `normtrain.tasks.language.evaluate.measure`.
        batch_size: of a language model: windows at once.
        devices: devices of each machine; each takes a share, and together they find what one
            finds. By default one.
        nodes: machines; by default one.
        progress: called with what is done and in all: sentences, or batches of windows.

    Returns:
        Plain values: scores, how they were obtained, where they were written.

    Raises:
        ValueError: for a checkpoint or a corpus that can't be used, or an option of the other task.
        RunError: if the results can't be written.
    """
    target = Path(target)
    find_checkpoint(target)  # a mistake in its name is said before processes are started
    with together(devices, nodes) as place:
        checkpoint, model = ready(target, device=place.device)
        _check_options(
            checkpoint,
            translation={"--beam": beam, "--length-penalty": length_penalty},
            language={"--stride": stride, "--batch-size": batch_size},
        )
        if isinstance(model, CausalLM):
            return measure(
                target, checkpoint, model, split=split, data=data, stride=stride,
                batch_size=batch_size, place=place, progress=progress,
            )  # fmt: skip
        settings = _decoding(checkpoint, beam, length_penalty)
        return _translated(
            target, checkpoint, cast(Seq2Seq, model), split, data, settings, place, progress
        )


def _check_options(checkpoint: Checkpoint, **options: dict[str, float | None]) -> None:
    """Refuse options, by task, that are not of the checkpoint's task."""
    for task, values in options.items():
        given = [name for name, value in values.items() if value is not None]
        if given and task != checkpoint.recipe.task:
            raise UserError(
                f"{given[0]} is for the task {task}; {checkpoint.path} is of the task "
                f"{checkpoint.recipe.task}"
            )


def _translated(
    target: Path,
    checkpoint: Checkpoint,
    model: Seq2Seq,
    split: str,
    data: str | None,
    settings: dict[str, Any],
    place: Place,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Translate a split and score it."""
    source = data or checkpoint.recipe.data.source
    revision = checkpoint.data["revision"] if data is None else None
    corpus = load_corpus(source, revision=revision, splits=[split])
    pairs = corpus.splits[split]
    result = translate_lines(
        model, checkpoint.tokenizer, pairs.source, rank=place.rank, world=place.world,
        progress=progress, **settings,
    )  # fmt: skip
    lines = all_lines(result)
    scores = score(
        lines,
        pairs.target,
        tokenized=looks_tokenized(pairs.target),
        tokenized_output=bool(checkpoint.data.get("tokenized")),
    )
    found = {
        **scores.to_dict(),
        **{k: v for k, v in settings.items() if k != "max_source"},
        "sources_truncated": result.truncated,
    }
    decode, parts = cast(TranslationRecipe, checkpoint.recipe).decode, []
    if settings["beam"] != decode.beam:
        parts.append(f"beam{settings['beam']}")
    if settings["length_penalty"] != decode.length_penalty:
        parts.append(f"penalty{settings['length_penalty']:g}")
    return Results(target, checkpoint, write=place.first).write(
        found, data=data, split=split, parts=parts, corpus=corpus.provenance, lines=lines
    )


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
    checkpoint, model = ready(Path(target), "translation")
    settings = _decoding(checkpoint, beam, length_penalty)
    return translate_stream(
        cast(Seq2Seq, model),
        checkpoint.tokenizer,
        map(clean, lines),
        on_truncated=on_truncated,
        **settings,
    )
