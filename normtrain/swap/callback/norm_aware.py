"""Load a checkpoint with the norms it was trained with: `NormAware` and `load_checkpoint`."""

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
from normtrain.swap.callback.checkpoint_norms import checkpoint_path, explain_mismatch, fit_keys
from normtrain.swap.callback.flavours import callback_class
from normtrain.swap.callback.method_patch import copies
from normtrain.swap.callback.trainer_checks import is_a
from normtrain.swap.norm_record import (
    describe,
    differences,
    has_record,
    read_record,
    record,
    write_record,
)
from normtrain.swap.requested import rules_text
from normtrain.swap.restore import restore

_M = TypeVar("_M", bound=nn.Module)
_Hook = Callable[[Any, dict[str, Any]], None]
_loading = threading.Lock()


class NormAware:
    """Mixin that records a LightningModule's norms in checkpoints and restores them.

    With ``class Mine(NormAware, LightningModule)``, ``Mine.load_from_checkpoint`` and a Trainer's
    ``ckpt_path`` swap the norms to those of the checkpoint before the weights are loaded, with or
    without `NormSwap`. Keys match whether or not parts of the model are compiled.

    Norms of a module that calls `swap_norms` itself (for example in ``configure_model`` before it
    shards) are recorded too. If a strategy loads the weights before it calls hooks (FSDP,
    DeepSpeed, ``ModelParallelStrategy``), the module must have the right norms by then.

    Raises:
        UserError: when a checkpoint is read, if a norm of the module is neither the one that was
            saved nor the one that it replaced; when a subclass lists it after LightningModule.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Extend the hooks of a subclass that do not call these."""
        super().__init_subclass__(**kwargs)
        order = [base.__name__ for base in cls.__mro__]
        if "LightningModule" in order[: order.index("NormAware")]:
            raise UserError(
                f"NormAware must come first among the bases, class {cls.__name__}(NormAware, "
                f"{cls.__bases__[0].__name__}), or its hooks are not called"
            )
        for name, then in (("on_save_checkpoint", _write), ("on_load_checkpoint", restore_norms)):
            if name in vars(cls):
                setattr(cls, name, _after(vars(cls)[name], then))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the norms."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        _write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap to the norms of the checkpoint."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        restore_norms(self, checkpoint)

    def configure_callbacks(self) -> list[Any]:
        """Add a callback that explains a failure to load a checkpoint with other norms."""
        more = super().configure_callbacks()  # type: ignore[misc]
        more = list(more) if isinstance(more, Sequence) else [more]
        return [*more, callback_class(ExplainMismatch, "ExplainMismatch")()]


class ExplainMismatch:
    """Adds to the exception of a failed checkpoint load which norms differ.

    Sharding strategies load weights before they call any hook, so it cannot be checked earlier.
    """

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Add the note."""
        explain_mismatch(trainer, pl_module, exception)


def _after(hook: _Hook, then: _Hook) -> _Hook:
    """Return a checkpoint hook that calls another function after itself."""

    @functools.wraps(hook)
    def both(self: Any, checkpoint: dict[str, Any]) -> None:
        hook(self, checkpoint)
        then(self, checkpoint)

    return both


def _write(module: Any, checkpoint: dict[str, Any]) -> None:
    if not has_record(checkpoint):  # NormSwap's record has its rules too
        write_record(checkpoint, record(module))


def restore_norms(module: Any, checkpoint: dict[str, Any]) -> None:
    """Swap a module's norms, and those of averaged copies of it, to those of a checkpoint.

    Calling it again changes nothing.

    Raises:
        UserError: as `NormAware`.
    """
    plain = read_record(checkpoint, checkpoint_path(module))
    if plain is not None:
        _restore(plain, module)
    fit_keys(checkpoint, module)


def _restore(plain: dict[str, Any], module: nn.Module) -> None:
    where = checkpoint_path(module)
    trainer = getattr(module, "_trainer", None)
    callbacks = [] if trainer is None else trainer.callbacks
    if differences(plain, module):
        for callback in callbacks:
            if is_a(callback, "ModelPruning"):
                raise UserError(
                    f"{type(callback).__name__} holds parameters of norms that {where} replaces; "
                    f"put NormSwap({rules_text(plain['rules'])}) before it in the callbacks"
                )
    restore(plain, module, where)
    for copy in () if trainer is None else copies(trainer, module):
        restore(plain, copy, where)


def load_checkpoint(
    cls: type[_M],
    path: str | Path,
    *,
    map_location: Any = None,
    strict: bool | None = None,
    **init: Any,
) -> _M:
    """Load a LightningModule from a checkpoint, with the norms that it was trained with.

    Like ``cls.load_from_checkpoint``, but swaps the norms before the weights are loaded. It works
    for any LightningModule that builds its layers in ``__init__`` or ``configure_model``. Without
    a swap record in the checkpoint, no norm is changed.

    Args:
        cls: the LightningModule's class.
        path: a checkpoint file.
        map_location: as for `torch.load`.
        strict: whether all keys must match; by default the module's ``strict_loading``.
        init: arguments of ``cls`` that override the hyperparameters in the checkpoint.

    Returns:
        The module, in training mode as Lightning leaves it.

    Raises:
        UserError: the file is missing, truncated, a folder or not a checkpoint; it contains more
            than plain data (nothing in it is executed); its weights or norms do not fit the module.
    """
    if not (isinstance(cls, type) and hasattr(cls, "load_from_checkpoint")):
        raise UserError(f"cls must be the class of a LightningModule, got {cls!r}")
    path = Path(path)
    raw = _read(path)
    plain = read_record(raw, str(path))
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
        raise UserError(f"the weights in {path} do not fit {cls.__name__}: {first}") from error
    if plain is not None and (found := differences(plain, module)):
        raise UserError(f"{describe(found, str(path))}; its on_load_checkpoint changed them")
    return module


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint file of Lightning as plain data."""
    if os.path.isdir(path):  # unlike Path.is_dir, false for a path that is too long
        raise UserError(
            f"{path} is a folder, so a sharded checkpoint, which is unsupported; save whole ones "
            f"with ModelParallelStrategy(save_distributed_checkpoint=False) or "
            f"FSDPStrategy(state_dict_type='full')"
        )
    try:
        raw = read_plain(path, mmap=True)
    except UserError as error:
        if "executed" not in str(error):
            raise
        raise UserError(
            f"{error}; if you trust that class, allow it with torch.serialization.add_safe_globals"
        ) from error
    if not isinstance(raw, dict) or "state_dict" not in raw:
        raise UserError(f"{path} is not a checkpoint of Lightning: it has no state_dict")
    return raw


def _class_in(raw: dict[str, Any], cls: type) -> type:
    """Return the class that Lightning will build: the one that LightningCLI recorded, or `cls`."""
    hparams = raw.get("hyper_parameters")
    name = hparams.get("_class_path") if isinstance(hparams, dict) else None
    module, _, last = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    found = getattr(sys.modules.get(module), last, None)
    return found if isinstance(found, type) and issubclass(found, cls) else cls


@contextmanager
def _restoring(cls: type) -> Iterator[None]:
    """Make a class restore norms when a checkpoint is loaded, whatever its own hook does."""
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
