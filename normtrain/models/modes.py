"""Evaluation mode for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: object) -> Iterator[torch.device]:
    """Put a model in eval mode for the duration; each of its modules returns to its own mode.

    Args:
        model: one that is not an ``nn.Module`` is unchanged and counts as on the CPU.

    Yields:
        The model's device.
    """
    if not isinstance(model, nn.Module):
        yield torch.device("cpu")
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        parameter = next(model.parameters(), None)
        yield torch.device("cpu") if parameter is None else parameter.device
    finally:
        # One by one: a submodule may have been in eval mode before.
        for module in training:
            module.training = True
