"""Activation checkpointing: activations of a layer are computed again in the backward pass.

A stack keeps only the inputs of its layers and the activations of one layer at a time, for the
cost of about one more forward pass (Chen et al. 2016, Training Deep Nets with
Sublinear Memory Cost, arXiv:1604.06174). Random number generators are restored before a layer runs
again, so losses, gradients and weights are bitwise identical.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BufferName = tuple[dict[str, Tensor | None], str]


class Recompute:
    """Run layers with activation checkpointing.

    Buffers that a layer changes (running statistics) change once: the second run works on copies
    made before the first. Other attributes of a module, and its hooks, see both runs.

    Args:
        compile: run each layer through ``torch.compile``. The checkpoint is outside of
            the compiled function: inside, dynamic sizes fail (torch 2.13).
    """

    def __init__(self, *, compile: bool = False) -> None:
        self._call = torch.compile(_call, dynamic=True) if compile else _call

    def __call__(self, layer: nn.Module, *inputs: Tensor | None) -> Any:
        """Run a layer.

        Args:
            layer: called as a module, so that hooks and FSDP2 see it.
            inputs: arguments of the layer.

        Returns:
            The output of the layer.
        """
        options: dict[str, Any] = {}
        if before := _buffers(layer):
            options["context_fn"] = lambda: (contextlib.nullcontext(), _AsBefore(before))
        call: Callable[..., Any] = self._call
        return checkpoint(call, layer, *inputs, use_reentrant=False, **options)


def _call(layer: nn.Module, *inputs: Tensor | None) -> Any:
    return layer(*inputs)


def _buffers(layer: nn.Module) -> list[tuple[_BufferName, Tensor]]:
    """Return the holder and name of each buffer, with a copy of it."""
    return [
        ((module._buffers, name), buffer.clone())
        for module in layer.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


class _AsBefore:
    """Replace the buffers of a layer by copies in a ``with`` block, once per backward pass."""

    def __init__(self, before: list[tuple[_BufferName, Tensor]]) -> None:
        self._before = before
        self._now: list[tuple[_BufferName, Tensor | None]] = []

    def __enter__(self) -> None:
        self._now = [(place, place[0][place[1]]) for place, _ in self._before]
        for (holder, name), kept in self._before:
            holder[name] = kept.clone()

    def __exit__(self, *error: object) -> None:
        for (holder, name), buffer in self._now:
            holder[name] = buffer
