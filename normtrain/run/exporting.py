"""A folder that others can use: safetensors weights, configuration, tokenizer, model card."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from normtrain import __version__
from normtrain.errors import RunError, UserError
from normtrain.run.checkpoint import Checkpoint, read_checkpoint

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
        (folder / "README.md").write_text(_card(checkpoint, Path(target), count), encoding="utf-8")
    except OSError as error:
        raise RunError(f"could not write {folder}: {error}") from error
    return f"{folder}: {count:,} parameters, config, tokenizer and model card"


def _card(checkpoint: Checkpoint, target: Path, parameters: int) -> str:
    recipe = checkpoint.recipe
    rows = []
    for file in sorted(target.glob("evaluation-*.json")) if target.is_dir() else []:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows.append(f"| {found['split']} | {found['bleu']:.2f} | `{found['bleu_signature']}` |")
    scores = ""
    if rows:
        scores = "\n| split | BLEU | signature |\n| --- | --- | --- |\n" + "\n".join(rows)
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
