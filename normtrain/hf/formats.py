"""The table of Hugging Face formats, and what the module of a format defines.

A format is added by a module beside this one and a row in `FORMATS`. Importing this module imports
no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from normtrain.hf.model_config import Config
    from normtrain.hf.slots import Slot
    from normtrain.models.config import CausalLMConfig

FORMATS: dict[str, str] = {"llama": "llama", "qwen3": "llama", "gpt2": "gpt2"}
"""The module in this package of each format; the name is the ``model_type`` of ``config.json``."""


class Format(Protocol):
    """What the module of a format defines.

    Attributes:
        IGNORED: patterns of weight names that are skipped, since they follow from the sizes.
        VOCAB_SIZE: of a ``config.json`` without ``vocab_size``.
    """

    IGNORED: Sequence[str]
    VOCAB_SIZE: int

    def to_config(self, section: CausalLMConfig, model_type: str) -> dict[str, Any]:
        """Return the ``config.json`` of a model, without its vocabulary.

        Raises:
            UserError: the format has no such model; the message names the key.
        """

    def from_config(self, config: Config) -> dict[str, Any]:
        """Return the values of the recipe's model section that a ``config.json`` describes.

        Raises:
            UserError: a key is missing, wrong, or asks for something unsupported.
        """

    def slots(self, section: CausalLMConfig, vocab_size: int) -> list[Slot]:
        """List where each weight is in the format."""


def format_of(name: str) -> Format:
    """Return the module of a format, one of `FORMATS`."""
    return cast(Format, import_module(f"normtrain.hf.{FORMATS[name]}"))
