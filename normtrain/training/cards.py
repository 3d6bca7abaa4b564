"""The model card of an export: what the model is, where it came from, how well it does."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from normtrain import __version__
from normtrain.training.checkpoint import Checkpoint

_HEAD = """\
---
{front}
---

# {name}: {what}, norm `{norm}`

{origin}
{parameters:,} parameters; norms sit `{placement}` the sublayers.

| file | what |
| --- | --- |
| `model.safetensors` | the weights; tied matrices are stored once |
{files}
{scores}
"""
_FRONT = {
    "translation": "language: [en, vi]\npipeline_tag: translation\nlibrary_name: {library}",
    "language": "pipeline_tag: text-generation\nlibrary_name: {library}",
}
_WHAT = {"translation": "English to Vietnamese", "language": "a language model"}
_CONFIG = "| `config.json` | the recipe, the norm at every place, where the data came from |\n"
_NATIVE = {
    "translation": _CONFIG + "| `tokenizer.json` | the joint BPE, for the `tokenizers` library |",
    "language": _CONFIG + "| `tokenizer.json` | the tokenizer ({kind}) |",
}
_THEIRS = "| `config.json` | the model, as `transformers` builds it |\n"
_TOKENIZERS = {
    True: "| `tokenizer.json` | the byte-level BPE, for `AutoTokenizer` |",
    False: "| `normtrain_tokenizer.json` | the tokenizer ({kind}), for normtrain alone |",
}


def card(checkpoint: Checkpoint, target: Path, parameters: int, format: str) -> str:
    """The text of ``README.md``.

    Args:
        checkpoint: what is exported.
        target: what the user named; a run folder has scores in it.
        parameters: how many the model has.
        format: of the export.
    """
    recipe = checkpoint.recipe
    native = format == "native"
    kind = getattr(checkpoint.tokenizer, "kind", "bpe")
    files = _NATIVE[recipe.task] if native else _THEIRS + _TOKENIZERS[kind == "bpe"]
    return _HEAD.format(
        front=_FRONT[recipe.task].format(library="normtrain" if native else "transformers"),
        name=recipe.name,
        what=_WHAT[recipe.task],
        norm=recipe.model.norm,
        origin=_origin(checkpoint),
        parameters=parameters,
        placement=recipe.model.placement,
        files=files.format(kind=kind),
        scores=_scores(checkpoint, target),
    )


def _origin(checkpoint: Checkpoint) -> str:
    """How the weights came about, in a sentence or two."""
    init = checkpoint.raw["normtrain"].get("init")
    trained = (
        f"Trained with normtrain {__version__} for {checkpoint.step:,} steps on "
        f"`{Path(checkpoint.recipe.data.source).name}`."
    )
    if init is None:
        return trained
    begun = f"`{init['from']}` ({init['model_type']}, weights of SHA-256 `{init['sha256']}`)"
    if checkpoint.step == 0:
        return f"Written with normtrain {__version__} from {begun}."
    return f"{trained} It began with {begun}."


def _evaluations(target: Path) -> list[dict[str, Any]]:
    """What ``evaluate`` has left in a run folder; files of any other kind are passed over."""
    found = []
    for file in sorted(target.glob("evaluation-*.json")) if target.is_dir() else []:
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return [each for each in found if isinstance(each, dict)]


def _scores(checkpoint: Checkpoint, target: Path) -> str:
    """A table of this checkpoint's scores; another checkpoint's say nothing of this one."""
    if checkpoint.recipe.task == "translation":
        head = "\n| data | split | beam | BLEU | signature |\n| --- | --- | --- | --- | --- |\n"
        keys = ("beam", "bleu", "bleu_signature")
        row = "{beam} | {bleu:.2f} | `{bleu_signature}`"
    else:
        head = "\n| data | split | stride | perplexity | bits per byte |\n"
        head += "| --- | --- | --- | --- | --- |\n"
        keys = ("stride", "perplexity", "bits_per_byte")
        row = "{stride} | {perplexity:.2f} | {bits_per_byte:.4f}"
    rows = [
        f"| {Path(found['data']).name} | {found['split']} | {row.format(**found)} |"
        for found in _evaluations(target)
        if all(key in found for key in keys) and found["step"] == checkpoint.step
    ]
    return head + "\n".join(rows) if rows else ""
