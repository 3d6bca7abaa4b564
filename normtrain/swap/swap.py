"""Replace the norms of any model in place, so that everything that held them stays valid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from normtrain.errors import UserError
from normtrain.swap import source_scan
from normtrain.swap.facts import NormFacts
from normtrain.swap.fast_path import check_can_disable, disable_fast_path
from normtrain.swap.norm_record import mark_replaced
from normtrain.swap.replacement import (
    Replacement,
    build_replacement,
    incompatibility,
    move_hooks,
    unchanged_spec,
)
from normtrain.swap.report import Replaced, SwapReport
from normtrain.swap.requested import (
    RequestedNorm,
    SwapRules,
    parse_swap_rules,
    plain_pairs,
    requested_for,
    unmatched_patterns,
)
from normtrain.swap.sites import Site, enclosing_metric, find_sites

INITS = ("keep", "fresh")
Filter = Callable[[nn.Module, str], bool]

_WRAPPERS = {
    "DistributedDataParallel": "torch.nn.parallel",
    "FullyShardedDataParallel": "torch.distributed.fsdp",
    "FSDPModule": "torch.distributed.fsdp",
    "DataParallel": "torch.nn.parallel",
}

# Parameters that swaps removed from models, as long as something else holds them.
_removed = WeakIdKeyDictionary()


@dataclass
class _Change:
    """A norm that will be replaced, and its replacement."""

    site: Site
    facts: NormFacts
    replacement: Replacement


def swap_norms(
    model: nn.Module,
    rules: Any,
    *,
    init: str = "keep",
    filter_fn: Filter | None = None,
    strict: bool = True,
) -> SwapReport:
    """Replace the norms of a model in place.

    Call it before the optimizer is created and before the model is wrapped for several devices.
    Norms are found by class: torch's LayerNorm, RMSNorm and BatchNorm, this package's, and those
    with a reader (`register_reader`). Everything is checked before anything is changed.

    A norm used at several places stays one norm. The new norm has the old one's device, dtype,
    mode, hooks and ``requires_grad``, its eps unless the rule gives one, and the same parameter
    objects where shape and meaning agree, so that ties and optimizers stay valid. A LayerNorm
    without bias becomes a norm without bias. Under autocast on CUDA, torch's LayerNorm returns
    float32; the norms of this package return the dtype of their input. A model that defines
    ``norms_replaced()`` has it called at the end.

    Args:
        model: any module that contains norms.
        rules: a norm for all of them (``"rmsnorm"``, ``"prmsnorm:p=0.125"``, a `NormSpec`, a
            `NormRules`), or a list of (pattern, norm) pairs over module names: ``*`` matches dots
            too, the last match wins, and norms that no pattern matches are skipped. A BatchNorm
            can become ``"l1batchnorm"``, ``"linfbatchnorm"`` or ``"topkbatchnorm:k=10"`` only.
        init: ``"keep"`` keeps gain, bias and the like where they mean the same, and the report
            names what could not be kept; ``"fresh"`` initializes all of them.
        filter_fn: called with each norm and its name; norms for which it is false are skipped.
        strict: whether replacing nothing, and a pattern that matches no norm, is an error.

    Returns:
        What was replaced, what was skipped and why, and what cannot be reached.

    Raises:
        UserError: the rules or options are wrong; nothing is replaced; the model is wrapped or
            sharded; a norm's parameters or forward are patched; other code reads an attribute that
            the new norm lacks.
        RunError: this version of torch would compute LayerNorm in place of the new norm.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a torch.nn.Module, got {model!r}")
    if init not in INITS:
        raise UserError(f"init must be 'keep' or 'fresh', got {init!r}")
    parsed = parse_swap_rules(rules)
    report = SwapReport(rules=plain_pairs(parsed))
    sites = find_sites(model)
    chosen = _choose(model, sites, parsed, filter_fn, report)
    # A wrapped or sharded model is fine if its norms were replaced before.
    done = not chosen and any(why.startswith("already") for _, why in report.skipped)
    if not done:
        _check_reachable(model, [site for site, _, _ in chosen])
    unmatched = (
        unmatched_patterns(parsed, [n for site in sites for n in site.names]) if sites else []
    )
    if strict and unmatched:
        raise UserError("; ".join(unmatched))
    report.notes += unmatched
    changes = _plan(chosen, init)
    report.notes += source_scan.functional_norms(model, [site.module for site in sites])
    if strict and not changes and not done:
        raise UserError(_nothing_replaced(model, report))
    _check_outside_reads(model, changes, report)
    check_can_disable(model, [change.site.module for change in changes])
    _apply(model, changes, report)
    return report


