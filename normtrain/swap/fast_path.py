"""Keep torch's encoder layers from computing LayerNorm where another norm was put in.

Outside training `torch.nn.TransformerEncoderLayer` may run as one kernel that takes eps, weight and
bias of ``norm1`` and ``norm2`` and computes LayerNorm with them; the norms themselves are not
called. With a padding mask, `torch.nn.TransformerEncoder` may also pass its layers a nested tensor,
which other norms do not support. A norm with the three attributes is then silently computed as
LayerNorm, and one without them fails at the first evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from normtrain.errors import RunError

# What torch reads of the layer and of the encoder before it uses the fast path. Nothing else reads
# them: the activation itself is another attribute.
_LAYER_SWITCH, _ENCODER_SWITCH = "activation_relu_or_gelu", "use_nested_tensor"


def check_can_disable(model: nn.Module, targets: Iterable[nn.Module]) -> None:
    """Check, before anything is changed, that `disable_fast_path` will not fail.

    Args:
        model: the model.
        targets: the norms of it that will be replaced.

    Raises:
        RunError: as `disable_fast_path`.
    """
    sought = {id(target) for target in targets}
    if _layers_with(model, sought) or _encoders_with(model, sought):
        _check_switches()


def disable_fast_path(model: nn.Module, touched: Iterable[nn.Module]) -> list[str]:
    """Make encoder layers compute with their new norms outside training too.

    Disables the fast path of each `torch.nn.TransformerEncoderLayer` that holds one of the new
    norms, subclasses included, and nested tensors of each `torch.nn.TransformerEncoder` around such
    layers. This sets a plain attribute on each, which copies and pickles keep and state dicts do
    not contain. Layers with none of the new norms, or only `torch.nn.LayerNorm` with weight and
    bias, are not changed.

    Args:
        model: the whole model; an encoder outside of it would still make nested tensors.
        touched: the norms that were put into it.

    Returns:
        The names of the layers whose fast path was disabled ("" for the model itself); layers that
        had none, for example because of their activation, are not listed.

    Raises:
        RunError: this version of torch decides on its fast path in an unknown way; nothing was
            changed.
    """
    sought = {id(norm) for norm in touched if not _kernel_computes(norm)}
    layers, encoders = _layers_with(model, sought), _encoders_with(model, sought)
    if layers or encoders:
        _check_switches()
    disabled = [name for name, layer in layers.items() if getattr(layer, _LAYER_SWITCH, 0)]
    for layer in layers.values():
        setattr(layer, _LAYER_SWITCH, 0)
    for encoder in encoders:
        setattr(encoder, _ENCODER_SWITCH, False)
    return disabled


def _kernel_computes(norm: nn.Module) -> bool:
    """Return whether a norm is torch's LayerNorm over one axis with weight and bias.

    This package's LayerNorm is not: it differs for vectors whose squares overflow, and supports no
    nested tensors.
    """
    return (
        isinstance(norm, nn.LayerNorm)
        and type(norm).forward is nn.LayerNorm.forward
        and "forward" not in vars(norm)
        and len(norm.normalized_shape) == 1
        and norm.weight is not None
        and norm.bias is not None
    )


def _holds(module: nn.Module, sought: set[int]) -> bool:
    return any(id(inner) in sought for inner in module.modules())


def _layers_with(model: nn.Module, sought: set[int]) -> dict[str, nn.Module]:
    """Return the encoder layers, by name, that hold one of the modules with these ids."""
    return {
        name: module
        for name, module in model.named_modules()
        # A subclass with a forward of its own may call torch's, so it counts.
        if isinstance(module, nn.TransformerEncoderLayer) and _holds(module, sought)
    }


def _encoders_with(model: nn.Module, sought: set[int]) -> list[nn.Module]:
    """Return the encoders with such a module in a layer; the final norm gets no nested tensor."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder) and _holds(module.layers, sought)
    ]


def _check_switches() -> None:
    """Check that torch's forwards read the two attributes.

    Raises:
        RunError: one of them does not.
    """
    kinds = ((nn.TransformerEncoderLayer, _LAYER_SWITCH), (nn.TransformerEncoder, _ENCODER_SWITCH))
    for kind, switch in kinds:
        code = getattr(inspect.unwrap(kind.forward), "__code__", None)
        # An attribute read with getattr or hasattr is among the constants.
        if code is None or switch not in (*code.co_names, *code.co_consts):
            raise RunError(
                f"nn.{kind.__name__} of torch {torch.__version__} does not read {switch}, so it "
                f"would compute LayerNorm in eval whatever its norm is; use another version of "
                f"torch (2.13 and 2.14 read it)"
            )
