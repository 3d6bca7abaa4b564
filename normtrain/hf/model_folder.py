"""Read and write the folder of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import UserError, unknown_name
from normtrain.files import as_utf8
from normtrain.files import write_folder as write_whole
from normtrain.hf.formats import FORMATS, format_of
from normtrain.hf.model_config import CONFIG, Config, read_config
from normtrain.hf.pretrained import Pretrained
from normtrain.hf.slots import Slot, to_ours, to_theirs
from normtrain.hf.tokenizers import read_tokenizer, tokenizer_texts
from normtrain.hf.weights import read_weights, save_weights
from normtrain.models.config import CausalLMConfig

Weights = Mapping[str, Tensor]


def write_folder(
    folder: Path,
    format: str,
    section: CausalLMConfig,
    weights: Weights,
    tokenizer: TextTokenizer,
    texts: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a model for `transformers`; on an error no folder is left behind.

    Args:
        folder: a new or empty folder.
        format: one of `FORMATS`.
        section: the recipe's model section.
        weights: the state dict of its `normtrain.models.CausalLM`.
        tokenizer: its tokenizer.
        texts: further files by name, such as a model card.

    Returns:
        Messages about settings that the format cannot hold.

    Raises:
        UserError: the format is unknown or has no such model, or the folder is not empty.
        RunError: the folder cannot be written.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    form, eos = format_of(format), tokenizer.eos
    size = weights["embedding.weight"].size(0)
    config = {
        **form.to_config(section, format),
        "vocab_size": size,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "torch_dtype": str(weights["embedding.weight"].dtype).removeprefix("torch."),
    }
    tensors = to_theirs(form.slots(section, size), weights)
    tokens, note = tokenizer_texts(tokenizer, section.max_positions)
    files = {
        CONFIG: _json(config),
        "generation_config.json": _json({"bos_token_id": eos, "eos_token_id": eos}),
        **tokens,
        **(texts or {}),
    }

    def write(temporary: Path) -> None:
        save_weights(tensors, temporary)
        for name, text in files.items():
            (temporary / name).write_bytes(as_utf8(text))

    write_whole(folder, write)
    return [*_left_out(section, config), *([] if note is None else [note])]


def _left_out(section: CausalLMConfig, config: Mapping[str, Any]) -> list[str]:
    """Describe the training settings that the format has no key for."""
    keys = ["activation_dropout", *([] if "resid_pdrop" in config else ["dropout"])]
    lost = [f"model.{key} ({getattr(section, key):g})" for key in keys if getattr(section, key)]
    return [f"not in the format, since only training uses it: {', '.join(lost)}"] if lost else []


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_folder(folder: Path) -> Pretrained:
    """Read a model from a folder of `transformers` or of ``normtrain export``.

    Args:
        folder: with ``config.json``, safetensors and a tokenizer.

    Returns:
        The model's config, weights and tokenizer.

    Raises:
        UserError: it holds no supported model; the message names what is wrong.
        RunError: a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} not found")
    config = read_config(folder)
    if "normtrain_version" in config.values:
        return _finished(folder, "normtrain", *_read_own(folder, config))
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FORMATS:
        raise config.wrong("model_type", f"one of {', '.join(FORMATS)}")
    for key, what in (("quantization_config", "quantized weights"), ("auto_map", "code to run")):
        if config.values.get(key) is not None:
            raise UserError(f"{config.where}: {key} asks for {what}, which is unsupported")
    form = format_of(model_type)
    values = form.from_config(config)
    section = _section(values, config.where)
    tensors, digest, notes = read_weights(folder)
    tensors = _named_in_full(tensors, section, form.slots(section, 1))
    slots = form.slots(section, config.whole("vocab_size", form.VOCAB_SIZE))
    weights = to_ours(slots, tensors, form.IGNORED, str(folder))
    return _finished(folder, model_type, values, weights, digest, notes)


def _named_in_full(
    tensors: dict[str, Tensor], section: CausalLMConfig, slots: list[Slot]
) -> dict[str, Tensor]:
    """Add the prefix that a base model saved alone lacks; drop the copy of a tied matrix."""
    prefix = slots[0].parts[0][0].partition(".")[0] + "."
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {name if name == "lm_head.weight" else prefix + name: tensors[name]
                   for name in tensors}  # fmt: skip
    head, embedding = tensors.get("lm_head.weight"), tensors.get(slots[0].parts[0][0])
    if section.tie and head is not None and embedding is not None and head.equal(embedding):
        tensors = {name: tensors[name] for name in tensors if name != "lm_head.weight"}
    return tensors


def _read_own(
    folder: Path, config: Config
) -> tuple[dict[str, Any], dict[str, Tensor], str, list[str]]:
    """Read an export in the native format."""
    recipe = config.values.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
        raise config.wrong("recipe", "the recipe that the model was trained with")
    if recipe.get("task") != "language":
        raise UserError(
            f"{folder}: the task of the model must be language, got {recipe.get('task')}"
        )
    weights, digest, notes = read_weights(folder)
    return recipe["model"], weights, digest, notes


def _section(values: Mapping[str, Any], where: str) -> CausalLMConfig:
    try:
        return CausalLMConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: model.{key} cannot be {first['input']!r}") from None


def _finished(
    folder: Path,
    model_type: str,
    values: Mapping[str, Any],
    weights: dict[str, Tensor],
    digest: str,
    notes: Sequence[str],
) -> Pretrained:
    """Add the tokenizer, and cut the embedding to its number of ids."""
    section, tokenizer = _section(values, str(folder / CONFIG)), read_tokenizer(folder)
    if "embedding.weight" not in weights:
        raise UserError(f"{folder}: weight embedding.weight not found")
    if section.tie:
        weights["head.weight"] = weights["embedding.weight"]
    rows, ids, messages = weights["embedding.weight"].size(0), tokenizer.vocab_size, list(notes)
    if ids > rows:
        raise UserError(f"{folder}: the tokenizer has {ids} ids, but the embedding has {rows} rows")
    if rows > ids:
        for name in ("embedding.weight", "head.weight", "head.bias"):
            if name in weights:
                weights[name] = weights[name][:ids].contiguous()
        messages.append(f"dropped {rows - ids:,} of {rows:,} embedding rows, which have no token")
    return Pretrained(
        str(folder), model_type, dict(values), weights, tokenizer, digest, tuple(messages)
    )
