"""The model card of an export: the model, its origin and its scores."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from normtrain import __version__
from normtrain.tasks.base import task_of
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
_CONFIG = "| `config.json` | the recipe, the norm at every module, where the data came from |\n"
_MODEL = "| `config.json` | the model, as `transformers` builds it |\n"


def card(checkpoint: Checkpoint, target: Path, parameters: int, format: str) -> str:
    """Return the text of ``README.md``.

    Args:
        checkpoint: what is exported.
        target: what the user named; a run folder has scores in it.
        parameters: how many the model has.
        format: of the export.
    """
    recipe = checkpoint.recipe
    task, native = task_of(recipe), format == "native"
    data = recipe.data
    languages = {side: getattr(data, f"{side}_lang", None) for side in ("source", "target")}
    front = [line.format(source_lang=languages["source"], target_lang=languages["target"])
             for line in task.card.front]  # fmt: skip
    front.append(f"library_name: {'normtrain' if native else 'transformers'}")
    return _HEAD.format(
        front="\n".join(front),
        name=recipe.name,
        what=task.card.title.format(
            **{side: language_name(code) for side, code in languages.items() if code}
        ),
        norm=recipe.model.norm,
        origin=_origin(checkpoint),
        parameters=parameters,
        placement=recipe.model.placement,
        files=_files(getattr(checkpoint.tokenizer, "kind", "joint BPE"), native),
        scores=_scores(checkpoint, target),
    )


def _files(kind: str, native: bool) -> str:
    if native:
        return f"{_CONFIG}| `tokenizer.json` | the tokenizer ({kind}) |"
    if kind == "bpe":
        return f"{_MODEL}| `tokenizer.json` | the byte-level BPE, for `AutoTokenizer` |"
    return f"{_MODEL}| `normtrain_tokenizer.json` | the tokenizer ({kind}), for normtrain alone |"


def _origin(checkpoint: Checkpoint) -> str:
    """Say how the weights were trained, in a sentence or two."""
    init = checkpoint.section.init
    trained = (
        f"Trained with normtrain {__version__} for {checkpoint.step:,} steps on "
        f"`{Path(checkpoint.recipe.data.source).name}`."
    )
    if init is None:
        return trained
    start = f"`{init['from']}` ({init['model_type']}, weights of SHA-256 `{init['sha256']}`)"
    if checkpoint.step == 0:
        return f"Written with normtrain {__version__} from {start}."
    return f"{trained} It started from {start}."


def _evaluations(target: Path) -> list[dict[str, Any]]:
    """Return what ``evaluate`` wrote into a run folder; other JSON files are passed over."""
    found = []
    for file in sorted(target.glob("evaluation-*.json")) if target.is_dir() else []:
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return [each for each in found if isinstance(each, dict)]


def _scores(checkpoint: Checkpoint, target: Path) -> str:
    """Return the table of scores of this checkpoint."""
    columns = task_of(checkpoint.recipe).card.scores
    heads = ["data", "split", *(head for head, _ in columns.values())]
    rows = [
        [Path(found["data"]).name, found["split"],
         *(text.format(found[key]) for key, (_, text) in columns.items())]
        for found in _evaluations(target)
        if columns.keys() <= found.keys() and found["step"] == checkpoint.step
    ]  # fmt: skip
    table = [heads, ["---"] * len(heads), *rows]
    return "".join(f"\n| {' | '.join(row)} |" for row in table) if rows else ""


_LANGUAGES = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "pt": "Portuguese", "ru": "Russian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


def language_name(code: str) -> str:
    """Return the English name of a language; of those without one here, the code itself."""
    return _LANGUAGES.get(code.partition("-")[0], code)
