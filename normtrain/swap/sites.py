"""Every norm of a model, with all the places where it hangs and what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from normtrain.errors import UserError
from normtrain.swap.readers import NormFacts, looks_like_norm, read, reader_for

# What torch.compile, FSDP and activation checkpointing put between a module and its parent.
_WRAPPING = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass
class Site:
    """A norm of the model, and every place where it hangs.

    Attributes:
        module: the norm.
        looked: what it computes, or why that can't be told.
        names: its names in the model, without those of wrappers.
        places: each parent that holds it, and by which name.
        near: a parameter beside it, for a device and a dtype where it has none of its own.
    """

    module: nn.Module
    looked: NormFacts | str
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    near: torch.Tensor | None = None


def plain_name(path: str) -> str:
    """A module's or parameter's full name without the parts that wrappers put in."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPING)


def named_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that is or is called a norm, with its first name; nothing is tried out."""
    for path, module in model.named_modules():
        if path and (reader_for(module) is not None or looks_like_norm(module)):
            yield plain_name(path), module


def metric_around(model: nn.Module, name: str) -> str | None:
    """The torchmetrics metric that a module belongs to, by name; None if it is in none."""
    inside = ""
    for part in name.split("."):
        inside = f"{inside}.{part}" if inside else part
        found = _at(model, inside)
        for base in type(found).__mro__:
            if base.__name__ == "Metric" and base.__module__.startswith("torchmetrics."):
                return inside
    return None


def _at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # a name without its wrappers
        return None


def find_sites(model: nn.Module) -> list[Site]:
    """Every norm of the model, known or not, in order, with all its names.

    Raises:
        UserError: the model is itself a norm.
    """
    if _look(model) is not None:
        raise UserError(
            f"the model is itself a {type(model).__name__}, which can't be replaced in place; "
            f"build the new norm with build_norm"
        )
    sites: dict[nn.Module, Site | None] = {}
    paths: dict[str, nn.Module] = {}
    anywhere = next(model.parameters(), None)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[path] = module
        if module not in sites:
            looked = None if path == "" else _look(module)
            sites[module] = None if looked is None else Site(module, looked)
        site = sites[module]
        if site is None:
            continue
        above, _, name = path.rpartition(".")
        parent = paths[above]
        # A wrapper is not part of anyone's names.
        if (full := plain_name(path)) not in site.names:
            site.names.append(full)
        if not any(parent is other and name == key for other, key in site.places):
            site.places.append((parent, name))
        if site.near is None:
            site.near = next((p for p in parent.parameters() if p.is_floating_point()), anywhere)
    return [site for site in sites.values() if site is not None]


def _look(module: nn.Module) -> NormFacts | str | None:
    """What a norm computes, or why that can't be told; None for what is no norm."""
    try:
        facts = read(module)
    except UserError as error:
        return str(error)
    if facts is not None or not looks_like_norm(module):
        return facts
    kind = f"{type(module).__module__}.{type(module).__name__}"
    return f"no reader knows a {kind}; add one with normtrain.swap.register_reader"
