"""Import a pretrained language model: as the start of a run, or as a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.errors import UserError
from normtrain.files import write_text
from normtrain.hf.model_folder import read_folder
from normtrain.hf.pretrained import Pretrained, load_into
from normtrain.tasks.base import task_of, whole_source
from normtrain.tasks.language.config import LanguageRecipe
from normtrain.training.checkpoint import (
    check_output,
    is_sharded,
    make_section,
    read_checkpoint,
    write_checkpoint,
)
from normtrain.training.folder import RunFolder

LONGEST_WINDOW = 1024
"""Most tokens in the window of an imported model, even if its positions allow more."""


def read_pretrained(target: Path) -> Pretrained:
    """Read a pretrained language model; no code that comes with it is executed.

    Args:
        target: a folder in Llama's, Qwen3's or GPT-2's format, an export of normtrain's own, a
            run folder (its best checkpoint, else its last) or a checkpoint file.

    Raises:
        UserError: there is no such model, or it cannot be used.
        RunError: a file cannot be read.
    """
    target = Path(target)
    if target.is_dir() and not is_sharded(target) and not (target / "checkpoints").is_dir():
        return read_folder(target)
    checkpoint = read_checkpoint(target)
    if checkpoint.recipe.task != "language":
        raise UserError(
            f"{checkpoint.path} is of the task {checkpoint.recipe.task}; only language models can "
            "be imported"
        )
    weights = checkpoint.weights
    halves = {w.dtype for w in weights.values() if w.is_floating_point()} - {torch.float32}
    return Pretrained(
        place=str(target),
        model_type="normtrain",
        model=checkpoint.recipe.plain()["model"],
        weights={n: w.float() if w.dtype in halves else w for n, w in weights.items()},
        tokenizer=checkpoint.tokenizer,
        sha256=_digest(checkpoint.path),
        notes=("weights are float32 from here on",) if halves else (),
    )


def _digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint; of a sharded one, of all its files in order of names."""
    digest = hashlib.sha256()
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(part.read_bytes())
    return digest.hexdigest()


def note_start(folder: RunFolder, pretrained: Pretrained) -> None:
    """Record in a run folder which pretrained model it starts from.

    A run without a checkpoint is resumed from it.

    Raises:
        RunError: the folder cannot be written.
    """
    place = str(Path(pretrained.place).resolve())
    plain = {"place": place, **pretrained.origin}
    write_text(folder.start_file, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def noted_start(folder: RunFolder) -> Pretrained | None:
    """Read again the pretrained model that a run starts from; None for random weights.

    Raises:
        UserError: it is missing, or has changed.
        RunError: it cannot be read.
    """
    if not folder.start_file.exists():
        return None
    noted = json.loads(folder.start_file.read_text(encoding="utf-8"))
    pretrained = read_pretrained(Path(noted["place"]))
    if pretrained.sha256 != noted["sha256"]:
        raise UserError(
            f"the weights in {noted['place']} are not those that {folder.path} started from; put "
            "them back, or start a new run"
        )
    return pretrained


def start_recipe(
    name: str | Path, pretrained: Pretrained, overrides: Sequence[str] = (), **changes: Any
) -> Recipe:
    """Return a recipe whose model is the pretrained one, with the changes that the user asks for.

    Args:
        name: the recipe: a name or a file.
        pretrained: gives the model section, except what its format does not say, and the
            tokenizer.
        overrides: ``"section.key=value"``, as for `normtrain.config.recipe.resolve`.
        changes: its other arguments.

    Raises:
        UserError: the recipe is of another task, or its model does not fit the weights.
    """
    task = recipes.load(name).task
    if task != "language":
        raise UserError(
            f"recipe {name} is for the task {task}; pretrained models are language models, and "
            "'normtrain recipes list' shows recipes for them"
        )
    recipe = recipes.resolve(name, base=pretrained.settings(), overrides=overrides, **changes)
    pretrained.check(recipe)
    return recipe


def import_model(
    target: Path,
    output: Path,
    *,
    recipe: str | Path = "lm",
    data: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Write a checkpoint of a pretrained model without training it.

    It can be evaluated, converted, generated from and exported like a run's. Its window is as long
    as the model's positions, up to `LONGEST_WINDOW`, unless ``data.window`` is overridden.

    Args:
        target: as for `read_pretrained`.
        output: the file to write.
        recipe: gives what the model does not say, such as how to sample.
        data: the text it is evaluated on; by default the recipe's.
        overrides: ``"section.key=value"`` changes of it.

    Returns:
        Lines that say what was made.

    Raises:
        UserError: the model cannot be used, does not fit the recipe, or ``output`` cannot be
            written to.
        RunError: writing the file fails.
    """
    output = Path(output)
    check_output(output)
    pretrained = read_pretrained(target)
    made = _made_recipe(pretrained, recipe, data, overrides)
    model = task_of(made).model(made.model, pretrained.tokenizer.vocab_size)
    report = load_into(model, pretrained.weights)
    untrained = {"kind": "none", "source": None, "revision": None, "sha256": None}
    section = make_section(
        made, pretrained.tokenizer, model, data=untrained, init=pretrained.origin
    )
    write_checkpoint(output, section, model.state_dict(), 0)
    count = sum(p.numel() for p in model.parameters())
    lines = [f"{output}: {pretrained.model_type} of {count:,} parameters from {pretrained.place}"]
    lines.append(f"weights: {report}; windows of {made.data.window:,} tokens")
    return "\n".join([*lines, *pretrained.notes])


def _made_recipe(
    pretrained: Pretrained, recipe: str | Path, data: str | None, overrides: Sequence[str]
) -> LanguageRecipe:
    """Return the recipe of an imported model, named after its folder or file."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(pretrained.place).resolve().name).strip("-._")
    settings = [f"name={stem or 'imported'}", *overrides]
    given = {text.partition("=")[0].strip() for text in overrides}
    base = recipes.load(recipe)
    longest = pretrained.model.get("max_positions", LONGEST_WINDOW)
    if not given & {"data.window", "data.max_tokens", "model.max_positions"}:
        window = min(LONGEST_WINDOW, longest)
        settings += [
            f"data.window={window}",
            f"data.max_tokens={max(window, base.data.max_tokens)}",
        ]
    made = start_recipe(recipe, pretrained, settings, data=data)
    source = f"data.source={json.dumps(whole_source(made))}"
    return cast(LanguageRecipe, recipes.override(made, [source]))
