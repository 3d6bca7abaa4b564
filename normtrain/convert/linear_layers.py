"""Check that a module computes what its class defines, so that its weights can be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from normtrain.errors import UserError

# Hugging Face's position tables, which only look vectors up.
_POSITIONS = ("OPTLearnedPositionalEmbedding", "WhisperPositionalEmbedding")


def recentre_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Recentre the first argument, ``(..., width)``; a forward pre-hook."""
    return _with_first(args, kwargs, lambda x: x - x.mean(-1, keepdim=True))


def recentre_and_drop_entry(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Recentre the first argument and drop its last feature; a forward pre-hook."""
    return _with_first(args, kwargs, lambda x: (x - x.mean(-1, keepdim=True))[..., :-1])


def _with_first(
    args: tuple, kwargs: dict, change: Callable[[Tensor], Tensor]
) -> tuple[tuple, dict]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name, first = next(iter(kwargs.items()))
    return args, {**kwargs, name: change(first)}


def entry_hooks(module: nn.Module) -> list[int]:
    """Return the ids of a module's hooks that are defined here."""
    ours = (recentre_entry, recentre_and_drop_entry)
    return [key for key, hook in module._forward_pre_hooks.items() if hook in ours]


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a name.

    Raises:
        UserError: there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"the model has no module {name}") from None


def is_transposed(module: nn.Module) -> bool:
    """Return whether this is the ``(in, out)`` linear layer Conv1D of Hugging Face's GPT-2."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def is_position_table(module: nn.Module) -> bool:
    """Return whether this is a position embedding of Hugging Face."""
    kind = type(module)
    return kind.__name__ in _POSITIONS and kind.__module__.startswith("transformers.")


def runs_as(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Return whether the module's class has the forward of one of these classes."""
    return any(type(module).forward is kind.forward for kind in kinds)


def check_unchanged(module: nn.Module, name: str) -> None:
    """Refuse a module whose output or weights are changed by hooks or wrappers.

    Raises:
        UserError: it has forward hooks or a patched forward, or its weight or bias is not a plain
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
                f"the {kept} of {name} must be a plain floating-point parameter, not parametrized, "
                f"pruned, quantized or sharded"
            )


def check_values(model: nn.Module) -> None:
    """Refuse a model on the meta device, whose weights have no values.

    Raises:
        UserError: a parameter has none; it is named.
    """
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_meta:
            raise UserError(f"{name} has no values yet (meta device); load the weights first")


def check_linear(module: nn.Module, name: str) -> None:
    """Refuse a module that is not a plain linear layer.

    Raises:
        UserError: it is of another class, or hooks or wrappers change it.
    """
    if not (runs_as(module, [nn.Linear]) or is_transposed(module)):
        raise UserError(
            f"{name} is a {type(module).__name__}, not a plain linear layer, so its weights cannot "
            "be changed exactly; merge adapters and unwrap it first"
        )
    check_unchanged(module, name)
