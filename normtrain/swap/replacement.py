"""Build the norm that replaces another: its options, its parameters, its hooks."""

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
from normtrain.norms.spec import spec_of, spec_text
from normtrain.swap.facts import NormFacts
from normtrain.swap.readers import axis_from_last, axis_to_last
from normtrain.swap.requested import BATCH_NORMS, RequestedNorm

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
class Replacement:
    """A norm that is ready to replace another.

    Attributes:
        module: the new norm.
        spec: a rule that builds it again.
        notes: what was not carried over.
    """

    module: nn.Module
    spec: str
    notes: list[str] = field(default_factory=list)


def norm_spec(norm: nn.Module) -> NormSpec | None:
    """Return the spec of a registered norm; None for others, or if its options are unknown."""
    try:
        return NormSpec.parse(getattr(norm, "spec", "") or NormSpec(*spec_of(norm)))
    except (AttributeError, UserError):
        return None


def batch_norm_name(module: nn.Module) -> str | None:
    """Return the name in rules of a batch norm of this package; None for any other module."""
    for base in type(module).__mro__:
        if base.__module__ == "normtrain.norms.batch" and base.__name__.lower() in BATCH_NORMS:
            return base.__name__.lower()
    return None


def unchanged_spec(old: nn.Module, facts: NormFacts, requested: RequestedNorm) -> str | None:
    """Return the norm's spec if it already is the requested norm with these options, else None."""
    if facts.kind == "batch":
        name = batch_norm_name(old)
        k = requested.options.get("k", 10)
        same = name == requested.name and (name != "topkbatchnorm" or getattr(old, "k", None) == k)
        return str(requested) if same else None
    if facts.kind != "own":
        return None
    spec = NormSpec(requested.name, _options(old, facts, requested))
    return str(spec) if norm_spec(old) == spec else None


def incompatibility(old: nn.Module, facts: NormFacts, requested: RequestedNorm) -> str | None:
    """Return why the requested norm cannot replace this one; None if it can."""
    cls = type(old).__name__
    if facts.kind == "batch" and not requested.is_batch:
        return f"a {cls} normalizes over the batch; it can become {', '.join(BATCH_NORMS)}"
    if facts.kind == "batch" and batch_norm_name(old) is not None:
        return f"a {cls} already; only torch's BatchNorm can become {requested}"
    if requested.is_batch and facts.kind != "batch":
        return f"a {cls} normalizes each vector; {requested.name} can only replace a BatchNorm"
    return None


def _options(old: nn.Module, facts: NormFacts, requested: RequestedNorm) -> dict[str, Option]:
    """Return the options given, and those carried over: eps, and having no gain or bias."""
    known = lookup(requested.name).info.options
    chosen: dict[str, Option] = dict(requested.options)
    if "eps" in known and "eps" not in chosen and facts.eps is not None:
        chosen["eps"] = float(facts.eps)
    # Having none is only carried over from a norm that can have one: torch's RMSNorm has no bias.
    own = norm_spec(old) if facts.kind == "own" else None
    own_options = {} if own is None else lookup(own.name).info.options
    optional = {
        "bias": facts.kind == "layer" or own_options.get("bias") is True,
        "affine": facts.kind in ("layer", "rms") or "affine" in own_options,
    }
    missing = {"bias": facts.bias is None, "affine": facts.weight is None}
    for name in ("bias", "affine"):
        if name in known and name not in chosen and optional[name] and missing[name]:
            chosen[name] = False
    return chosen


def build_replacement(
    old: nn.Module,
    facts: NormFacts,
    requested: RequestedNorm,
    init: str,
    neighbor: torch.Tensor | None,
    new_parameters: dict[int, nn.Parameter],
) -> Replacement:
    """Build the norm that replaces another; the old one is not changed.

    Args:
        old: the norm in the model.
        facts: what it computes.
        requested: the norm that replaces it.
        init: ``"keep"`` keeps the parameters that mean the same, ``"fresh"`` none.
        neighbor: a parameter of the same parent, for the device and dtype of a norm without
            parameters.
        new_parameters: new parameters by the id of the parameter that each replaces, so that
            parameters stay tied; added to.

    Returns:
        The replacement, in the old norm's mode, on its device and of its dtype.

    Raises:
        UserError: the requested norm cannot be built here.
    """
    if requested.is_batch:
        return _build_batch_replacement(old, requested, init, new_parameters)
    spec = NormSpec(requested.name, _options(old, facts, requested))
    like = next((p for p in (facts.weight, facts.bias, neighbor) if p is not None), None)
    where: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    new = build_norm(spec, facts.dim, **where)
    if like is not None:  # a third party's norm may take neither
        new.to(**where)
    # A rule without eps would carry over the eps of whatever norm it is applied to later.
    explicit = {**requested.options, **spec.options}
    if (eps := lookup(spec.name).info.options.get("eps")) is not None:
        explicit.setdefault("eps", eps)
    result = Replacement(new.train(old.training), spec_text(spec.name, explicit))
    if facts.note:
        result.notes.append(facts.note)
    _transfer_parameters(result, old, facts, init, new_parameters)
    return result


