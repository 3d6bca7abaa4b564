"""Compare a checkpoint's norms with a model's before the weights are loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from normtrain.errors import RunError, UserError
from normtrain.files import read_plain
from normtrain.swap.module_names import unwrapped_name
from normtrain.swap.norm_record import describe, differences, read_record, record, same_function
from normtrain.swap.requested import rules_text

# In Lightning's sharded checkpoints, which are folders, this file holds all but the tensors.
_SHARDED_META = "meta.pt"


def refuse_mismatch(
    checkpoint: dict[str, Any], module: nn.Module, rules: list[tuple[str, str]]
) -> None:
    """Check that a checkpoint was trained with the norms that a module has.

    Args:
        checkpoint: as Lightning passes it to hooks.
        module: with its norms replaced.
        rules: the rules of the swap, for the message.

    Raises:
        UserError: it was trained with other norms; the message names both.
    """
    where = checkpoint_path(module)
    plain = read_record(checkpoint, where)
    if plain is None:
        now = record(module)
        for name, spec in now["replaced"].items():
            if not same_function(now["was"][name], spec):
                raise UserError(
                    f"{where} does not record the norms it was trained with, and NormSwap("
                    f"{rules_text(rules)}) has replaced {now['was'][name]} by {spec} at {name}; "
                    f"resume without NormSwap, or load the weights (load_from_checkpoint) and "
                    f"train without ckpt_path"
                )
        return
    found = differences(plain, module)
    if not getattr(module, "strict_loading", True):
        found = [each for each in found if not each.missing]
    if found:
        saved, given = rules_text(plain["rules"]), rules_text(rules)
        hint = f"; resume with NormSwap({saved})" if saved != given else ""
        raise UserError(f"{describe(found, where)} by NormSwap({given}){hint}")


def fit_keys(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Rename a checkpoint's weights to a module's keys, whether parts are compiled or not."""
    for key in ("state_dict", "current_model_state"):  # the second is from weight averaging
        if key in checkpoint:
            checkpoint[key] = renamed(checkpoint[key], module.state_dict().keys())


def renamed(state: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a state dict with a model's keys, if they differ only by the parts wrappers add.

    Args:
        state: tensors by key.
        keys: the model's keys.

    Returns:
        The same tensors; a key that matches none of the model's is not changed.
    """
    known = set(keys)
    if state.keys() <= known:
        return state
    by_name = {unwrapped_name(key): key for key in known}
    found = OrderedDict(
        (key if key in known else by_name.get(unwrapped_name(key), key), value)
        for key, value in state.items()
    )
    versions = getattr(state, "_metadata", {})  # by module name
    unwrapped = {unwrapped_name(name): value for name, value in versions.items()}
    vars(found)["_metadata"] = {**versions, **unwrapped}
    return found


def explain_mismatch(trainer: Any, module: nn.Module, failure: BaseException) -> None:
    """Add a note to an exception if loading a checkpoint failed because its norms differ.

    Args:
        trainer: the Trainer that raised it.
        module: its model.
        failure: a note that names both norms is added to it, once.
    """
    path = trainer.ckpt_path
    # Only these strategies load the weights before they call hooks.
    if not path or not getattr(trainer.strategy, "restore_checkpoint_after_setup", False):
        return
    # torch raises a BaseException for a sharded checkpoint
    if isinstance(failure, UserError | KeyboardInterrupt | SystemExit):
        return
    try:
        plain = _read_record(Path(path))
        found = [] if plain is None else differences(plain, module)
    except (UserError, RunError, OSError):
        return
    note = f"normtrain: {describe(found, str(path))}" if found else ""
    if note and note not in getattr(failure, "__notes__", ()):
        failure.add_note(note)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the swap record of a checkpoint file or sharded folder; None if it has none."""
    file = path / _SHARDED_META if path.is_dir() else path
    return read_record(read_plain(file, mmap=True), str(path))


def checkpoint_path(module: nn.Module) -> str:
    """Return the checkpoint that the module's Trainer is reading, for messages."""
    trainer = getattr(module, "_trainer", None)
    path = getattr(trainer, "ckpt_path", None)
    return str(path) if path else "the checkpoint"
