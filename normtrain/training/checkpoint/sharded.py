"""Checkpoints that are folders: a file for each process, as FSDP2 writes them, and a table of them.

The table is a pickle, and so are the small values between the tensors; `check_plain` sees to it
that neither holds anything but plain data before torch reads them.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtrain.errors import DamagedFile, UserError, on_one_line
from normtrain.files import read_plain

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

REST = "meta.pt"
"""The file with everything but tensors of the model and the optimizer; it is written last."""
_TABLE = ".metadata"
_MODEL = "state_dict"
# What a table is made of: records of sizes and places.
_RECORDS = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class _TableReader(pickle.Unpickler):
    """Builds the records of a table and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        kind = getattr(torch, name, None) if module == "torch" else None
        if (module, name) in _RECORDS or isinstance(kind, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which would have to be executed")


def is_sharded(path: Path) -> bool:
    """Whether a path is a sharded checkpoint, by the file that is written last."""
    return (path / REST).is_file()


def check_plain(folder: Path) -> Metadata:
    """See that a sharded checkpoint is whole and holds plain data only.

    Returns:
        The table: which tensor lies in which file.

    Raises:
        DamagedFile: a file is missing, cut short or damaged.
        UserError: there is more than plain data in one.
    """
    import torch
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

    if not is_sharded(folder):
        raise DamagedFile(f"{folder} is not a whole checkpoint: it lacks {REST}")
    try:
        with open(folder / _TABLE, "rb") as file:
            table = _TableReader(file).load()
        if not isinstance(table, Metadata):
            raise ValueError(f"its table is {type(table).__name__}")
        for index, place in table.storage_data.items():
            part = folder / place.relative_path
            if part.parent != folder:
                raise ValueError(f"its table points at {place.relative_path}")
            if part.stat().st_size < place.offset + place.length:
                raise ValueError(f"{part.name} is cut short")
            if isinstance(table.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with open(part, "rb") as file:
                    file.seek(place.offset)
                    raw = file.read(place.length)
                torch.load(io.BytesIO(raw), weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        if "executed" not in str(error) and "GLOBAL " not in str(error):
            raise _damaged(folder, error) from error
        raise UserError(
            f"cannot read the checkpoint {folder}: it holds objects that would have to be "
            f"executed, which is not done"
        ) from error
    except Exception as error:  # a damaged file can make the reader raise anything
        raise _damaged(folder, error) from error
    return table


def _damaged(folder: Path, error: Exception) -> DamagedFile:
    return DamagedFile(
        f"cannot read the checkpoint {folder}: it is truncated, damaged or not a checkpoint "
        f"({on_one_line(error)}); use an earlier one of the run"
    )


def read_sharded(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint put together: as a checkpoint in one file, without the optimizer.

    Raises:
        UserError: as :func:`check_plain`.
    """
    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    table = check_plain(folder)
    weights: dict[str, torch.Tensor] = {}
    for name, about in table.state_dict_metadata.items():
        if name.startswith(f"{_MODEL}.") and isinstance(about, TensorStorageMetadata):
            key = name.removeprefix(f"{_MODEL}.")
            weights[key] = torch.empty(about.size, dtype=about.properties.dtype)
    try:
        with warnings.catch_warnings():  # that it loads in a single process is what is meant
            warnings.simplefilter("ignore", UserWarning)
            dcp.load({_MODEL: weights}, checkpoint_id=folder, no_dist=True)
    except Exception as error:
        raise DamagedFile(
            f"cannot read the checkpoint {folder}: its tensors are damaged; use an earlier one of "
            f"the run"
        ) from error
    return {**read_plain(folder / REST), _MODEL: weights}
