"""Reading the weights of a folder: safetensors, whole or in shards; nothing else is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from normtrain.errors import RunError, UserError, on_one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Whole numbers and masks that are no weights: GPT-2's causal mask, batch norms' counts.
_COUNTS = (".attn.bias", ".num_batches_tracked")
# What would have to be unpickled, which can execute anything.
_PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights that share no memory into a folder.

    Raises:
        OSError: they can't be written.
    """
    try:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, in the library's own words
        raise OSError(str(error)) from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read every weight of a folder.

    Returns:
        The weights by name in float32; the SHA-256 of the file (of several: of their digests, in
        the order of their names); sentences on what was changed.

    Raises:
        UserError: there are no safetensors, a shard is missing or damaged, or a weight is of a
            kind that can't be trained, such as a quantized one.
        RunError: a file can't be read.
    """
    files = _files(folder)
    weights: dict[str, Tensor] = {}
    kinds: set[torch.dtype] = set()
    for file in files:
        for name, tensor in _read(file).items():
            if not tensor.is_floating_point() and not name.endswith(_COUNTS):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(
                    f"{file}: {name} is {kind}; normtrain reads float weights, not quantized ones"
                )
            if name in weights:
                raise UserError(f"{file}: {name} is in another file of the folder too")
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                kinds.add(tensor.dtype)
                tensor = tensor.float()
            weights[name] = tensor
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    notes = [f"weights are {names} in the folder and float32 from here on"] if kinds else []
    return weights, _digest(files), notes


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _shards(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder} has its weights in {pickled[0]}, which can run code when it is read; save "
            f"them as {WEIGHTS}"
        )
    raise UserError(f"{folder} holds no weights: there is no {WEIGHTS} in it")


def _shards(folder: Path) -> list[Path]:
    path = folder / INDEX
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in listed})
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no index of safetensors; save the model again") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path} names {name!r}, which is no safetensors file of this folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, a part of the weights that {INDEX} names")
    if not names:
        raise UserError(f"{path} names no weights; save the model again")
    return [folder / name for name in names]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = on_one_line(error)
        raise UserError(f"{file} is cut short or no safetensors file: {reason}") from error
    except OSError as error:
        raise RunError(f"can't read {file}: {error.strerror or error}") from error


def _digest(files: list[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