def _check_reachable(model: nn.Module, chosen: list[Site]) -> None:
    """Check that nothing else holds the parameters of the norms to replace.

    Args:
        model: the model.
        chosen: the norms that would be replaced; if there are none, the whole model is checked.

    Raises:
        UserError: a module around them is scripted, wrapped for several devices, or sharded.
    """
    norms = {id(site.module) for site in chosen}
    for name, module in model.named_modules():
        if not chosen or any(id(inner) in norms for inner in module.modules()):
            _check_wrapper(module, name)
    parents = [parent for site in chosen for parent, _ in site.parents] if chosen else [model]
    for parent in dict.fromkeys(parents):
        for name, parameter in parent.named_parameters():
            if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
                raise UserError(
                    f"{name} is sharded already (DTensor), so a new norm would train separately on "
                    f"each rank; call swap_norms before fully_shard, in configure_model for "
                    f"Lightning"
                )


def _check_wrapper(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{name or 'the model'} is scripted, so its norms cannot be replaced; call swap_norms "
            f"before scripting"
        )
    for base in type(module).__mro__:
        if base.__module__.startswith(_WRAPPERS.get(base.__name__, "\0")):
            where = f"{name} is" if name else "the model is"
            raise UserError(
                f"{where} wrapped by {base.__name__}, which holds the old norms' parameters; call "
                f"swap_norms before wrapping it (before fully_shard, in configure_model for "
                f"Lightning)"
            )


def _choose(
    model: nn.Module,
    sites: list[Site],
    rules: SwapRules,
    filter_fn: Filter | None,
    report: SwapReport,
) -> list[tuple[Site, NormFacts, RequestedNorm]]:
    """Return the norms to replace, and by what; write the others into the report."""
    chosen: list[tuple[Site, NormFacts, RequestedNorm]] = []
    for site in sites:
        requested = requested_for(rules, site.names)
        found = "no rule matches" if requested is None else _facts(site, requested, filter_fn)
        if not isinstance(found, str) and (metric := enclosing_metric(model, site.names[0])):
            found = f"it is part of the metric {metric}, which would measure something else"
        if isinstance(found, str):
            report.skipped.append((site.names[0], found))
        else:
            assert requested is not None
            chosen.append((site, found, requested))
    return chosen


def _plan(chosen: list[tuple[Site, NormFacts, RequestedNorm]], init: str) -> list[_Change]:
    """Build the replacement of each norm; the model is not changed yet."""
    changes: list[_Change] = []
    new: dict[int, nn.Parameter] = {}
    for site, facts, requested in chosen:
        _check_unpatched(site)
        try:
            built = build_replacement(site.module, facts, requested, init, site.neighbor, new)
        except UserError as error:
            raise UserError(f"{site.names[0]} cannot become {requested}: {error}") from None
        changes.append(_Change(site, facts, built))
    return changes


def _facts(site: Site, requested: RequestedNorm, filter_fn: Filter | None) -> NormFacts | str:
    """Return what a norm computes, or why it is skipped."""
    module, facts = site.module, site.facts
    if isinstance(facts, str):
        return facts
    # Before the filter: one that tests the old class would reject the norms it accepted before.
    same = unchanged_spec(module, facts, requested)
    if same is not None:
        return f"already {same}"
    if filter_fn is not None and not filter_fn(module, site.names[0]):
        return "filter_fn returned false"
    return incompatibility(module, facts, requested) or facts


def _check_unpatched(site: Site) -> None:
    """Check that nothing else has changed a norm.

    Raises:
        UserError: its forward is patched or it is compiled by itself, or a parameter of it is
            computed from others.
    """
    norm, name = site.module, site.names[0] or "the model"
    if any(key == "_orig_mod" for _, key in site.parents):
        raise UserError(
            f"{name} is compiled by itself and would still compute the old norm; call swap_norms "
            f"before torch.compile"
        )
    if "forward" in vars(norm):
        raise UserError(
            f"the forward of {name} is patched (by accelerate, Liger or a kernel), which a new "
            f"norm would lose; call swap_norms first"
        )
    for kept in ("weight", "bias"):
        if getattr(norm, kept, None) is not None and kept not in norm._parameters:
            raise UserError(
                f"the {kept} of {name} is parametrized, pruned or not a parameter; make it a "
                f"plain parameter first, or exclude the norm with filter_fn"
            )


