"""One norm in the place of another: its options, its parameters, its hooks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _WrappedHook

from normtrain.errors import UserError
from normtrain.norms import NormSpec, ScaleNorm, build_norm, replace_batchnorm
from normtrain.norms.registry import Option, lookup
from normtrain.norms.spec import spec_of
from normtrain.swap.readers import NormFacts, axis_from_last, axis_to_last
from normtrain.swap.rules import BATCH_NORMS, Wanted, spec_text

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass
class Successor:
    """A norm ready to take another's place.

    Attributes:
        module: the new norm.
        spec: a rule that builds it again.
        notes: what was not carried over.
    """

    module: nn.Module
    spec: str
    notes: list[str] = field(default_factory=list)


def already(old: nn.Module, facts: NormFacts, wanted: Wanted) -> str | None:
    """The spec of a norm that is the wanted one with the same options; None if it is another."""
    if facts.kind == "batch":
        name = batch_name(old)
        k = wanted.given.get("k", 10)
        same = name == wanted.name and (name != "topkbatchnorm" or getattr(old, "k", None) == k)
        return str(wanted) if same else None
    if facts.kind != "own":
        return None
    spec = NormSpec(wanted.name, _options(old, facts, wanted))
    return str(spec) if norm_spec(old) == spec else None


def norm_spec(norm: nn.Module) -> NormSpec | None:
    """The spec of a registered norm; None for others, and where options can't be told."""
    try:
        return NormSpec.parse(getattr(norm, "spec", "") or NormSpec(*spec_of(norm)))
    except (AttributeError, UserError):
        return None


def misfit(old: nn.Module, facts: NormFacts, wanted: Wanted) -> str | None:
    """Why the wanted norm is none for this place; None if it fits."""
    kind = type(old).__name__
    if facts.kind == "batch" and not wanted.is_batch:
        return f"a {kind} norms over the batch; in its place go {', '.join(BATCH_NORMS)}"
    if facts.kind == "batch" and batch_name(old) is not None:
        return f"a {kind} already; from torch's BatchNorm only can {wanted} go on"
    if wanted.is_batch and facts.kind != "batch":
        return f"a {kind} norms each row by itself; {wanted.name} goes in BatchNorm's place"
    return None


def batch_name(module: nn.Module) -> str | None:
    """What a batch norm of this package is called in rules; None for any other module."""
    for base in type(module).__mro__:
        if base.__module__ == "normtrain.norms.batch" and base.__name__.lower() in BATCH_NORMS:
            return base.__name__.lower()
    return None


def _options(old: nn.Module, facts: NormFacts, wanted: Wanted) -> dict[str, Option]:
    """The options asked for, and those carried over: eps, and doing without gain or bias."""
    known = lookup(wanted.name).info.options
    chosen: dict[str, Option] = dict(wanted.given)
    if "eps" in known and "eps" not in chosen and facts.eps is not None:
        chosen["eps"] = float(facts.eps)
    # Only what a norm could have had is a choice: no RMSNorm of torch has a bias.
    own = norm_spec(old) if facts.kind == "own" else None
    had = {} if own is None else lookup(own.name).info.options
    could = {"bias": facts.kind == "layer" or had.get("bias") is True}
    could["affine"] = facts.kind in ("layer", "rms") or "affine" in had
    missing = {"bias": facts.bias is None, "affine": facts.weight is None}
    for name in ("bias", "affine"):
        if name in known and name not in chosen and could[name] and missing[name]:
            chosen[name] = False
    return chosen


def succeed(
    old: nn.Module,
    facts: NormFacts,
    wanted: Wanted,
    init: str,
    near: torch.Tensor | None,
    made: dict[int, nn.Parameter],
) -> Successor:
    """Build the norm that takes another's place; the other is not changed.

    Args:
        old: the norm in the model.
        facts: what it computes.
        wanted: what to put there.
        init: ``"keep"`` takes over the parameters that mean the same, ``"fresh"`` none.
        near: a parameter of the model beside the norm, for one that has none of its own.
        made: new parameters by the id of those they stand for, so that ties hold; added to.

    Returns:
        The successor, in the old norm's mode, on its device and of its dtype.

    Raises:
        UserError: the wanted norm can't be built for this place.
    """
    if wanted.is_batch:
        return _batch_successor(old, wanted, init, made)
    spec = NormSpec(wanted.name, _options(old, facts, wanted))
    place = next((p for p in (facts.weight, facts.bias, near) if p is not None), None)
    where: dict[str, Any] = {} if place is None else {"device": place.device, "dtype": place.dtype}
    new = build_norm(spec, facts.dim, **where)
    if place is not None:  # a third party's may take neither
        new.to(**where)
    # A rule without eps would carry over another model's.
    explicit = {**wanted.given, **spec.options}
    if (eps := lookup(spec.name).info.options.get("eps")) is not None:
        explicit.setdefault("eps", eps)
    result = Successor(new.train(old.training), spec_text(spec.name, explicit))
    if facts.note:
        result.notes.append(facts.note)
    _take_over(result, old, facts, init, made)
    return result


