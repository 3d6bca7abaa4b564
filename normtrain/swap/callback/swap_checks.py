"""What in a Trainer keeps a swap of norms from doing what it says; each ends in a clear error."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.batch import BatchNormBase
from normtrain.swap.record import is_swapped
from normtrain.swap.swap import was_dropped

# They copy the model, or note parameters and modules of it, in their own setup.
_HOLDERS = ("WeightAveraging", "StochasticWeightAveraging", "BaseFinetuning", "ModelPruning")
# They keep parameters in the optimizer as pieces of one.
_FLATTENING = ("FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy")
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")


def is_a(value: Any, name: str) -> bool:
    """Whether a value is of a class of Lightning's of that name, in any flavour of it."""
    return any(
        base.__name__ == name and base.__module__.startswith(_LIGHTNING)
        for base in type(value).__mro__
    )


def holds_copies(callback: Any) -> bool:
    """Whether a callback is one of Lightning's that copy the model or note parts of it."""
    return any(is_a(callback, holder) for holder in _HOLDERS)


def check_order(trainer: Any, swap: Any) -> None:
    """Refuse callbacks ahead of the swap that would go on with the old norms.

    Raises:
        UserError: one of them is.
    """
    for callback in trainer.callbacks:
        if callback is swap:
            return
        if holds_copies(callback):
            name = type(callback).__name__
            raise UserError(
                f"{name} comes before NormSwap in the callbacks and would keep the norms that "
                f"NormSwap replaces; put NormSwap first: Trainer(callbacks=[NormSwap(...), "
                f"{name}(...)]), not into the model's configure_callbacks, which come last"
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


def check_optimizers(trainer: Any, module: nn.Module) -> None:
    """Refuse optimizers that were made before a swap, and name parameters that none of them has.

    Args:
        trainer: about to train.
        module: with its new norms.

    Raises:
        UserError: an optimizer holds parameters of norms that a swap took out of the module.
    """
    if any(is_a(trainer.strategy, name) for name in _FLATTENING):
        return  # which parameter is in which of the optimizer's can't be told
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    held = {id(parameter): parameter for group in groups for parameter in group["params"]}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    dead = sum(was_dropped(p) for key, p in held.items() if key not in names)
    if dead:
        raise UserError(
            f"an optimizer holds {dead} parameters of norms that were replaced, so it was made "
            f"before the swap; make it in configure_optimizers, from self.parameters() there"
        )
    swapped = [norm for norm in module.modules() if is_swapped(norm)]
    learned = {id(p): p.requires_grad for norm in swapped for p in norm.parameters()}
    idle = [names[key] for key, trained in learned.items() if trained and key not in held]
    if idle and held:
        warnings.warn(
            f"no optimizer holds {idle[0]} of a norm that was swapped in"
            f"{f' (nor {len(idle) - 1} more such parameters)' if idle[1:] else ''}, so it stays as "
            f"it is; if it shall be trained, see whether configure_optimizers chooses by class",
            stacklevel=2,
        )


def sync_batch_norms(trainer: Any, module: nn.Module) -> None:
    """Do for the batch norms put in what ``sync_batchnorm=True`` does for torch's."""
    if getattr(trainer.strategy, "_layer_sync", None) is None:
        return
    for norm in module.modules():
        if isinstance(norm, BatchNormBase) and is_swapped(norm):
            norm.sync = True
