"""What checkpoints say of norms: checked against a model, before the weights are loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from normtrain.errors import RunError, UserError
from normtrain.files import read_plain
from normtrain.swap.record import (
    checked_section,
    describe,
    differences,
    record,
    same_function,
    section_of,
)
from normtrain.swap.rules import shown
from normtrain.swap.sites import plain_name

# Lightning's sharded checkpoints are folders; everything but tensors is in this file.
_SHARDED_META = "meta.pt"


def refuse_mismatch(
    checkpoint: dict[str, Any], module: nn.Module, rules: list[tuple[str, str]]
) -> None:
    """Refuse a checkpoint that was trained with other norms than the module has.

    Args:
        checkpoint: as Lightning hands it to hooks.
        module: with its norms swapped.
        rules: what they were swapped by, for the message.

    Raises:
        UserError: it was; the message names both norms.
    """
    where, section = place_of(module), section_of(checkpoint)
    if section is None:
        now = record(module)
        for name, spec in now["replaced"].items():
            if not same_function(now["was"][name], spec):
                raise UserError(
                    f"{where} does not say which norms it was trained with, and NormSwap("
                    f"{shown(rules)}) has put {spec} in the place of {now['was'][name]} at {name}; "
                    f"leave NormSwap out to go on with it, or load its weights "
                    f"(load_from_checkpoint) and train without ckpt_path"
                )
        return
    section = checked_section(section, where)
    found = differences(section, module)
    if not getattr(module, "strict_loading", True):
        found = [each for each in found if not each.missing]
    if found:
        theirs = shown(section["rules"])
        again = f"; go on with NormSwap({theirs})" if theirs != shown(rules) else ""
        raise UserError(f"{describe(found, where)} by NormSwap({shown(rules)}){again}")


def fit_keys(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Give a checkpoint's weights the keys that a module wants, compiled in parts or not."""
    for key in ("state_dict", "current_model_state"):  # the latter of weight averaging
        if key in checkpoint:
            checkpoint[key] = fitted(checkpoint[key], module.state_dict().keys())


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
    found = OrderedDict(
        (key if key in known else by_plain.get(plain_name(key), key), value)
        for key, value in state.items()
    )
    about = getattr(state, "_metadata", {})  # versions of modules, by name
    vars(found)["_metadata"] = {**about, **{plain_name(name): v for name, v in about.items()}}
    return found


def explain_mismatch(trainer: Any, module: nn.Module, failure: BaseException) -> None:
    """Add to a failure which norms differ, if a strategy failed to load a checkpoint of others.

    Args:
        trainer: where it failed.
        module: with the norms it has.
        failure: a note is added to it, unless its message or a note says the same.
    """
    path = trainer.ckpt_path
    # These strategies load the weights before they ask anyone.
    if not path or not getattr(trainer.strategy, "restore_checkpoint_after_setup", False):
        return
    # torch's failure to load a sharded checkpoint is a BaseException
    if isinstance(failure, UserError | KeyboardInterrupt | SystemExit):
        return
    try:
        section = _read_section(Path(path))
        found = [] if section is None else differences(section, module)
    except (UserError, RunError, OSError):
        return
    note = f"normtrain: {describe(found, str(path))}" if found else ""
    if note and note not in getattr(failure, "__notes__", ()):
        failure.add_note(note)


def _read_section(path: Path) -> dict[str, Any] | None:
    """What a checkpoint file or sharded folder says of norms; None if it says nothing."""
    file = path / _SHARDED_META if path.is_dir() else path
    section = section_of(read_plain(file, mmap=True))
    return None if section is None else checked_section(section, str(path))


def place_of(module: nn.Module) -> str:
    """The checkpoint that is being read, as far as the module's Trainer knows."""
    trainer = getattr(module, "_trainer", None)
    path = getattr(trainer, "ckpt_path", None)
    return str(path) if path else "the checkpoint"
