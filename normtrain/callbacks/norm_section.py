"""What checkpoints say of norms: checked against a model, before the weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from normtrain.errors import UserError
from normtrain.files import read_plain
from normtrain.surgery.record import SECTION, checked_section, describe, differences, record
from normtrain.surgery.swap_rules import shown

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
    where = place_of(module)
    if SECTION not in checkpoint:
        now = record(module)
        for name, spec in now["replaced"].items():
            raise UserError(
                f"{where} was saved without NormSwap, so with {now['was'][name]} at {name}, but "
                f"NormSwap({shown(rules)}) has put {spec} there; leave NormSwap out to go on with "
                f"it, or load its weights (load_from_checkpoint) and train without ckpt_path"
            )
        return
    section = checked_section(checkpoint[SECTION], where)
    if found := differences(section, module):
        raise UserError(
            f"{describe(found, where)} by NormSwap({shown(rules)}); go on with "
            f"NormSwap({shown(section['rules'])})"
        )


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
    if isinstance(failure, UserError) or not isinstance(failure, Exception):
        return
    try:
        section = _read_section(Path(path))
        found = [] if section is None else differences(section, module)
    except UserError:
        return
    note = f"normtrain: {describe(found, str(path))}" if found else ""
    if note and note not in getattr(failure, "__notes__", ()):
        failure.add_note(note)


def _read_section(path: Path) -> dict[str, Any] | None:
    """What a checkpoint file or sharded folder says of norms; None if it says nothing."""
    file = path / _SHARDED_META if path.is_dir() else path
    raw = read_plain(file, mmap=True)
    return checked_section(raw[SECTION], str(path)) if SECTION in raw else None


def place_of(module: nn.Module) -> str:
    """The checkpoint that is being read, as far as the module's Trainer knows."""
    trainer = getattr(module, "_trainer", None)
    path = getattr(trainer, "ckpt_path", None)
    return str(path) if path else "the checkpoint"
