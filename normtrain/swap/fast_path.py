"""Keeping torch's encoder layers from computing LayerNorm where another norm was put in.

Outside training `torch.nn.TransformerEncoderLayer` may run as one kernel that takes eps, weight and
bias of ``norm1`` and ``norm2`` and computes LayerNorm with them; the norms themselves are never
called. With a padding mask, `torch.nn.TransformerEncoder` may moreover hand its layers a nested
tensor, which other norms can't take. A norm that has the three attributes is then replaced by
LayerNorm without a word, and one that lacks any of them fails at the first evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from normtrain.errors import RunError

# What torch asks before it takes the fast path, of the layer and of the encoder around it. Nothing
# else reads them: the activation itself is another attribute.
_LAYER_SWITCH, _ENCODER_SWITCH = "activation_relu_or_gelu", "use_nested_tensor"


def check_disarmable(model: nn.Module, targets: Iterable[nn.Module]) -> None:
    """Refuse, before anything is changed, what `disarm` would refuse after it.

    Args:
        model: what is to be changed.
        targets: the norms of it that will be replaced.

    Raises:
        RunError: one of them is in an encoder layer of torch's whose fast path this version of
            torch switches on in another way than is known here.
    """
    sought = {id(target) for target in targets}
    if _layers_with(model, sought) or _encoders_with(model, sought):
        _check_switches()


def disarm(model: nn.Module, touched: Iterable[nn.Module]) -> list[str]:
    """Make encoder layers compute with their new norms outside training too.

    Switches the fast path off for each `torch.nn.TransformerEncoderLayer` that holds one of the new
    norms, subclasses included, and the nested tensors for each `torch.nn.TransformerEncoder` around
    such layers. Two plain attributes of these instances change, so copies and pickles keep it and
    state dicts don't know of it; doing it again changes nothing. Layers that hold none of
    the new norms, or only `torch.nn.LayerNorm` with weight and bias, stay as they are.

    Give it the whole model: an encoder outside of it goes on making nested tensors.

    Args:
        model: the model that was changed.
        touched: the norms that were put into it.

    Returns:
        The names of the layers whose fast path it switched off ("" for the model itself); a layer
        that had none, for example because of its activation, is not among them.

    Raises:
        RunError: this version of torch switches its fast path in another way than is known here;
            nothing was changed.
    """
    sought = {id(norm) for norm in touched if not _is_what_the_kernel_computes(norm)}
    layers, encoders = _layers_with(model, sought), _encoders_with(model, sought)
    if layers or encoders:
        _check_switches()
    disarmed = [name for name, layer in layers.items() if getattr(layer, _LAYER_SWITCH, 0)]
    for layer in layers.values():
        setattr(layer, _LAYER_SWITCH, 0)
    for encoder in encoders:
        setattr(encoder, _ENCODER_SWITCH, False)
    return disarmed


def _is_what_the_kernel_computes(norm: nn.Module) -> bool:
    """Whether this is torch's LayerNorm over one axis with all that the kernel reads of it.

    LayerNorm of this package is not: it gives other results for rows whose squares overflow, and
    takes no nested tensor.
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
    """The encoder layers, by name, that hold one of the modules with these ids."""
    return {
        name: module
        for name, module in model.named_modules()
        # A subclass with a forward of its own may call torch's, so it counts.
        if isinstance(module, nn.TransformerEncoderLayer) and _holds(module, sought)
    }


def _encoders_with(model: nn.Module, sought: set[int]) -> list[nn.Module]:
    """The encoders with such a module in their layers; their last norm sees no nested tensor."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder) and _holds(module.layers, sought)
    ]


def _check_switches() -> None:
    """Refuse a torch whose forwards do not ask for the two attributes.

    Raises:
        RunError: one of them does not.
    """
    kinds = ((nn.TransformerEncoderLayer, _LAYER_SWITCH), (nn.TransformerEncoder, _ENCODER_SWITCH))
    for kind, switch in kinds:
        code = getattr(inspect.unwrap(kind.forward), "__code__", None)
        # An attribute asked for by getattr or hasattr is among the constants.
        if code is None or switch not in (*code.co_names, *code.co_consts):
            raise RunError(
                f"nn.{kind.__name__} of torch {torch.__version__} does not ask for {switch}, so it "
                f"can't be kept from computing LayerNorm in evaluation instead of another norm; "
                f"use a torch where it does (2.13 and 2.14 do)"
            )
