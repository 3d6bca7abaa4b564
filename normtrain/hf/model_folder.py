"""A model's folder: which format it is in, writing one whole, reading one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import UserError, unknown_name
from normtrain.files import as_utf8
from normtrain.files import write_folder as write_whole
from normtrain.hf import gpt2, llama
from normtrain.hf.model_config import CONFIG, Config, read_config
from normtrain.hf.pretrained import Pretrained
from normtrain.hf.slots import Slot, to_ours, to_theirs
from normtrain.hf.tokenizers import read_tokenizer, tokenizer_texts
from normtrain.hf.weights import read_weights, save_weights
from normtrain.models.config import CausalLMConfig

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Format:
    """One format, as its module has it."""

    to_config: Callable[[CausalLMConfig, str], dict[str, Any]]
    from_config: Callable[[Config], dict[str, Any]]
    slots: Callable[[CausalLMConfig, int], list[Slot]]
    ignored: Sequence[str]


_LLAMA = _Format(llama.to_config, llama.from_config, llama.slots, llama.IGNORED)
_GPT2 = _Format(gpt2.to_config, gpt2.from_config, gpt2.slots, gpt2.IGNORED)
FORMATS: dict[str, _Format] = {"llama": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}
"""Formats by the ``model_type`` of their ``config.json``."""


def write_folder(
    folder: Path,
    format: str,
    section: CausalLMConfig,
    weights: Weights,
    tokenizer: TextTokenizer,
    texts: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a model for `transformers`; the folder is whole or not there.

    Args:
        folder: a new or empty folder.
        format: of `FORMATS`.
        section: the recipe's model section.
        weights: the state dict of its `normtrain.models.CausalLM`.
        tokenizer: its tokenizer.
        texts: further files by name, such as a model card.

    Returns:
        Sentences on what the format could not take.

    Raises:
        UserError: the format has no such model, or the folder holds something.
        RunError: the folder can't be written.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    form, eos = FORMATS[format], tokenizer.eos
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
    """Training settings that the format has no key for."""
    keys = ["activation_dropout", *([] if "resid_pdrop" in config else ["dropout"])]
    lost = [f"model.{key} ({getattr(section, key):g})" for key in keys if getattr(section, key)]
    said = "not in the format, since only training uses it"
    return [f"{said}: {', '.join(lost)}"] if lost else []


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_folder(folder: Path) -> Pretrained:
    """Read a model from a folder of `transformers`, or from an export of this package's own.

    Raises:
        UserError: it holds no model that this package can compute; what is wrong is named.
        RunError: a file can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} to read a model from")
    config = read_config(folder)
    if "normtrain_version" in config.values:
        return _finished(folder, "normtrain", *_read_own(folder, config))
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FORMATS:
        raise config.wrong("model_type", f"one of {', '.join(FORMATS)}")
    for key, what in (("quantization_config", "quantized weights"), ("auto_map", "code to run")):
        if config.values.get(key) is not None:
            raise UserError(f"{config.where}: {key} asks for {what}, which normtrain does not read")
    form = FORMATS[model_type]
    values = form.from_config(config)
    section = _section(values, config.where)
    tensors, digest, notes = read_weights(folder)
    tensors = _named_in_full(tensors, section, form.slots(section, 1))
    slots = form.slots(section, config.whole("vocab_size", 50257 if form is _GPT2 else 32000))
    weights = to_ours(slots, tensors, form.ignored, str(folder))
    return _finished(folder, model_type, values, weights, digest, notes)


def _named_in_full(
    tensors: dict[str, Tensor], section: CausalLMConfig, slots: list[Slot]
) -> dict[str, Tensor]:
    """Names as a whole model has them, with a tied output matrix once."""
    prefix = slots[0].parts[0][0].partition(".")[0] + "."
    if not any(name.startswith(prefix) for name in tensors):  # saved without its output layer
        tensors = {name if name == "lm_head.weight" else prefix + name: tensors[name]
                   for name in tensors}  # fmt: skip
    head, embedding = tensors.get("lm_head.weight"), tensors.get(slots[0].parts[0][0])
    if section.tie and head is not None and embedding is not None and head.equal(embedding):
        tensors = {name: tensors[name] for name in tensors if name != "lm_head.weight"}
    return tensors


def _read_own(
    folder: Path, config: Config
) -> tuple[dict[str, Any], dict[str, Tensor], str, list[str]]:
    """The export that ``normtrain export`` writes unless told otherwise."""
    recipe = config.values.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
        raise config.wrong("recipe", "the recipe that the model was trained by")
    if recipe.get("task") != "language":
        raise UserError(f"{folder} holds a model of the task {recipe.get('task')}, not language")
    weights, digest, notes = read_weights(folder)
    return recipe["model"], weights, digest, notes


def _section(values: Mapping[str, Any], where: str) -> CausalLMConfig:
    try:
        return CausalLMConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: model.{key} can't be {first['input']!r}") from None


def _finished(
    folder: Path,
    model_type: str,
    values: Mapping[str, Any],
    weights: dict[str, Tensor],
    digest: str,
    notes: Sequence[str],
) -> Pretrained:
    """The model with its tokenizer, and as many vectors as that has ids."""
    section, tokenizer = _section(values, str(folder / CONFIG)), read_tokenizer(folder)
    if "embedding.weight" not in weights:
        raise UserError(f"{folder} lacks the weight embedding.weight")
    if section.tie:
        weights["head.weight"] = weights["embedding.weight"]
    rows, ids, said = weights["embedding.weight"].size(0), tokenizer.vocab_size, list(notes)
    if ids > rows:
        raise UserError(f"{folder}: the tokenizer has {ids} ids, and the model only {rows}")
    if rows > ids:
        for name in ("embedding.weight", "head.weight", "head.bias"):
            if name in weights:
                weights[name] = weights[name][:ids].contiguous()
        said.append(f"{rows - ids:,} of {rows:,} vectors are of no token and were left out")
    return Pretrained(
        str(folder), model_type, dict(values), weights, tokenizer, digest, tuple(said)
    )
