"""Record in a checkpoint which norms its model has, in plain types.

``checkpoint["normtrain"]["swap"]`` holds what `record` returns. Weights do not tell norms apart:
RMSNorm and LayerNorm without bias have the same keys and shapes and load each other silently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from normtrain.errors import UserError
from normtrain.norms import NormSpec
from normtrain.norms.registry import name_key
from normtrain.swap.replacement import batch_norm_name, norm_spec
from normtrain.swap.requested import BATCH_NORMS, RequestedNorm
from normtrain.swap.sites import named_norms

SECTION, KEY = "normtrain", "swap"
VERSION = 2
_MARK = "_normtrain_swap"
_NONE = "no norm"


class Difference(NamedTuple):
    """A module whose norm is another in a checkpoint than in the model.

    Attributes:
        name: the norm's name in the model.
        saved: the norm that the checkpoint was trained with.
        found: the norm that the model has.
        restorable: whether the model has what a swap had replaced, so that the same swap makes the
            two equal.
    """

    name: str
    saved: str
    found: str
    restorable: bool

    @property
    def missing(self) -> bool:
        """Whether only one of the two has a norm there."""
        return _NONE in (self.saved, self.found)


def mark_replaced(old: nn.Module, new: nn.Module, spec: str) -> None:
    """Store on a new norm the rule that builds it and the norm that it replaced originally."""
    _, was = getattr(old, _MARK, ("", None))
    setattr(new, _MARK, (spec, was or _label(old)))


def is_swapped(norm: nn.Module) -> bool:
    """Return whether a norm was put in by `swap_norms`."""
    return hasattr(norm, _MARK)


def same_function(was: str, spec: str) -> bool:
    """Return whether a norm only replaced torch's norm of the same formula."""
    names = {"torch.nn.LayerNorm": "layernorm", "torch.nn.RMSNorm": "rmsnorm"}
    return names.get(was) == spec.partition(":")[0] and "eps_mode=outside" not in spec


