"""Find the layer that was the first to give NaN or Inf."""

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
    """Where the first NaN or Inf came from.

    Attributes:
        forward: whether it was in the forward pass.
        text: the layer, in words.
    """

    forward: bool
    text: str


def diagnose(model: nn.Module, loss_of: Callable[[], Tensor]) -> Finding | None:
    """Run one batch forward, and backward if the forward pass is finite, and check every layer.

    The gradients of the model are not changed, and there is no communication between ranks.

    Args:
        model: its submodules are checked.
        loss_of: computes the batch's loss from the model.

    Returns:
        None where everything is finite.
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
                return Finding(True, "the output layer or the loss: every layer before is finite")
            return _backward(model, loss, calls)
        except RuntimeError as error:  # a model whose tensors no hook can wrap
            return Finding(True, f"no layer could be named ({str(error).splitlines()[0]})")


@dataclass
class _Calls:
    """What the hooks of all layers recorded."""

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
                self.broken = _forward_text(name, module, _finite((args, kwargs), nan_only=True))

        def backward(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if _finite(outputs):
                self.clean.add(name)
                if not _finite(inputs):
                    self.backward.append(name)

        yield module.register_forward_hook(forward, with_kwargs=True)
        yield module.register_full_backward_hook(backward)


def _forward_text(name: str, module: nn.Module, from_inside: bool) -> str:
    if not from_inside:
        return f"the input of {name} had the first NaN or Inf"
    bad = next((n for n, p in module.named_parameters() if not _finite(p)), None)
    state = "its weights are finite" if bad is None else f"its {bad} is not finite"
    return f"{name} gave the first NaN or Inf ({state})"


def _backward(model: nn.Module, loss: Tensor, calls: _Calls) -> Finding | None:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with warnings.catch_warnings():  # hooks of layers that read token ids
        warnings.simplefilter("ignore")
        gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    pairs = zip(named, gradients, strict=True)
    bad = [n for (n, _), grad in pairs if grad is not None and not _finite(grad)]
    if not bad:
        return None
    latest = {name: index for index, name in enumerate(calls.order)}
    nearest = max(bad, key=lambda n: latest.get(n.rpartition(".")[0], -1))
    owner = nearest.rpartition(".")[0]
    own = owner in calls.clean  # only the gradient of its weights is not finite
    if calls.backward and not (own and latest.get(owner, -1) > latest[calls.backward[0]]):
        where = f"{calls.backward[0]} gave the first non-finite gradient"
    elif own:
        where = f"{owner} gave the first non-finite gradient"
    else:
        where = "the first non-finite gradient came from the loss or the output layer"
    text = f"{where}; of the weights, nearest to the loss is {nearest} (the forward pass is finite)"
    return Finding(False, text)


def _finite(values: Any, nan_only: bool = False) -> bool:
    """Return whether all floating-point tensors in nested values are finite.

    With ``nan_only`` Inf counts as finite, since masks may hold it.
    """
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
