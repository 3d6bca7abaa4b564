"""Put other norms in any model, in place, so that everything that held the old ones still holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from normtrain.convert.own import refresh_rules
from normtrain.errors import UserError
from normtrain.models.embedding import TokenModel
from normtrain.swap import source_scan
from normtrain.swap.fast_path import check_disarmable, disarm
from normtrain.swap.readers import NormFacts
from normtrain.swap.record import note_swap
from normtrain.swap.replacement import Successor, already, misfit, move_hooks, succeed
from normtrain.swap.report import Replaced, SwapReport
from normtrain.swap.rules import SwapRules, Wanted
from normtrain.swap.sites import Site, find_sites, metric_around

INITS = ("keep", "fresh")
Filter = Callable[[nn.Module, str], bool]

_WRAPPERS = {
    "DistributedDataParallel": "torch.nn.parallel",
    "FullyShardedDataParallel": "torch.distributed.fsdp",
    "FSDPModule": "torch.distributed.fsdp",
    "DataParallel": "torch.nn.parallel",
}


# Parameters that swaps took out of models, as long as something else holds them.
_dropped = WeakIdKeyDictionary()


@dataclass
class _Change:
    """A norm that will be replaced, with what takes its place."""

    site: Site
    facts: NormFacts
    successor: Successor


def swap_norms(
    model: nn.Module,
    rules: Any,
    *,
    init: str = "keep",
    filter_fn: Filter | None = None,
    strict: bool = True,
) -> SwapReport:
    """Replace the norms of a model by others, in place.

    Call it before the optimizer is made and before the model is wrapped for several devices. Norms
    are found by class: torch's LayerNorm, RMSNorm and BatchNorm, this package's, and those that a
    reader knows (`register_reader`). All is checked before anything is changed.

    A norm that hangs in several places stays one norm. The new norm has the old one's device,
    dtype, mode, hooks and ``requires_grad``, its eps unless the rule gives one, and its very
    parameter objects where shape and meaning agree, so that ties and optimizers stay valid. A
    LayerNorm without bias becomes a norm without bias. Under autocast on CUDA, LayerNorm of torch
    gives float32; the norms of this package give the dtype of their input.

    Args:
        model: any module that holds norms.
        rules: a norm for all of them (``"rmsnorm"``, ``"prmsnorm:p=0.125"``, a `NormSpec`, a
            `NormRules`), or a list of (pattern, norm) pairs over module names: ``*`` matches dots
            too, the last match wins, and norms that nothing matches are left alone. BatchNorm's
            place is for ``"l1batchnorm"``, ``"linfbatchnorm"`` and ``"topkbatchnorm:k=10"`` only.
        init: ``"keep"`` copies gain, bias and the like where they mean the same, and the report
            names what could not be copied; ``"fresh"`` starts all of them anew.
        filter_fn: called with each norm and its name; one for which it is false is left alone.
        strict: whether replacing nothing, and a pattern that matches no norm, is an error.

    Returns:
        What was replaced, what was left alone and why, and what can't be reached.

    Raises:
        UserError: the rules or options are wrong; nothing is replaced; the model is wrapped or
            sharded already; a norm's parameters or forward are patched; other code reads what a
            new norm lacks.
        RunError: this version of torch can't be kept from computing LayerNorm in its place.
    """
    _check_call(model, init)
    wanted = SwapRules.parse(rules)
    report = SwapReport(rules=wanted.to_plain())
    sites = find_sites(model)
    chosen = _choose(model, sites, wanted, filter_fn, report)
    # A wrapped or sharded model is well if its norms were put in before.
    settled = not chosen and any(why.startswith("already") for _, why in report.skipped)
    if not settled:
        _check_reachable(model, [site for site, _, _ in chosen])
    faults = wanted.unmatched([name for site in sites for name in site.names]) if sites else []
    if strict and faults:
        raise UserError("; ".join(faults))
    report.notes += faults
    changes = _plan(chosen, init)
    report.notes += source_scan.functional_norms(model, [site.module for site in sites])
    if strict and not changes and not settled:
        raise UserError(_nothing(model, report))
    _check_readers(model, changes, report)
    check_disarmable(model, [change.site.module for change in changes])
    _perform(model, changes, report)
    return report


def _check_call(model: nn.Module, init: str) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"norms are swapped in a torch module, not in {model!r}")
    if init not in INITS:
        raise UserError(f"init must be 'keep' or 'fresh', not {init!r}")


def _check_reachable(model: nn.Module, chosen: list[Site]) -> None:
    """Refuse a model in which something else holds the parameters of the old norms.

    Args:
        model: what is to be changed.
        chosen: the norms that would be replaced; without any, the whole model is asked about.

    Raises:
        UserError: what they are in is scripted, wrapped for several devices, or sharded.
    """
    norms = {id(site.module) for site in chosen}
    for name, module in model.named_modules():
        if not chosen or any(id(inner) in norms for inner in module.modules()):
            _check_wrapper(module, name)
    parents = [parent for site in chosen for parent, _ in site.places] if chosen else [model]
    for parent in dict.fromkeys(parents):
        for name, parameter in parent.named_parameters():
            if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
                raise UserError(
                    f"{name} is sharded already (DTensor), so a norm put in now would train apart "
                    f"on each rank; call swap_norms before fully_shard, in configure_model for "
                    f"Lightning"
                )


def _check_wrapper(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{name or 'the model'} is scripted, so its norms can't be replaced; swap them before"
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
) -> list[tuple[Site, NormFacts, Wanted]]:
    """The norms to replace, and by what; the others go into the report with the reason."""
    chosen: list[tuple[Site, NormFacts, Wanted]] = []
    for site in sites:
        wanted = rules.wanted_for(site.names)
        found = "no rule matches" if wanted is None else _facts(site, wanted, filter_fn)
        if not isinstance(found, str) and (metric := metric_around(model, site.names[0])):
            found = f"it is part of the metric {metric}, which would measure something else"
        if isinstance(found, str):
            report.skipped.append((site.names[0], found))
        else:
            assert wanted is not None
            chosen.append((site, found, wanted))
    return chosen


def _plan(chosen: list[tuple[Site, NormFacts, Wanted]], init: str) -> list[_Change]:
    """Build the successor of each norm; nothing is changed yet."""
    changes: list[_Change] = []
    made: dict[int, nn.Parameter] = {}
    for site, facts, wanted in chosen:
        _check_plain(site)
        try:
            successor = succeed(site.module, facts, wanted, init, site.near, made)
        except UserError as error:
            raise UserError(f"{site.names[0]} can't become {wanted}: {error}") from None
        changes.append(_Change(site, facts, successor))
    return changes


def _facts(site: Site, wanted: Wanted, filter_fn: Filter | None) -> NormFacts | str:
    """What the norm computes, or why it is left alone."""
    module, facts = site.module, site.looked
    if isinstance(facts, str):
        return facts
    # First, for a filter that goes by class has nothing to say to the norms it let through.
    same = already(module, facts, wanted)
    if same is not None:
        return f"already {same}"
    if filter_fn is not None and not filter_fn(module, site.names[0]):
        return "filter_fn said no"
    return misfit(module, facts, wanted) or facts


def _check_plain(site: Site) -> None:
    """Refuse a norm that something else has changed.

    Raises:
        UserError: its forward is patched or compiled by itself, or a parameter of it is computed
            from others.
    """
    norm, name = site.module, site.names[0] or "the model"
    if any(key == "_orig_mod" for _, key in site.places):
        raise UserError(
            f"{name} is compiled by itself, and would go on computing the old norm; call "
            f"swap_norms before torch.compile"
        )
    if "forward" in vars(norm):
        raise UserError(
            f"the forward of {name} is patched (by accelerate, Liger or a kernel), which another "
            f"norm would lose; call swap_norms first"
        )
    for kept in ("weight", "bias"):
        if getattr(norm, kept, None) is not None and kept not in norm._parameters:
            raise UserError(
                f"the {kept} of {name} is parametrized, pruned or no parameter; make it a plain "
                f"one before swapping, or leave the norm out with filter_fn"
            )


def _nothing(model: nn.Module, report: SwapReport) -> str:
    reasons = [f"{name}: {reason}" for name, reason in report.skipped[:3]]
    rest = len(report.skipped) - len(reasons)
    reasons += [f"and {rest} more"] if rest > 0 else []
    reasons += report.notes
    why = "; ".join(reasons) or "it holds no norm (one built later can only be swapped later)"
    return f"no norm of this {type(model).__name__} was replaced: {why}"


def _check_readers(model: nn.Module, changes: list[_Change], report: SwapReport) -> None:
    """Refuse where other code reads of a norm what its successor lacks.

    Raises:
        UserError: it does; the code and what it reads are named.
    """
    by_old = {change.site.module: change for change in changes}
    swaps = {old: change.successor.module for old, change in by_old.items()}
    for kind, seen, old in source_scan.outside_reads(model, swaps):
        change = by_old[old]
        name, spec = change.site.names[0], change.successor.spec
        if source_scan.lacks(change.successor.module, seen):
            raise UserError(
                f"{kind} reads {seen} of {name}, which {spec} does not have; leave {name} out or "
                f"choose a norm with a {seen.attribute}"
            )
        report.notes.append(f"{kind} reads {seen} of {name} itself, whatever the norm computes")


def _perform(model: nn.Module, changes: list[_Change], report: SwapReport) -> None:
    """Put every successor in its places."""
    report.notes += _other_references(model, {c.site.module: c.site.names[0] for c in changes})
    for change in changes:
        site, new = change.site, change.successor.module
        before = sum(p.numel() for p in site.module.parameters())
        after = sum(p.numel() for p in new.parameters())
        hooks = move_hooks(site.module, new, change.facts.channels_first)
        note_swap(site.module, new, change.successor.spec)
        for parent, name in site.places:
            parent._modules[name] = new
        notes = [*change.successor.notes]
        notes += [f"{hooks} hook{'s' if hooks > 1 else ''} moved"] if hooks else []
        notes += [f"also at {', '.join(site.names[1:])}"] if site.names[1:] else []
        old, spec = type(site.module).__name__, change.successor.spec
        report.replaced.append(Replaced(site.names[0], old, spec, before, after, "; ".join(notes)))
    live = {id(parameter) for parameter in model.parameters()}
    for change in changes:
        for parameter in change.site.module.parameters():
            if id(parameter) not in live:
                _dropped[parameter] = True
    for name in disarm(model, [change.successor.module for change in changes]):
        report.notes.append(f"{name or 'the model'} no longer takes torch's fast path in eval")
    for module in model.modules():
        if isinstance(module, TokenModel) and changes:
            refresh_rules(module)


def _other_references(model: nn.Module, names: dict[nn.Module, str]) -> list[str]:
    """A line for each old norm that an attribute holds beside the module tree."""
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
                        f"{full} still holds the old {ids[found]}, outside of the module tree: "
                        f"what runs through it computes the old norm"
                    )
    return lines


def _held(value: Any, depth: int) -> Iterator[nn.Module]:
    """The modules in a value: in plain containers, partial functions and bound methods too."""
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


def was_dropped(parameter: nn.Parameter) -> bool:
    """Whether a swap took the parameter out of a model."""
    return parameter in _dropped


def pending(model: nn.Module, rules: Any, filter_fn: Filter | None = None) -> list[str]:
    """The names of the norms that `swap_norms` would replace; nothing is changed.

    Args:
        model: any module that holds norms.
        rules: as for `swap_norms`.
        filter_fn: as for `swap_norms`.

    Raises:
        UserError: the rules are wrong.
    """
    wanted, sites = SwapRules.parse(rules), find_sites(model)
    chosen = _choose(model, sites, wanted, filter_fn, SwapReport())
    return [site.names[0] for site, _, _ in chosen]
