"""Which norms a model has and whose place they took, in plain types, for checkpoints.

A checkpoint's ``["normtrain"]`` holds what `record` gives. Weights alone can't tell norms apart:
RMSNorm and LayerNorm without bias have the same keys and shapes and load each other silently.
"""

from __future__ import annotations

import glob
from typing import Any, NamedTuple

from torch import nn

from normtrain.errors import UserError
from normtrain.norms import NormSpec
from normtrain.norms.registry import name_key
from normtrain.swap.replacement import batch_name, norm_spec
from normtrain.swap.report import VERSION, SwapReport
from normtrain.swap.rules import BATCH_NORMS, Wanted
from normtrain.swap.sites import named_norms

SECTION = "normtrain"
_MARK = "_normtrain_swap"
_NONE = "no norm"


class Difference(NamedTuple):
    """A place where a checkpoint was trained with another norm than the model has.

    Attributes:
        name: the norm's name in the model.
        saved: what the checkpoint was trained with there.
        found: what the model has.
        restorable: whether the model has what a swap had replaced, so that the same swap makes the
            two equal.
    """

    name: str
    saved: str
    found: str
    restorable: bool

    @property
    def missing(self) -> bool:
        """Whether one of the two has no norm there."""
        return _NONE in (self.saved, self.found)


def note_swap(old: nn.Module, new: nn.Module, spec: str) -> None:
    """Write on a new norm which rule builds it, and whose place it took in the first place."""
    _, was = getattr(old, _MARK, ("", None))
    setattr(new, _MARK, (spec, was or _label(old)))


def is_swapped(norm: nn.Module) -> bool:
    """Whether a swap put this norm where it is."""
    return hasattr(norm, _MARK)


def same_function(was: str, spec: str) -> bool:
    """Whether a swap changed nothing but the code: torch's LayerNorm or RMSNorm for our own."""
    names = {"torch.nn.LayerNorm": "layernorm", "torch.nn.RMSNorm": "rmsnorm"}
    return names.get(was) == spec.partition(":")[0] and "eps_mode=outside" not in spec


def write_metadata(
    module: nn.Module, state: dict[str, Any], prefix: str, local: dict[str, Any]
) -> None:
    """A hook for state dicts: their metadata says which norms the module has.

    Metadata is saved with the weights and ignored when they are loaded.
    """
    local[SECTION] = record(module)


def section_of(checkpoint: dict[str, Any]) -> Any:
    """What a checkpoint says of norms, beside its weights or in their metadata; None if nothing."""
    if SECTION in checkpoint:
        return checkpoint[SECTION]
    metadata = getattr(checkpoint.get("state_dict"), "_metadata", None) or {}
    return metadata.get("", {}).get(SECTION)


