"""A folder that others can use: safetensors weights, configuration, tokenizer, model card."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from normtrain import __version__
from normtrain.errors import RunError, UserError
from normtrain.run.checkpoint import Checkpoint, read_checkpoint

WEIGHTS = "model.safetensors"
CARD = """\
---
language: [en, vi]
pipeline_tag: translation
library_name: normtrain
---

# {name}: English to Vietnamese, norm `{norm}`

Trained with normtrain {version} for {step:,} steps on `{data}`.
{parameters:,} parameters; norms sit `{placement}` the sublayers.

| file | what |
| --- | --- |
| `model.safetensors` | the weights; tied matrices are stored once |
| `config.json` | the recipe, the norm at every place, where the data came from |
| `tokenizer.json` | the joint BPE, for the `tokenizers` library |
{scores}
"""


def export(target: Path, folder: Path) -> str:
    """Write a model in open formats.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        folder: a new or empty folder.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: if the checkpoint can't be used or the folder holds something.
        RunError: if the folder can't be written.
    """
    checkpoint = read_checkpoint(Path(target))
    model = checkpoint.model()
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; export into a new folder")
    # Parameters, not the state dict: a tied matrix appears once.
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    count = sum(p.numel() for p in weights.values())
    config = {
        "normtrain_version": __version__,
        "vocab_size": checkpoint.tokenizer.vocab_size,
        "step": checkpoint.step,
        "recipe": checkpoint.recipe.plain(),
        "norms": checkpoint.raw["normtrain"]["norms"],
        "data": checkpoint.data,
    }
    texts = {
        "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "tokenizer.json": checkpoint.tokenizer.to_json(),
        "README.md": _card(checkpoint, Path(target), count),
    }
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        _take_back(folder, [WEIGHTS, *texts], made)
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"could not write {folder}: {reason}; free some space") from error
    return f"{folder}: {count:,} parameters, config, tokenizer and model card"


def _take_back(folder: Path, names: list[str], made: bool) -> None:
    """Remove what a failed export has written; half a model is worse than none."""
    with contextlib.suppress(OSError):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if made:
            folder.rmdir()


def _evaluations(target: Path) -> list[dict[str, Any]]:
    """What ``evaluate`` has left in a run folder; files of any other kind are passed over."""
    found = []
    for file in sorted(target.glob("evaluation-*.json")) if target.is_dir() else []:
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return [each for each in found if isinstance(each, dict) and "bleu_signature" in each]


def _card(checkpoint: Checkpoint, target: Path, parameters: int) -> str:
    recipe = checkpoint.recipe
    rows = [
        f"| {Path(found['data']).name} | {found['split']} | {found['beam']} | {found['bleu']:.2f} "
        f"| `{found['bleu_signature']}` |"
        for found in _evaluations(target)
        if found["step"] == checkpoint.step  # another checkpoint's scores say nothing of this one
    ]
    scores = ""
    if rows:
        head = "\n| data | split | beam | BLEU | signature |\n| --- | --- | --- | --- | --- |\n"
        scores = head + "\n".join(rows)
    return CARD.format(
        name=recipe.name,
        norm=recipe.model.norm,
        version=__version__,
        step=checkpoint.step,
        data=Path(recipe.data.source).name,
        parameters=parameters,
        placement=recipe.model.placement,
        scores=scores,
    )
