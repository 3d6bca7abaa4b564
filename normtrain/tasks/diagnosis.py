"""Which layer was the first to give a number that is none (nan or infinite)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Finding:
    """Where the first number that is none came from.

    Attributes:
        forward: it was in the forward pass.
        text: the layer, in words.
    """

    forward: bool
    text: str


def diagnose(model: nn.Module, loss_of: Callable[[], Tensor]) -> Finding | None:
    """Run one batch forward, and backward if nothing is found there, and look at every layer.

    Gradients of the model stay as they are, and no other process is talked to.

    Args:
        model: its submodules are watched.
        loss_of: computes the batch's loss from the model.

    Returns:
        None where all numbers are finite.
    """
    calls = _Calls()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                for handle in calls.watch(name, module):
                    hooks.callback(handle.remove)
        try:
            loss = loss_of()
            calls.running = False
            if calls.broken is not None:
                return Finding(True, calls.broken)
            if not _finite(loss):
                return Finding(True, f"the output layer or the loss: {_OUTPUT}")
            return _backward(model, loss, calls)
        except RuntimeError as error:  # a model whose tensors no hook can wrap
            return Finding(True, f"no layer could be named ({str(error).splitlines()[0]})")


_OUTPUT = "every layer before them gave finite numbers"


@dataclass
class _Calls:
    """What hooks saw."""

    running: bool = True
    broken: str | None = None
    order: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    clean: set[str] = field(default_factory=set)

    def watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        """Hook a module."""

        def forward(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self.running:  # recomputed for the backward pass
                return
            self.order.append(name)
            if self.broken is None and not _finite(output):
                self.broken = _said(name, module, _finite((args, kwargs), nan_only=True))

        def backward(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if _finite(outputs):
                self.clean.add(name)
                if not _finite(inputs):
                    self.backward.append(name)

        yield module.register_forward_hook(forward, with_kwargs=True)
        yield module.register_full_backward_hook(backward)


def _said(name: str, module: nn.Module, from_inside: bool) -> str:
    if not from_inside:
        return f"what goes into {name} held the first number that is none"
    bad = next((n for n, p in module.named_parameters() if not _finite(p)), None)
    state = "its weights are finite" if bad is None else f"its {bad} is not finite"
    return f"{name} gave the first number that is none ({state})"


def _backward(model: nn.Module, loss: Tensor, calls: _Calls) -> Finding | None:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with warnings.catch_warnings():  # hooks of layers that read token ids
        warnings.simplefilter("ignore")
        gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    pairs = zip(named, gradients, strict=True)
    bad = [n for (n, _), grad in pairs if grad is not None and not _finite(grad)]
    if not bad:
        return None
    latest = {name: place for place, name in enumerate(calls.order)}
    nearest = max(bad, key=lambda n: latest.get(n.rpartition(".")[0], -1))
    owner = nearest.rpartition(".")[0]
    own = owner in calls.clean  # its weights' gradient alone is none
    if calls.backward and not (own and latest.get(owner, -1) > latest[calls.backward[0]]):
        where = f"{calls.backward[0]} gave the first gradient that is none"
    elif own:
        where = f"{owner} gave the first gradient that is none"
    else:
        where = "the first gradient that is none came from the loss or the output layer"
    said = f"{where}, nearest to the loss that of {nearest} (the forward pass is finite)"
    return Finding(False, said)


def _finite(values: Any, nan_only: bool = False) -> bool:
    """Whether all floating-point tensors in nested values are; masks may hold infinity."""
    if isinstance(values, Tensor):
        if not values.is_floating_point():
            return True
        values = values.detach()
        return not bool((values.isnan() if nan_only else ~values.isfinite()).any())
    if isinstance(values, dict):
        return all(_finite(value, nan_only) for value in values.values())
    if isinstance(values, (list, tuple)):
        return all(_finite(value, nan_only) for value in values)
    return True