def _transfer_parameters(
    result: Replacement,
    old: nn.Module,
    facts: NormFacts,
    init: str,
    new_parameters: dict[int, nn.Parameter],
) -> None:
    """Give the new norm the old norm's parameters that mean the same in it."""
    new = result.module
    sources = dict(old._parameters)
    if facts.kind != "own":  # other packages may use other names
        sources = {"weight": facts.weight, "bias": facts.bias}
    frozen = _is_frozen(old)
    for name, parameter in new.named_parameters():
        source = sources.get(name)
        if source is None or not _same_meaning(name, source, parameter, old, new):
            parameter.requires_grad_(not frozen)
            result.notes.append(f"{name} is new")
        elif init == "keep" and not (facts.offset and name == "weight"):
            new._parameters[name] = source
        else:
            if id(source) not in new_parameters:
                changed = _changed_parameter(source, parameter, facts.offset, init)
                new_parameters[id(source)] = changed
            new._parameters[name] = new_parameters[id(source)]
    kept = {name for name, _ in new.named_parameters()}
    dropped = [name for name, p in sources.items() if p is not None and name not in kept]
    result.notes += [f"{name} dropped" for name in dropped]
    if init == "fresh":
        return
    if facts.offset and facts.weight is not None and "weight" in kept:
        half = facts.weight.dtype in (torch.float16, torch.bfloat16)
        rounded = f", rounded to {facts.weight.dtype}".replace("torch.", "") if half else ""
        result.notes.append(f"weight is 1 + the old one{rounded}")
    elif facts.cast == "input" and facts.weight is not None and facts.weight.dtype.itemsize == 2:
        result.notes.append("rounds once, after the gain; the old norm also rounded before it")


def _same_meaning(
    name: str, source: nn.Parameter, parameter: nn.Parameter, old: nn.Module, new: nn.Module
) -> bool:
    """Return whether a parameter is a gain, bias or slope of the same shape in both norms."""
    # The one number that ScaleNorm learns is a length, also if dim is 1.
    lengths = isinstance(old, ScaleNorm) != isinstance(new, ScaleNorm)
    return source.shape == parameter.shape and not (name == "weight" and lengths)


def _changed_parameter(
    source: nn.Parameter, fresh: nn.Parameter, offset: float, init: str
) -> nn.Parameter:
    """Return a parameter with a new value and the ``requires_grad`` of the one it replaces."""
    with torch.no_grad():
        data = (
            fresh.detach().to(source.device, source.dtype) if init == "fresh" else source + offset
        )
    return nn.Parameter(data, requires_grad=source.requires_grad)


def _is_frozen(old: nn.Module) -> bool:
    parameters = list(old.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _build_batch_replacement(
    old: nn.Module, requested: RequestedNorm, init: str, new_parameters: dict[int, nn.Parameter]
) -> Replacement:
    """Build what replaces a batch norm, with `replace_batchnorm`."""
    holder = nn.Module()
    # replace_batchnorm refuses hooks, so it gets a shallow copy without; `move_hooks` comes later.
    bare = object.__new__(type(old))
    vars(bare).update(vars(old))
    for name in _HOOKS:
        vars(bare)[name] = OrderedDict()
    holder.norm = bare
    k = requested.options.get("k", 10)
    assert isinstance(k, int)
    try:
        kind = BATCH_NORMS[requested.name]
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
            new_parameters.setdefault(id(source), new._parameters[name])  # type: ignore[arg-type]
            new._parameters[name] = new_parameters[id(source)]
    has_k = requested.name == "topkbatchnorm"
    return Replacement(new, spec_text(requested.name, {"k": k} if has_k else {}))


def move_hooks(old: nn.Module, new: nn.Module, channels_first: bool) -> int:
    """Move a norm's hooks to its replacement; their handles stay valid.

    Args:
        old: keeps copies of the hooks.
        new: gets the hooks.
        channels_first: whether two more hooks, innermost, move axis 1 to the end and back.

    Returns:
        The number of hooks moved.
    """
    count = 0
    for name in _HOOKS:
        hooks: Any = vars(old)[name]
        vars(old)[name] = OrderedDict(hooks)
        # Such a hook holds a weak reference to its module.
        for key, hook in hooks.items():
            if isinstance(hook, _WrappedHook) and hook.with_module:
                hooks[key] = _WrappedHook(hook.hook, new)
        count += 0 if name.endswith(("_with_kwargs", "_always_called")) else len(hooks)
        hooks.update(vars(new)[name])  # a third party's norm may have hooks of its own
        vars(new)[name] = hooks
    vars(new)["_is_full_backward_hook"] = vars(old)["_is_full_backward_hook"]
    if channels_first and axis_to_last not in new._forward_pre_hooks.values():
        new.register_forward_pre_hook(axis_to_last)
        new.register_forward_hook(axis_from_last, prepend=True)
    return count
