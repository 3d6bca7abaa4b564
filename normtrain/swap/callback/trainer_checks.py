"""Check a Trainer and its model for what would make a swap of norms fail silently."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.batch import BatchNormBase
from normtrain.swap.norm_record import is_swapped
from normtrain.swap.swap import was_removed

# They copy the model, or store parameters and modules of it, in their own setup.
_HOLDERS = ("WeightAveraging", "StochasticWeightAveraging", "BaseFinetuning", "ModelPruning")
# Their optimizers hold flattened parameters.
_FLATTENING = ("FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy")
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")


def is_a(value: Any, name: str) -> bool:
    """Return whether a value is an instance of Lightning's class of that name, in any flavour."""
    return any(
        base.__name__ == name and base.__module__.startswith(_LIGHTNING)
        for base in type(value).__mro__
    )


def holds_copies(callback: Any) -> bool:
    """Return whether a callback of Lightning copies the model or stores parts of it."""
    return any(is_a(callback, holder) for holder in _HOLDERS)


def check_order(trainer: Any, swap: Any) -> None:
    """Check that no callback before NormSwap has copied the model with its old norms.

    Raises:
        UserError: a callback before it does.
    """
    for callback in trainer.callbacks:
        if callback is swap:
            return
        if holds_copies(callback):
            name = type(callback).__name__
            raise UserError(
                f"{name} comes before NormSwap in the callbacks and would keep the old norms; put "
                f"NormSwap first: Trainer(callbacks=[NormSwap(...), {name}(...)]), not in the "
                f"model's configure_callbacks, which come last"
            )


def check_task(module: nn.Module) -> None:
    """Check that a module is not a task of this package, whose recipe chooses its norms.

    Raises:
        UserError: it is one.
    """
    if any(base.__module__.startswith("normtrain.tasks.") for base in type(module).__mro__):
        raise UserError(
            f"the norms of a {type(module).__name__} are chosen in its recipe (model.norm, "
            f"model.norm_rules), not with NormSwap"
        )


def in_spawned_process(trainer: Any) -> bool:
    """Return whether the Trainer runs in processes that have a copy of the caller's model."""
    return is_a(trainer.strategy.launcher, "_MultiProcessingLauncher")


def warn_of_transformer_engine(trainer: Any) -> None:
    """Warn that Transformer Engine's plugin also replaces modules, after the swap."""
    if is_a(trainer.precision_plugin, "TransformerEnginePrecision"):
        warnings.warn(
            "the Transformer Engine precision plugin replaces every remaining torch.nn.LayerNorm "
            "by its own, but not the norms that NormSwap put in; compare norms without it",
            stacklevel=2,
        )


def check_optimizers(trainer: Any, module: nn.Module) -> None:
    """Check that the optimizers hold the new norms' parameters; warn of any that none holds.

    Args:
        trainer: about to train.
        module: with its new norms.

    Raises:
        UserError: an optimizer holds parameters of norms that were replaced.
    """
    if any(is_a(trainer.strategy, name) for name in _FLATTENING):
        return
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    held = {id(parameter): parameter for group in groups for parameter in group["params"]}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    stale = sum(was_removed(p) for key, p in held.items() if key not in names)
    if stale:
        raise UserError(
            f"an optimizer holds {stale} parameters of norms that were replaced, so it was created "
            f"before the swap; create it in configure_optimizers"
        )
    swapped = [norm for norm in module.modules() if is_swapped(norm)]
    trainable = {id(p): p.requires_grad for norm in swapped for p in norm.parameters()}
    unused = [names[key] for key, trained in trainable.items() if trained and key not in held]
    if unused and held:
        warnings.warn(
            f"no optimizer holds {unused[0]} of a new norm"
            f"{f' (nor {len(unused) - 1} more such parameters)' if unused[1:] else ''}, so it is "
            f"not trained; check whether configure_optimizers chooses parameters by class",
            stacklevel=2,
        )


def sync_batch_norms(trainer: Any, module: nn.Module) -> None:
    """Apply ``sync_batchnorm=True`` to the new batch norms."""
    if getattr(trainer.strategy, "_layer_sync", None) is None:
        return
    for norm in module.modules():
        if isinstance(norm, BatchNormBase) and is_swapped(norm):
            norm.sync = True
