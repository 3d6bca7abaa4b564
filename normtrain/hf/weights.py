"""Read and write the weights of a folder: safetensors, in one file or in shards."""

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
# Integer buffers that are not trained: GPT-2's causal mask, counts of batch norms.
_COUNTS = (".attn.bias", ".num_batches_tracked")
# Pickle files, which can run code when they are loaded.
_PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights that share no memory into a folder.

    Raises:
        OSError: writing fails.
    """
    try:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read every weight of a folder.

    Returns:
        The weights by name in float32; the SHA-256 of the file (of shards: of their digests, in
        the order of their names); messages about what was changed.

    Raises:
        UserError: there are no safetensors, a shard is missing or damaged, or a weight has
            another dtype than float, such as a quantized one.
        RunError: a file cannot be read.
    """
    files = _files(folder)
    weights: dict[str, Tensor] = {}
    kinds: set[torch.dtype] = set()
    for file in files:
        for name, tensor in _read(file).items():
            if not tensor.is_floating_point() and not name.endswith(_COUNTS):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(
                    f"{file}: {name} must have a float dtype, got {kind}; quantized weights are "
                    "unsupported"
                )
            if name in weights:
                raise UserError(f"{file}: {name} is in another shard too")
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                kinds.add(tensor.dtype)
                tensor = tensor.float()
            weights[name] = tensor
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    notes = [f"weights were converted from {names} to float32"] if kinds else []
    return weights, _digest(files), notes


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _shards(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder} has its weights in {pickled[0]}, which can run code when it is loaded; "
            f"save them as {WEIGHTS}"
        )
    raise UserError(f"{folder}: {WEIGHTS} not found")


def _shards(folder: Path) -> list[Path]:
    path = folder / INDEX
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in listed})
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of safetensors; save the model again") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path} must name safetensors files of this folder, got {name!r}")
        if not (folder / name).is_file():
            raise UserError(f"{folder}: shard {name} of {INDEX} not found")
    if not names:
        raise UserError(f"{path} names no weights; save the model again")
    return [folder / name for name in names]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = on_one_line(error)
        raise UserError(f"{file} is truncated or not a safetensors file: {reason}") from error
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error


def _digest(files: list[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
