"""Activation checkpointing: a layer's inner values are computed again in the backward pass.

A stack keeps only what enters each of its layers; memory for activations then grows with one
layer's values, not with all layers', for about one more forward pass (Chen et al. 2016, Training
Deep Nets with Sublinear Memory Cost, arXiv:1604.06174). Random numbers are put back before a layer
runs again, so losses, gradients and weights keep every bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_Place = tuple[dict[str, Tensor | None], str]


class Recompute:
    """Runs layers that forget their inner values and compute them again when they are needed.

    Buffers that a layer changes (running statistics) change once: the second run works on copies
    of what they were before the first. What a module keeps in other attributes, and its hooks, see
    both runs.

    Args:
        compile: run each layer through ``torch.compile``. A checkpoint inside of a compiled
            function would be the compiler's to undo, which fails where sizes are dynamic (torch
            2.13: numbers such as an eps can't enter it); one around it is plain.
    """

    def __init__(self, *, compile: bool = False) -> None:
        self._call = torch.compile(_call, dynamic=True) if compile else _call

    def __call__(self, layer: nn.Module, *inputs: Tensor | None) -> Any:
        """Run a layer.

        Args:
            layer: called as a module, so that hooks and FSDP2 see it.
            inputs: what it is called with.

        Returns:
            What the layer returns.
        """
        options: dict[str, Any] = {}
        if before := _buffers(layer):
            options["context_fn"] = lambda: (contextlib.nullcontext(), _AsBefore(before))
        call: Callable[..., Any] = self._call
        return checkpoint(call, layer, *inputs, use_reentrant=False, **options)


def _call(layer: nn.Module, *inputs: Tensor | None) -> Any:
    return layer(*inputs)


def _buffers(layer: nn.Module) -> list[tuple[_Place, Tensor]]:
    """Each buffer's place, and a copy of it."""
    return [
        ((module._buffers, name), buffer.clone())
        for module in layer.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


class _AsBefore:
    """Copies stand for a layer's buffers, inside of a ``with``; a kept graph enters it again."""

    def __init__(self, before: list[tuple[_Place, Tensor]]) -> None:
        self._before = before
        self._now: list[tuple[_Place, Tensor | None]] = []

    def __enter__(self) -> None:
        self._now = [(place, place[0][place[1]]) for place, _ in self._before]
        for (holder, name), kept in self._before:
            holder[name] = kept.clone()

    def __exit__(self, *error: object) -> None:
        for (holder, name), buffer in self._now:
            holder[name] = buffer
