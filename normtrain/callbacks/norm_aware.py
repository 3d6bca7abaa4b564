"""Checkpoints that bring their norms along: `NormAware` modules, `load_checkpoint` for others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from normtrain.callbacks.flavours import callback_class
from normtrain.callbacks.instance import copies
from normtrain.callbacks.norm_section import explain_mismatch, place_of
from normtrain.callbacks.swap_checks import is_a
from normtrain.errors import UserError
from normtrain.files import read_plain
from normtrain.surgery.record import SECTION, checked_section, differences, record, restore
from normtrain.surgery.sites import plain_name
from normtrain.surgery.swap_rules import shown

_M = TypeVar("_M", bound=nn.Module)


class NormAware:
    """Makes a LightningModule's checkpoints bring their norms along, with or without `NormSwap`.

    ``class Mine(NormAware, LightningModule)``: then ``Mine.load_from_checkpoint`` and a Trainer's
    ``ckpt_path`` swap the norms to those of the checkpoint before the weights are loaded. Keys
    fit whether or not parts of the model are compiled.

    A module that calls `swap_norms` itself (in ``configure_model`` before it shards, say) writes
    its norms too. Where a strategy reads the weights before it asks the module (FSDP, DeepSpeed,
    ``ModelParallelStrategy``), the module must have the right norms by then; others are an error.

    Raises:
        UserError: when a checkpoint is read, if a norm of the module is another than the one that
            was saved, and not the one that it was put in the place of.
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write which norms there are."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        assert isinstance(self, nn.Module)
        if SECTION not in checkpoint:  # NormSwap has written its rules too
            checkpoint[SECTION] = record(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap to the norms of the checkpoint."""
        assert isinstance(self, nn.Module)
        if SECTION in checkpoint:
            _restore(checkpoint[SECTION], self)
        for key in ("state_dict", "current_model_state"):  # the latter of weight averaging
            if key in checkpoint:
                checkpoint[key] = fitted(checkpoint[key], self.state_dict().keys())
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]

    def configure_callbacks(self) -> list[Any]:
        """One more callback: it explains a failure to load a checkpoint of other norms."""
        more = super().configure_callbacks()  # type: ignore[misc]
        more = list(more) if isinstance(more, Sequence) else [more]
        return [*more, callback_class(ExplainMismatch, "ExplainMismatch")()]


class ExplainMismatch:
    """Adds to a failure at loading a checkpoint which norms differ.

    Sharding strategies load weights before they call any hook, so the failure can't be forestalled.
    """

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Explain."""
        explain_mismatch(trainer, pl_module, exception)


def _restore(section: Any, module: nn.Module) -> None:
    """Swap the norms of a module, and of the copies of it that callbacks hold."""
    where = place_of(module)
    section = checked_section(section, where)
    trainer = getattr(module, "_trainer", None)
    callbacks = [] if trainer is None else trainer.callbacks
    if differences(section, module):
        for callback in callbacks:
            if is_a(callback, "ModelPruning"):
                raise UserError(
                    f"{type(callback).__name__} has noted parameters of norms that {where} replaces"
                    f"; put NormSwap({shown(section['rules'])}) before it in the callbacks"
                )
    restore(section, module, where)
    for copy in () if trainer is None else copies(trainer, module):
        restore(section, copy, where)


def fitted(state: dict[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """A state dict with the keys that a model wants, where only wrappers' parts of them differ.

    Args:
        state: tensors by key.
        wanted: the model's keys.

    Returns:
        The same tensors; a key that fits none of the model's stays as it is.
    """
    known = set(wanted)
    if state.keys() <= known:
        return state
    by_plain = {plain_name(key): key for key in known}
    return {
        key if key in known else by_plain.get(plain_name(key), key): value
        for key, value in state.items()
    }


def load_checkpoint(
    cls: type[_M],
    path: str | Path,
    *,
    map_location: Any = None,
    strict: bool | None = None,
    **init: Any,
) -> _M:
    """Load a LightningModule from a checkpoint, with the norms that it was trained with.

    Does what ``cls.load_from_checkpoint`` does, for any LightningModule, and swaps the norms before
    the weights are loaded. A checkpoint that says nothing of norms is loaded as it is.

    Args:
        cls: the LightningModule's class, without the callback.
        path: a checkpoint file.
        map_location: where the weights go, as for `torch.load`.
        strict: whether all keys must match; by default as the module says.
        init: arguments of ``cls`` that win over the hyperparameters in the checkpoint.

    Returns:
        The module, in training mode as Lightning leaves it.

    Raises:
        UserError: the file is missing, cut short, a folder or no checkpoint; it holds more than
            plain data (nothing in it is executed); its weights or norms don't fit the module.
    """
    if not (isinstance(cls, type) and hasattr(cls, "load_from_checkpoint")):
        raise UserError(f"load_checkpoint takes the class of a LightningModule, not {cls!r}")
    path = Path(path)
    if os.path.isdir(path):  # a path too long is no folder, and no error yet
        raise UserError(
            f"{path} is a folder; if it is a sharded checkpoint, make one file of it first "
            f"(python -m lightning.pytorch.utilities.consolidate_checkpoint)"
        )
    raw = read_plain(path, mmap=True)
    if not isinstance(raw, dict) or "state_dict" not in raw:
        raise UserError(f"{path} is no checkpoint of Lightning's: it has no state_dict")
    if SECTION in raw:
        checked_section(raw[SECTION], str(path))
    del raw
    aware = cls if issubclass(cls, NormAware) else _aware(cls)
    try:
        module = aware.load_from_checkpoint(
            path, map_location=map_location, strict=strict, weights_only=True, **init
        )
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        first = (str(error).strip().splitlines()[1:2] or [str(error)])[0].strip()
        raise UserError(f"the weights in {path} don't fit {cls.__name__}: {first}") from error
    module.__class__ = cls
    return module


def _aware(cls: type[nn.Module]) -> Any:
    """The class with `NormAware` ahead of it, under the same name."""
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (NormAware, cls), about)