def record(model: nn.Module, rules: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Return what a checkpoint keeps of a model's norms: plain types only.

    Args:
        model: with norms replaced or not.
        rules: the (pattern, norm) pairs that were applied; by default the replaced norms by name.

    Returns:
        ``version``; ``rules``, a list of pairs; ``replaced``, the rule that builds each replaced
        norm, by name; ``was``, what each replaced; ``kept``, all other norms. A norm used at
        several places has its first name.
    """
    replaced: dict[str, str] = {}
    was: dict[str, str] = {}
    kept: dict[str, str] = {}
    for name, norm in named_norms(model):
        mark = getattr(norm, _MARK, None)
        if mark is None:
            kept[name] = _label(norm)
        else:
            replaced[name], was[name] = mark
    pairs = list(replaced.items()) if rules is None else rules
    plain = [[pattern, spec] for pattern, spec in pairs]
    return {"version": VERSION, "rules": plain, "replaced": replaced, "was": was, "kept": kept}


def write_record(checkpoint: dict[str, Any], plain: dict[str, Any]) -> None:
    """Put a record into a checkpoint."""
    checkpoint.setdefault(SECTION, {})[KEY] = plain


def has_record(checkpoint: dict[str, Any]) -> bool:
    """Return whether a record was written into a checkpoint."""
    return KEY in checkpoint.get(SECTION, {})


def write_metadata(
    module: nn.Module, state: dict[str, Any], prefix: str, local: dict[str, Any]
) -> None:
    """Put a record into a state dict's metadata, which loading weights ignores; a hook."""
    write_record(local, record(module))


def read_record(checkpoint: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return a checkpoint's record, from beside its weights or from their metadata.

    Args:
        checkpoint: as Lightning hands it to hooks, or as it was loaded.
        where: the checkpoint, for messages.

    Returns:
        The record in the present version; None if the checkpoint has none.

    Raises:
        UserError: a run of normtrain wrote the checkpoint, or the record is damaged or newer.
    """
    section = checkpoint.get(SECTION)
    if SECTION not in checkpoint:
        metadata = getattr(checkpoint.get("state_dict"), "_metadata", None) or {}
        section = metadata.get("", {}).get(SECTION)
        if section is None:
            return None
    if isinstance(section, dict) and KEY not in section and "recipe" in section:
        raise UserError(
            f"{where} was written by normtrain fit; use normtrain evaluate, translate or "
            f"fit --resume"
        )
    return _checked(_upgraded(section), where)


def _upgraded(section: Any) -> Any:
    """Return the record in a section; version 1 had its fields in the section itself."""
    if not isinstance(section, dict) or KEY in section:
        return section[KEY] if isinstance(section, dict) else section
    return {**section, "version": VERSION} if section.get("version") == 1 else section


def _checked(plain: Any, where: str) -> dict[str, Any]:
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != VERSION:
        raise UserError(
            f"the swap record in {where} has version {version!r}, expected {VERSION}; use the "
            f"normtrain that wrote it, or a newer one"
        )
    for key in ("replaced", "was", "kept"):
        names = plain.get(key)
        valid = isinstance(names, dict) and all(
            isinstance(text, str) for pair in names.items() for text in pair
        )
        if not valid or key == "was" and names.keys() != plain["replaced"].keys():
            raise UserError(
                f"the swap record in {where} is damaged ({key}); use another checkpoint"
            )
    return plain


def differences(plain: dict[str, Any], model: nn.Module) -> list[Difference]:
    """List where a checkpoint's norms are others than the model's.

    Norms of other packages are compared by class name, and only with norms of this package.

    Args:
        plain: the checkpoint's record.
        model: the model to compare.
    """
    now = record(model)
    saved_all = {**plain["kept"], **plain["replaced"]}
    found_all = {**now["kept"], **now["replaced"]}
    pairs = [(name, name) for name in sorted(saved_all.keys() & found_all.keys())]
    gone = [name for name in saved_all if name not in found_all]
    more = [name for name in found_all if name not in saved_all]
    if len(gone) == len(more):  # modules that were renamed
        pairs += zip(gone, more, strict=True)
    else:
        pairs += [(name, "") for name in gone] + [("", name) for name in more]
    different = []
    for old, name in pairs:
        saved, found = saved_all.get(old, _NONE), found_all.get(name, _NONE)
        swapped = old in plain["replaced"] or name in now["replaced"]
        if _same(saved, found) or not (swapped or _is_spec(saved) or _is_spec(found)):
            continue
        was = plain["was"].get(old, "")
        different.append(Difference(name or old, saved, found, _same(was, found)))
    return different


def describe(found: list[Difference], where: str) -> str:
    """Return a clause that names both norms of the first difference, and how many more differ."""
    first = found[0]
    rest = f" (and {len(found) - 1} more norms differ)" if found[1:] else ""
    return (
        f"{where} was saved with {first.saved} at {first.name}, but the model has {first.found} "
        f"there{rest}"
    )


def _label(norm: nn.Module) -> str:
    """Return the spec of a norm of this package, or the class name of any other."""
    own = norm_spec(norm)
    if own is not None:
        return str(own)
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return f"torch.nn.{type(norm).__name__}"
    # Without its module, which is "__main__" in a script and another name in an import.
    return batch_norm_name(norm) or f"class {type(norm).__name__}"


def _is_spec(label: str) -> bool:
    """Return whether a label is the spec of a known norm."""
    try:
        RequestedNorm.parse(label)
    except UserError:
        return False
    return True


def _same(one: str, other: str) -> bool:
    """Return whether two labels mean the same norm, defaults written out or not."""
    if one == other:
        return True
    if any(name_key(label.partition(":")[0]) in BATCH_NORMS for label in (one, other)):
        return False
    return _is_spec(one) and _is_spec(other) and NormSpec.parse(one) == NormSpec.parse(other)
