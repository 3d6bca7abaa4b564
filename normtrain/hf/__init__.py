"""Read and write models in Hugging Face's formats, and read exports in the native format.

Files are read and written directly: `transformers` is not needed, and no code in a folder is run.
Names are resolved on first use: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normtrain.hf.formats import FORMATS

if TYPE_CHECKING:
    from normtrain.hf.model_folder import read_folder, write_folder
    from normtrain.hf.pretrained import Pretrained, load_into

_MODULES = {
    "Pretrained": "pretrained",
    "load_into": "pretrained",
    "read_folder": "model_folder",
    "write_folder": "model_folder",
}

__all__ = ["FORMATS", "Pretrained", "load_into", "read_folder", "write_folder"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
