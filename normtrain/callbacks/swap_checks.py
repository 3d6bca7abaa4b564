"""What in a Trainer keeps a swap of norms from doing what it says; each ends in a clear error."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from normtrain.errors import UserError

# They copy the model, or note parameters and modules of it, in their own setup.
_HOLDERS = ("WeightAveraging", "StochasticWeightAveraging", "BaseFinetuning", "ModelPruning")
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")


def is_a(value: Any, name: str) -> bool:
    """Whether a value is of a class of Lightning's of that name, in any flavour of it."""
    return any(
        base.__name__ == name and base.__module__.startswith(_LIGHTNING)
        for base in type(value).__mro__
    )


def check_order(trainer: Any, swap: Any) -> None:
    """Refuse callbacks ahead of the swap that would go on with the old norms.

    Raises:
        UserError: one of them is.
    """
    for callback in trainer.callbacks:
        if callback is swap:
            return
        for holder in _HOLDERS:
            if is_a(callback, holder):
                name = type(callback).__name__
                raise UserError(
                    f"{name} comes before NormSwap in the callbacks and would keep the norms that "
                    f"NormSwap replaces; put NormSwap first: callbacks=[NormSwap(...), {name}(...)]"
                )


def check_task(module: nn.Module) -> None:
    """Refuse the tasks of this package, whose recipe says which norms they have.

    Raises:
        UserError: it is one.
    """
    if any(base.__module__.startswith("normtrain.tasks.") for base in type(module).__mro__):
        raise UserError(
            f"a {type(module).__name__} has the norms of its recipe, and so have its checkpoints; "
            f"choose them there (model.norm, model.norm_rules) instead of with NormSwap"
        )


def in_spawned_process(trainer: Any) -> bool:
    """Whether the Trainer runs in processes that began with a copy of the caller's model."""
    return is_a(trainer.strategy.launcher, "_MultiProcessingLauncher")


def warn_of_transformer_engine(trainer: Any) -> None:
    """Say that Transformer Engine's plugin replaces modules too, after the swap."""
    if is_a(trainer.precision_plugin, "TransformerEnginePrecision"):
        warnings.warn(
            "the Transformer Engine precision plugin puts its own LayerNorm in the place of every "
            "torch.nn.LayerNorm that NormSwap has left, and lets the norms that NormSwap put in "
            "be; compare norms without it",
            stacklevel=2,
        )


def check_optimizers(
    trainer: Any, module: nn.Module, dropped: list[nn.Parameter], added: list[nn.Parameter]
) -> None:
    """Refuse optimizers that were made before the swap, and name parameters that none of them has.

    Args:
        trainer: about to train.
        module: with its new norms.
        dropped: the parameters that the swap took out of it.
        added: those that it put in anew.

    Raises:
        UserError: an optimizer holds a parameter that is gone.
    """
    held = {
        id(parameter)
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    if dead := sum(id(parameter) in held for parameter in dropped):
        raise UserError(
            f"an optimizer holds {dead} parameters of norms that NormSwap replaced, so it was made "
            f"before the swap; make it in configure_optimizers, from self.parameters() there"
        )
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if not held <= names.keys():  # flattened by a strategy: which is in which can't be told
        return
    new = [names[id(p)] for p in added if p.requires_grad and id(p) in names.keys() - held]
    if new:
        warnings.warn(
            f"no optimizer holds {new[0]}, a new parameter of a norm that NormSwap put in"
            f"{f' (and {len(new) - 1} more)' if new[1:] else ''}, so it stays as it begins; "
            f"configure_optimizers chooses what is trained",
            stacklevel=2,
        )
