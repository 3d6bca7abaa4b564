"""Whether a module computes what its class says, so that changing its weights is enough."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normtrain.errors import UserError

# Hugging Face's tables of positions: they choose rows, and give them as they are.
_POSITIONS = ("OPTLearnedPositionalEmbedding", "WhisperPositionalEmbedding")


def recentre_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook that recentres the first argument, ``(..., width)``."""
    if args:
        return (args[0] - args[0].mean(-1, keepdim=True), *args[1:]), kwargs
    name, first = next(iter(kwargs.items()))
    return args, {**kwargs, name: first - first.mean(-1, keepdim=True)}


def recentre_and_drop_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook that recentres the first argument and drops its last feature."""
    args, kwargs = recentre_entry(module, args, kwargs)
    if args:
        return (args[0][..., :-1], *args[1:]), kwargs
    name, first = next(iter(kwargs.items()))
    return args, {**kwargs, name: first[..., :-1]}


def entry_hooks(module: nn.Module) -> list[int]:
    """The ids of the hooks of this file that a module has."""
    ours = (recentre_entry, recentre_and_drop_entry)
    return [key for key, hook in module._forward_pre_hooks.items() if hook in ours]


def is_transposed(module: nn.Module) -> bool:
    """Whether this is the ``(in, out)`` linear map that Hugging Face's GPT-2 calls Conv1D."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def is_position_table(module: nn.Module) -> bool:
    """Whether this is one of Hugging Face's embeddings of positions."""
    kind = type(module)
    return kind.__name__ in _POSITIONS and kind.__module__.startswith("transformers.")


def runs_as(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Whether the forward of the module's class is that of one of these classes."""
    return any(type(module).forward is kind.forward for kind in kinds)


def check_unchanged(module: nn.Module, name: str) -> None:
    """Refuse a module whose output or weights something else changes.

    Raises:
        UserError: it has forward hooks or a patched forward, or its weight or bias is no plain
            floating-point parameter: parametrized, pruned, quantized, sharded or without values.
    """
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) - len(entry_hooks(module))
    if hooks or "forward" in vars(module):
        raise UserError(f"{name} has forward hooks or a patched forward; remove them first")
    for kept in ("weight", "bias"):
        if getattr(module, kept, None) is None:
            continue
        parameter = module._parameters.get(kept)
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise UserError(
                f"the {kept} of {name} is no plain floating-point parameter (parametrized, pruned, "
                f"quantized or sharded); make it one first"
            )


def check_values(model: nn.Module) -> None:
    """Refuse a model on the meta device, whose weights have no values to look at.

    Raises:
        UserError: a parameter has none; it is named.
    """
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_meta:
            raise UserError(f"{name} has no values yet (meta device); load the weights first")


def check_linear(module: nn.Module, name: str) -> None:
    """Refuse what is not a plain linear map.

    Raises:
        UserError: it is something else, or changed by something else.
    """
    if not (runs_as(module, [nn.Linear]) or is_transposed(module)):
        raise UserError(
            f"{name} is a {type(module).__name__}, not a plain linear map, so its weights can't be "
            f"changed exactly; merge adapters and unwrap it first"
        )
    check_unchanged(module, name)
