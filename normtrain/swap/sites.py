"""Find every norm of a model, with all its names and what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from normtrain.errors import UserError
from normtrain.swap.facts import NormFacts
from normtrain.swap.module_names import unwrapped_name
from normtrain.swap.readers import looks_like_norm, read, reader_for


@dataclass
class Site:
    """A norm of a model.

    Attributes:
        module: the norm.
        facts: what it computes, or why that is unknown.
        names: its names in the model, without the parts that wrappers add.
        parents: each module that holds it, and the attribute's name there.
        neighbor: a parameter of the same parent, for a device and a dtype.
    """

    module: nn.Module
    facts: NormFacts | str
    names: list[str] = field(default_factory=list)
    parents: list[tuple[nn.Module, str]] = field(default_factory=list)
    neighbor: torch.Tensor | None = None


def named_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that has a reader or a class named norm, with its first name.

    Nothing is detected numerically.
    """
    for path, module in model.named_modules():
        if path and (reader_for(module) is not None or looks_like_norm(module)):
            yield unwrapped_name(path), module


def enclosing_metric(model: nn.Module, name: str) -> str | None:
    """Return the name of the torchmetrics metric that holds a module; None if none does."""
    inside = ""
    for part in name.split("."):
        inside = f"{inside}.{part}" if inside else part
        try:
            module = model.get_submodule(inside)
        except AttributeError:  # the name lacks the parts of wrappers
            continue
        for base in type(module).__mro__:
            if base.__name__ == "Metric" and base.__module__.startswith("torchmetrics."):
                return inside
    return None


def find_sites(model: nn.Module) -> list[Site]:
    """List every norm of the model in order, also those of unknown classes.

    Raises:
        UserError: the model is itself a norm.
    """
    if _read(model) is not None:
        raise UserError(
            f"the model is itself a {type(model).__name__}, which cannot be replaced in place; "
            f"build the new norm with build_norm"
        )
    sites: dict[nn.Module, Site | None] = {}
    modules: dict[str, nn.Module] = {}
    anywhere = next(model.parameters(), None)
    for path, module in model.named_modules(remove_duplicate=False):
        modules[path] = module
        if module not in sites:
            facts = None if path == "" else _read(module)
            sites[module] = None if facts is None else Site(module, facts)
        site = sites[module]
        if site is None:
            continue
        above, _, name = path.rpartition(".")
        parent = modules[above]
        if (full := unwrapped_name(path)) not in site.names:
            site.names.append(full)
        if not any(parent is other and name == key for other, key in site.parents):
            site.parents.append((parent, name))
        if site.neighbor is None:
            beside = (p for p in parent.parameters() if p.is_floating_point())
            site.neighbor = next(beside, anywhere)
    return [site for site in sites.values() if site is not None]


def _read(module: nn.Module) -> NormFacts | str | None:
    """Return what a norm computes, or why that is unknown; None for what is not a norm."""
    try:
        facts = read(module)
    except UserError as error:
        return str(error)
    if facts is not None or not looks_like_norm(module):
        return facts
    cls = f"{type(module).__module__}.{type(module).__name__}"
    return f"no reader is registered for {cls}; add one with normtrain.swap.register_reader"
