"""Export a model: safetensors weights, configuration, tokenizer and model card in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from normtrain import __version__
from normtrain.errors import UserError, unknown_name
from normtrain.files import as_utf8, write_folder
from normtrain.hf.formats import FORMATS
from normtrain.hf.model_folder import write_folder as write_model_folder
from normtrain.hf.weights import save_weights
from normtrain.models.config import CausalLMConfig
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import task_of
from normtrain.training.cards import card
from normtrain.training.checkpoint import Checkpoint, read_checkpoint

NATIVE = "native"
EXPORT_FORMATS = (NATIVE, *FORMATS)


def export(target: Path, folder: Path, *, format: str = NATIVE) -> str:
    """Write a model in an open format; the folder is written whole or not at all.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        folder: a new or empty folder.
        format: ``"native"``, which takes any model; or one of `normtrain.hf.FORMATS`, which
            `transformers` loads, for the language models that have these designs.

    Returns:
        Lines that say what was written, and what the format could not take.

    Raises:
        UserError: the checkpoint cannot be used, the format has no such model, or the folder is
            not empty.
        RunError: writing the folder fails.
    """
    if format not in EXPORT_FORMATS:
        raise unknown_name("format", format, EXPORT_FORMATS)
    checkpoint, folder = read_checkpoint(Path(target)), Path(folder)
    task = task_of(checkpoint.recipe)
    if format != NATIVE and format not in task.formats:
        raise UserError(
            f"--format {format} is unsupported for the task {task.name} of {checkpoint.path}; "
            f"use {' or '.join((NATIVE, *task.formats))}"
        )
    model = checkpoint.model()
    count = sum(p.numel() for p in model.parameters())
    texts = {"README.md": card(checkpoint, Path(target), count, format)}
    notes: Sequence[str] = ()
    if format == NATIVE:
        _write(folder, checkpoint, model, texts)
    else:
        section = cast(CausalLMConfig, checkpoint.recipe.model)
        notes = write_model_folder(
            folder, format, section, model.state_dict(), checkpoint.tokenizer, texts
        )
    head = f"{folder}: {count:,} parameters, config, tokenizer and model card"
    return "\n".join([head, *notes])


def _write(folder: Path, checkpoint: Checkpoint, model: TokenModel, texts: dict[str, str]) -> None:
    """Write the native format, which takes every model."""
    section = checkpoint.section
    config = {
        "normtrain_version": __version__,
        "vocab_size": checkpoint.tokenizer.vocab_size,
        "step": checkpoint.step,
        "recipe": checkpoint.recipe.plain(),
        "norms": section.norms,
        "data": checkpoint.data,
        **({} if section.init is None else {"init": section.init}),
    }
    files = {
        "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "tokenizer.json": checkpoint.tokenizer.to_json(),
        **texts,
    }
    weights = _untied(model)

    def write(temporary: Path) -> None:
        save_weights(weights, temporary)
        for name, text in files.items():
            (temporary / name).write_bytes(as_utf8(text))

    write_folder(folder, write)


def _untied(model: TokenModel) -> dict[str, Tensor]:
    """Return the state dict, with a tied matrix under its first name only."""
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    again -= {name for name, _ in model.named_parameters()}
    state: dict[str, Any] = model.state_dict()
    return {name: state[name].contiguous() for name in state if name not in again}