def _take_over(
    result: Successor, old: nn.Module, facts: NormFacts, init: str, made: dict[int, nn.Parameter]
) -> None:
    """Give the successor the parameters of the old norm that mean the same in it."""
    new = result.module
    theirs = dict(old._parameters)
    if facts.kind != "own":  # a foreign norm's may go by other names
        theirs = {"weight": facts.weight, "bias": facts.bias}
    frozen = _is_frozen(old)
    for name, parameter in new.named_parameters():
        source = theirs.get(name)
        if source is None or not _same_meaning(name, source, parameter, old, new):
            parameter.requires_grad_(not frozen)
            result.notes.append(f"{name} is new")
        elif init == "keep" and not (facts.offset and name == "weight"):
            new._parameters[name] = source
        else:
            if id(source) not in made:
                made[id(source)] = _stand_in(source, parameter, facts.offset, init)
            new._parameters[name] = made[id(source)]
    kept = {name for name, _ in new.named_parameters()}
    lost = [n for n, p in theirs.items() if p is not None and n not in kept]
    result.notes += [f"{name} dropped" for name in lost]
    if init == "fresh":
        return
    if facts.offset and facts.weight is not None and "weight" in kept:
        half = facts.weight.dtype in (torch.float16, torch.bfloat16)
        rounded = f", rounded to {facts.weight.dtype}".replace("torch.", "") if half else ""
        result.notes.append(f"weight is 1 + the old one{rounded}")
    elif facts.cast == "input" and facts.weight is not None and facts.weight.dtype.itemsize == 2:
        result.notes.append("rounds once, after the gain, where the old one rounded before it too")


def _same_meaning(
    name: str, source: nn.Parameter, parameter: nn.Parameter, old: nn.Module, new: nn.Module
) -> bool:
    """Whether a parameter plays the same part in both: a gain, a bias, a slope of its shape."""
    # The one number that ScaleNorm learns is a length, also where there is one feature.
    lengths = isinstance(old, ScaleNorm) != isinstance(new, ScaleNorm)
    return source.shape == parameter.shape and not (name == "weight" and lengths)


def _stand_in(source: nn.Parameter, fresh: nn.Parameter, offset: float, init: str) -> nn.Parameter:
    """A parameter with a value of its own, as trainable as the one it stands for."""
    with torch.no_grad():
        data = (
            fresh.detach().to(source.device, source.dtype) if init == "fresh" else source + offset
        )
    return nn.Parameter(data, requires_grad=source.requires_grad)


def _is_frozen(old: nn.Module) -> bool:
    parameters = list(old.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _batch_successor(
    old: nn.Module, wanted: Wanted, init: str, made: dict[int, nn.Parameter]
) -> Successor:
    """A batch norm's successor, through `replace_batchnorm`."""
    holder = nn.Module()
    # A twin without hooks, which that function refuses: the hooks follow later, as all others do.
    twin = object.__new__(type(old))
    vars(twin).update(vars(old))
    for name in _HOOKS:
        vars(twin)[name] = OrderedDict()
    holder.norm = twin
    k = wanted.given.get("k", 10)
    assert isinstance(k, int)
    try:
        kind = BATCH_NORMS[wanted.name]
        replace_batchnorm(holder, kind, k=k if kind == "topk" else None)
    except UserError as error:
        raise UserError(str(error).removeprefix("norm is ")) from None
    new = holder.norm
    assert isinstance(new, nn.Module)
    if init == "fresh":
        sources = dict(new.named_parameters())
        for name, source in sources.items():
            new._parameters[name] = nn.Parameter(torch.empty_like(source), source.requires_grad)
        for name, buffer in new.named_buffers():
            new._buffers[name] = torch.empty_like(buffer)
        new.reset_parameters()  # type: ignore[operator]
        for name, source in sources.items():
            made.setdefault(id(source), new._parameters[name])  # type: ignore[arg-type]
            new._parameters[name] = made[id(source)]
    return Successor(new, spec_text(wanted.name, {"k": k} if wanted.name[0] == "t" else {}))


def move_hooks(old: nn.Module, new: nn.Module, channels_first: bool) -> int:
    """Give the new norm the old one's hooks, whose handles go on working.

    Args:
        old: keeps copies of the hooks, for whoever still holds it.
        new: runs them around the norm.
        channels_first: whether two hooks, innermost, bring axis 1 to the end and back.

    Returns:
        How many hooks moved.
    """
    count = 0
    for name in _HOOKS:
        hooks: Any = vars(old)[name]
        vars(old)[name] = OrderedDict(hooks)
        # A hook of this kind knows its module by a weak reference.
        for key, hook in hooks.items():
            if isinstance(hook, _WrappedHook) and hook.with_module:
                hooks[key] = _WrappedHook(hook.hook, new)
        count += 0 if name.endswith(("_with_kwargs", "_always_called")) else len(hooks)
        hooks.update(vars(new)[name])  # a third party's norm may have some of its own
        vars(new)[name] = hooks
    vars(new)["_is_full_backward_hook"] = vars(old)["_is_full_backward_hook"]
    if channels_first and axis_to_last not in new._forward_pre_hooks.values():
        new.register_forward_pre_hook(axis_to_last)
        new.register_forward_hook(axis_from_last, prepend=True)
    return count