def record(model: nn.Module, rules: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    """What a checkpoint keeps of a model's norms: dicts, lists, strings and a number only.

    Args:
        model: with norms swapped or not.
        rules: those that were applied, pairs of a pattern and a norm; by default the swapped norms
            one by one.

    Returns:
        ``version``; ``rules``, a list of pairs; ``replaced``, the swapped norms by name, each as a
        rule that builds it; ``was``, what they took the place of; ``kept``, all other norms. A norm
        that hangs in several places goes by its first name.
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


def checked_section(section: Any, where: str) -> dict[str, Any]:
    """A checkpoint's section, if it is one that `record` wrote.

    Args:
        section: what the checkpoint holds under ``"normtrain"``.
        where: the checkpoint, for messages.

    Raises:
        UserError: it is not, or a newer normtrain wrote it.
    """
    if isinstance(section, dict) and "recipe" in section:
        raise UserError(
            f"{where} is of a run of normtrain's own; evaluate, translate and fit --resume take it"
        )
    version = section.get("version") if isinstance(section, dict) else None
    if version != VERSION:
        raise UserError(
            f"the norms in {where} are written in version {version!r}, and this normtrain reads "
            f"{VERSION}; use the normtrain that wrote it, or a newer one"
        )
    for key in ("replaced", "was", "kept"):
        names = section.get(key)
        plain = isinstance(names, dict) and all(
            isinstance(t, str) for p in names.items() for t in p
        )
        if not plain or key == "was" and names.keys() != section["replaced"].keys():
            raise UserError(f"the norms in {where} are damaged ({key}); use another checkpoint")
    return section


def differences(section: dict[str, Any], model: nn.Module) -> list[Difference]:
    """Where a checkpoint's norms are others than the model's, by the names of either.

    Foreign norms are told apart by their class's name, and only from norms of this package.
    """
    now = record(model)
    then_all = {**section["kept"], **section["replaced"]}
    now_all = {**now["kept"], **now["replaced"]}
    pairs = [(name, name) for name in sorted(then_all.keys() & now_all.keys())]
    gone = [name for name in then_all if name not in now_all]
    more = [name for name in now_all if name not in then_all]
    if len(gone) == len(more):  # modules that were renamed
        pairs += zip(gone, more, strict=True)
    else:
        pairs += [(name, "") for name in gone] + [("", name) for name in more]
    found = []
    for old, name in pairs:
        saved, have = then_all.get(old, _NONE), now_all.get(name, _NONE)
        ours = old in section["replaced"] or name in now["replaced"]
        if _same(saved, have) or not (ours or _is_spec(saved) or _is_spec(have)):
            continue
        was = section["was"].get(old, "")
        found.append(Difference(name or old, saved, have, _same(was, have)))
    return found


def describe(found: list[Difference], where: str) -> str:
    """A clause that names both norms of the first difference, and how many more there are."""
    first = found[0]
    rest = f" (and {len(found) - 1} more norms differ)" if found[1:] else ""
    return (
        f"{where} was saved with {first.saved} at {first.name}, but the model has {first.found} "
        f"there{rest}"
    )


def restore(section: dict[str, Any], model: nn.Module, where: str) -> SwapReport | None:
    """Swap a model's norms to those of a checkpoint, if they are others.

    Args:
        section: the checkpoint's norms, checked.
        model: has the norms that it was built with, or those of the checkpoint already.
        where: the checkpoint, for messages.

    Returns:
        What was replaced; None if nothing had to be.

    Raises:
        UserError: a norm is another than the one that was saved and than the one it had replaced.
    """
    from normtrain.swap.swap import swap_norms

    found = differences(section, model)
    if not found:
        return None
    if wrong := [each for each in found if not each.restorable]:
        raise UserError(
            f"{describe(wrong, where)}; build the model with the norms that the checkpoint was "
            f"trained with"
        )
    for each in found:
        _check_known(each.saved, where)
    try:
        report = swap_norms(model, [(glob.escape(each.name), each.saved) for each in found])
    except UserError as error:
        raise UserError(f"{describe(found, where)}, and can't be given it: {error}") from error
    if left := differences(section, model):
        raise UserError(f"{describe(left, where)}, and can't be given it")
    return report


def _check_known(spec: str, where: str) -> None:
    try:
        Wanted.parse(spec)
    except UserError as error:
        raise UserError(
            f"{where} was saved with {spec}, which can't be built here: {error}; import the "
            f"package that registers it first"
        ) from None


def _label(norm: nn.Module) -> str:
    """The spec of a norm of this package, the class's name of any other."""
    own = norm_spec(norm)
    if own is not None:
        return str(own)
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return f"torch.nn.{type(norm).__name__}"
    # Not by its module, which is another name where a script is run and where it is imported.
    return batch_name(norm) or f"class {type(norm).__name__}"


def _is_spec(label: str) -> bool:
    """Whether a label is the spec of a norm that is known here."""
    try:
        Wanted.parse(label)
    except UserError:
        return False
    return True


def _same(one: str, other: str) -> bool:
    """Whether two labels mean the same norm, defaults written out or not."""
    if one == other:
        return True
    if any(name_key(label.partition(":")[0]) in BATCH_NORMS for label in (one, other)):
        return False
    return _is_spec(one) and _is_spec(other) and NormSpec.parse(one) == NormSpec.parse(other)
