"""Checkpoints that bring their norms along: `NormAware` modules, `load_checkpoint` for others."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from normtrain.errors import UserError
from normtrain.files import read_plain
from normtrain.swap.callback.flavours import callback_class
from normtrain.swap.callback.instance import copies
from normtrain.swap.callback.norm_section import explain_mismatch, fit_keys, place_of
from normtrain.swap.callback.swap_checks import is_a
from normtrain.swap.record import (
    SECTION,
    checked_section,
    describe,
    differences,
    record,
    restore,
    section_of,
)
from normtrain.swap.rules import shown

_M = TypeVar("_M", bound=nn.Module)
_Hook = Callable[[Any, dict[str, Any]], None]
_loading = threading.Lock()


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
            was saved, and not the one that it was put in the place of; when a class is made that
            has it behind LightningModule.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hold also where the class has hooks of its own that do not call these."""
        super().__init_subclass__(**kwargs)
        order = [base.__name__ for base in cls.__mro__]
        if "LightningModule" in order[: order.index("NormAware")]:
            raise UserError(
                f"NormAware comes first among the bases, class {cls.__name__}(NormAware, "
                f"{cls.__bases__[0].__name__}), or its hooks are not called"
            )
        for name, then in (("on_save_checkpoint", _write), ("on_load_checkpoint", restore_norms)):
            if name in vars(cls):
                setattr(cls, name, _after(vars(cls)[name], then))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write which norms there are."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        _write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap to the norms of the checkpoint."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        restore_norms(self, checkpoint)

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


def _after(hook: _Hook, then: _Hook) -> _Hook:
    """A checkpoint hook that does something more when it is done."""

    @functools.wraps(hook)
    def both(self: Any, checkpoint: dict[str, Any]) -> None:
        hook(self, checkpoint)
        then(self, checkpoint)

    return both


def _write(module: Any, checkpoint: dict[str, Any]) -> None:
    if SECTION not in checkpoint:  # NormSwap has written its rules too
        checkpoint[SECTION] = record(module)


def restore_norms(module: Any, checkpoint: dict[str, Any]) -> None:
    """Swap a module's norms, and those of averaged copies of it, to those of a checkpoint.

    Done a second time it changes nothing.

    Raises:
        UserError: as `NormAware`.
    """
    section = section_of(checkpoint)
    if section is not None:
        _restore(checked_section(section, place_of(module)), module)
    fit_keys(checkpoint, module)


def _restore(section: dict[str, Any], module: nn.Module) -> None:
    where = place_of(module)
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


def load_checkpoint(
    cls: type[_M],
    path: str | Path,
    *,
    map_location: Any = None,
    strict: bool | None = None,
    **init: Any,
) -> _M:
    """Load a LightningModule from a checkpoint, with the norms that it was trained with.

    Does what ``cls.load_from_checkpoint`` does, for any LightningModule that builds its layers in
    ``__init__`` or ``configure_model``, and swaps the norms before the weights are loaded. A
    checkpoint that says nothing of norms is loaded as it is.

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
    raw = _read(path)
    section = section_of(raw)
    section = None if section is None else checked_section(section, str(path))
    built = _class_in(raw, cls)
    del raw
    try:
        with _restoring(built):
            module = cls.load_from_checkpoint(  # type: ignore[attr-defined]
                path, map_location=map_location, strict=strict, weights_only=True, **init
            )
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        first = (str(error).strip().splitlines()[1:2] or [str(error)])[0].strip()
        raise UserError(f"the weights in {path} don't fit {cls.__name__}: {first}") from error
    if section is not None and (found := differences(section, module)):
        raise UserError(f"{describe(found, str(path))}; its on_load_checkpoint changed them")
    return module


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint file of Lightning's, as plain data."""
    if os.path.isdir(path):  # a path too long is no folder, and no error yet
        raise UserError(
            f"{path} is a folder, so a sharded checkpoint, which can't be loaded into one module; "
            f"save whole ones: ModelParallelStrategy(save_distributed_checkpoint=False), "
            f"FSDPStrategy(state_dict_type='full')"
        )
    try:
        raw = read_plain(path, mmap=True)
    except UserError as error:
        if "executed" not in str(error):
            raise
        raise UserError(
            f"{error}; if it is a class of yours that can be trusted, allow it with "
            f"torch.serialization.add_safe_globals"
        ) from error
    if not isinstance(raw, dict) or "state_dict" not in raw:
        raise UserError(f"{path} is no checkpoint of Lightning's: it has no state_dict")
    return raw


def _class_in(raw: dict[str, Any], cls: type) -> type:
    """The class that Lightning will build: the one that LightningCLI wrote down, or `cls`."""
    hparams = raw.get("hyper_parameters")
    name = hparams.get("_class_path") if isinstance(hparams, dict) else None
    module, _, last = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    found = getattr(sys.modules.get(module), last, None)
    return found if isinstance(found, type) and issubclass(found, cls) else cls


@contextmanager
def _restoring(cls: type) -> Iterator[None]:
    """Let a class restore norms when a checkpoint is loaded, whatever its own hook does."""
    with _loading:
        before = vars(cls).get("on_load_checkpoint")
        cls.on_load_checkpoint = _after(cls.on_load_checkpoint, restore_norms)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if before is None:
                del cls.on_load_checkpoint  # type: ignore[attr-defined]
            else:
                cls.on_load_checkpoint = before  # type: ignore[attr-defined]