def _nothing_replaced(model: nn.Module, report: SwapReport) -> str:
    reasons = [f"{name}: {reason}" for name, reason in report.skipped[:3]]
    rest = len(report.skipped) - len(reasons)
    reasons += [f"and {rest} more"] if rest > 0 else []
    reasons += report.notes
    why = "; ".join(reasons) or "it contains no norm (norms built later must be swapped later)"
    return f"no norm of this {type(model).__name__} was replaced: {why}"


def _check_outside_reads(model: nn.Module, changes: list[_Change], report: SwapReport) -> None:
    """Check that no other code reads an attribute of a norm that its replacement lacks.

    Raises:
        UserError: some code does; it and what it reads are named.
    """
    by_old = {change.site.module: change for change in changes}
    swaps = {old: change.replacement.module for old, change in by_old.items()}
    for kind, seen, old in source_scan.outside_reads(model, swaps):
        change = by_old[old]
        name, spec = change.site.names[0], change.replacement.spec
        if source_scan.lacks(change.replacement.module, seen):
            raise UserError(
                f"{kind} reads {seen} of {name}, which {spec} does not have; exclude {name} or "
                f"choose a norm with a {seen.attribute}"
            )
        report.notes.append(f"{kind} reads {seen} of {name} itself, whatever the norm computes")


def _apply(model: nn.Module, changes: list[_Change], report: SwapReport) -> None:
    """Put every replacement into the model."""
    report.notes += _other_references(model, {c.site.module: c.site.names[0] for c in changes})
    for change in changes:
        site, new = change.site, change.replacement.module
        before = sum(p.numel() for p in site.module.parameters())
        after = sum(p.numel() for p in new.parameters())
        hooks = move_hooks(site.module, new, change.facts.channels_first)
        mark_replaced(site.module, new, change.replacement.spec)
        for parent, name in site.parents:
            parent._modules[name] = new
        notes = [*change.replacement.notes]
        notes += [f"{hooks} hook{'s' if hooks > 1 else ''} moved"] if hooks else []
        notes += [f"also at {', '.join(site.names[1:])}"] if site.names[1:] else []
        old, spec = type(site.module).__name__, change.replacement.spec
        report.replaced.append(Replaced(site.names[0], old, spec, before, after, "; ".join(notes)))
    live = {id(parameter) for parameter in model.parameters()}
    for change in changes:
        for parameter in change.site.module.parameters():
            if id(parameter) not in live:
                _removed[parameter] = True
    for name in disable_fast_path(model, [change.replacement.module for change in changes]):
        report.notes.append(f"{name or 'the model'} no longer uses torch's fast path in eval")
    for module in model.modules() if changes else ():
        if callable(hook := getattr(module, "norms_replaced", None)):
            hook()


def _other_references(model: nn.Module, names: dict[nn.Module, str]) -> list[str]:
    """Return a line for each old norm that an attribute outside the module tree holds."""
    ids = {id(norm): name for norm, name in names.items()}
    lines = []
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules") or "_hooks" in attribute:
                continue
            for found in dict.fromkeys(id(held) for held in _held(value, 3)):
                if found in ids:
                    full = f"{path}.{attribute}" if path else attribute
                    lines.append(
                        f"{full} still holds the old {ids[found]} outside the module tree; calls "
                        f"through it compute the old norm"
                    )
    return lines


def _held(value: Any, depth: int) -> Iterator[nn.Module]:
    """Yield the modules in a value, also in containers, partial functions and bound methods."""
    inner: list[Any] = []
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        yield value.__self__
    for each in inner if depth else ():
        yield from _held(each, depth - 1)


def was_removed(parameter: nn.Parameter) -> bool:
    """Return whether a swap removed the parameter from a model."""
    return parameter in _removed


def pending(model: nn.Module, rules: Any, filter_fn: Filter | None = None) -> list[str]:
    """Return the names of the norms that `swap_norms` would replace; nothing is changed.

    Args:
        model: any module that contains norms.
        rules: as for `swap_norms`.
        filter_fn: as for `swap_norms`.

    Raises:
        UserError: the rules are wrong.
    """
    chosen = _choose(model, find_sites(model), parse_swap_rules(rules), filter_fn, SwapReport())
    return [site.names[0] for site, _, _ in chosen]
