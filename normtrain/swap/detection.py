"""Detect numerically what a norm of an unknown class computes."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.swap.facts import NormFacts

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "norm_eps")
_DIM_NAMES = ("normalized_shape", "hidden_size", "dim", "num_channels")
# Tried for a norm that has no such attribute but a constant in its forward.
_USUAL_EPS = (1e-5, 1e-6)


def detect_norm(module: nn.Module) -> NormFacts:
    """Tell from a norm's outputs for a few numbers what it computes.

    Copies of the module with random parameters on the CPU are run: it must compute LayerNorm or
    RMSNorm of the last axis or of axis 1, with the gain stored as it is or minus 1. The module must
    have ``weight`` (and ``bias``) of shape ``(dim,)`` or none, an ``eps`` under one of the usual
    names, and a forward of one argument. It may be on the meta device.

    Returns:
        The facts, including when it rounds half precision.

    Raises:
        UserError: it computes no LayerNorm or RMSNorm of one axis.
    """
    cls = type(module).__name__
    weight, bias = _parameter(module, "weight"), _parameter(module, "bias")
    others = {name for name, p in module.named_parameters() if p is not None} - {"weight", "bias"}
    if others or not _takes_one(module):
        what = f"parameters {', '.join(sorted(others))}" if others else "several arguments"
        raise UserError(f"a {cls} has {what}, so it is more than a norm")
    dim = _dim(module, weight)
    for channels_first, eps, centered, offset in product(
        (False, True), _epsilons(module), (False, True), (0.0, 1.0)
    ):
        if offset and weight is None:
            continue
        kind = "layer" if centered else "rms"
        facts = NormFacts(dim, eps, weight, bias, offset, kind, channels_first)
        if _computes(module, facts):
            return replace(facts, cast=_cast(module, facts))
    raise UserError(
        f"a {cls} computes neither LayerNorm nor RMSNorm of one axis; register a reader for it "
        f"with normtrain.swap.register_reader"
    )


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    parameter = module._parameters.get(name)
    if parameter is not None and parameter.ndim != 1:
        raise UserError(f"its {name} must have the shape (dim,), got {tuple(parameter.shape)}")
    return parameter


def _takes_one(module: nn.Module) -> bool:
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in named for p in parameters) == 1


def _dim(module: nn.Module, weight: nn.Parameter | None) -> int:
    if weight is not None:
        return weight.numel()
    for name in _DIM_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int):
            return value
    raise UserError(f"the size of the axis that a {type(module).__name__} normalizes is unknown")


def _epsilons(module: nn.Module) -> tuple[float, ...]:
    for name in _EPS_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (float(value),)
    return _USUAL_EPS


def _randomized(module: nn.Module) -> nn.Module:
    """Copy a module, with random parameters on the CPU; all else is shared with it."""
    generator = torch.Generator().manual_seed(7)
    # not type(module).__new__: FSDP2's classes build a module in it
    copied = object.__new__(type(module))
    vars(copied).update(vars(module))
    vars(copied)["_parameters"] = {
        name: None if p is None else nn.Parameter(_draw(tuple(p.shape), generator))
        for name, p in module._parameters.items()
    }
    vars(copied)["_buffers"] = dict(module._buffers)
    return copied


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) + 0.5


def _input(facts: NormFacts) -> Tensor:
    """Make input vectors, half of them so small that eps matters: ``(4, dim)`` or NCHW."""
    generator = torch.Generator().manual_seed(11)
    assert facts.eps is not None
    # No side of an image is as long as another or as the axis in question.
    sides = [side for side in (3, 5, 7) if side != facts.dim][:2]
    shape = (4, facts.dim, *sides) if facts.channels_first else (4, facts.dim)
    x = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * 2 + 0.7
    x[2:] *= math.sqrt(facts.eps)
    return x


def _output(module: nn.Module, x: Tensor) -> Any:
    """Return the output of a forward, or None if it fails."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return module.forward(x)  # not called, which would run hooks
    except Exception:  # other code's forward may raise anything
        return None


def _computes(module: nn.Module, facts: NormFacts) -> bool:
    copied, x = _randomized(module), _input(facts)
    y = _output(copied, x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    expected = _formula(x.double(), copied, facts)
    return torch.allclose(y.double(), expected, rtol=1e-3, atol=1e-4)


def _formula(x: Tensor, copied: nn.Module, facts: NormFacts) -> Tensor:
    assert facts.eps is not None
    x = x.movedim(1, -1) if facts.channels_first else x
    x = x - x.mean(-1, keepdim=True) if facts.kind == "layer" else x
    y = x / (x.pow(2).mean(-1, keepdim=True) + facts.eps).sqrt()
    weight, bias = copied._parameters.get("weight"), copied._parameters.get("bias")
    y = y if weight is None else y * (weight.detach().double() + facts.offset)
    y = y if bias is None else y + bias.detach().double()
    return y.movedim(-1, 1) if facts.channels_first else y


def _cast(module: nn.Module, facts: NormFacts) -> str:
    """Detect when bfloat16 is rounded, from the output's dtype for float32 parameters."""
    y = _output(_randomized(module), _input(facts).bfloat16())
    is_float32 = isinstance(y, Tensor) and y.dtype == torch.float32
    return "input" if is_float32 else "float32-then-weight"
