"""The optimizers by name: which parameters they decay, how they are built, what they save.

To add one, write its builder and give it a row in `OPTIMIZERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from normtrain.config.sections import OptimConfig
from normtrain.errors import UserError, unknown_name
from normtrain.models.embedding import TokenModel
from normtrain.tasks.schedules import schedule_factor

Group = dict[str, Any]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Split parameters into those with and those without weight decay.

    Biases, embeddings (with an output matrix tied to one) and every parameter of a norm have none.
    A norm is a module whose class name contains ``Norm``, so norms of other packages count too.

    Args:
        model: the model; a parameter used twice is counted once.
        weight_decay: of the other parameters.

    Returns:
        Two groups for an optimizer, those with decay first.
    """
    free: set[int] = set()
    for module in model.modules():
        whole = isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if whole or name == "bias" or parameter.ndim < 2:
                free.add(id(parameter))
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0},
    ]


def _adamw(groups: list[Group], optim: OptimConfig) -> Optimizer:
    # Not fused on the meta device, which has no such kernel.
    fused = not any(p.is_meta for group in groups for p in group["params"])
    return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)


def _build_adamw(model: nn.Module, optim: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019, Decoupled Weight Decay Regularization)."""
    return _adamw(parameter_groups(model, optim.weight_decay), optim)


class MuonAdamW(Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimizer.

    Both work on this optimizer's own groups and state, so schedules, checkpoints and
    ``load_state_dict`` see one optimizer.

    Args:
        muon: of the matrices.
        adamw: of all other parameters.
    """

    def __init__(self, muon: Optimizer, adamw: Optimizer) -> None:
        self._parts = [(muon, len(muon.param_groups)), (adamw, len(adamw.param_groups))]
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each of the two."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, count in self._parts:  # loading a state replaces groups and state
            part.param_groups = self.param_groups[first : first + count]
            part.state = self.state
            part.step()
            first += count
        return loss


def _build_muon(model: nn.Module, optim: OptimConfig) -> Optimizer:
    """Muon (Jordan et al. 2024) for the matrices of layers, AdamW for all other parameters.

    The other parameters are embeddings, the output matrix, norms, biases and what is not 2-D.
    Muon's updates are scaled to the RMS of AdamW's (Liu et al. 2025, Muon is Scalable for LLM
    Training, equation 4), so both share ``optim.lr`` and ``optim.weight_decay``. Momentum is 0.95.
    """
    decayed, free = parameter_groups(model, optim.weight_decay)
    output = model.head.weight if isinstance(model, TokenModel) else None
    inner = [p for p in decayed["params"] if p.ndim == 2 and p is not output]
    outer = [p for p in decayed["params"] if p.ndim != 2 or p is output]
    muon = Muon([decayed | {"params": inner}], lr=optim.lr, adjust_lr_fn="match_rms_adamw")
    return MuonAdamW(muon, _adamw([decayed | {"params": outer}, free], optim))


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer.

    Attributes:
        build: makes it from a model and a recipe's ``optim`` section.
        ignores: keys of ``optim`` that it does not use.
        shards: whether it can train parameters that FSDP2 has sharded.
    """

    build: Callable[[nn.Module, OptimConfig], Optimizer]
    ignores: tuple[str, ...] = ()
    shards: bool = True


OPTIMIZERS = {
    "adamw": OptimizerEntry(_build_adamw),
    "muon": OptimizerEntry(_build_muon, shards=False),
}


def check_optimizer(optim: OptimConfig) -> None:
    """Check ``optim.name``, and that every key which was set has an effect.

    Raises:
        UserError: there is no such optimizer, or it ignores a key that is not at its default.
    """
    if optim.name not in OPTIMIZERS:
        raise UserError(f"optim.name: {unknown_name('optimizer', optim.name, OPTIMIZERS)}")
    for key in OPTIMIZERS[optim.name].ignores:
        if getattr(optim, key) != OptimConfig.model_fields[key].default:
            raise UserError(f"optim.{key} has no effect with optim.name {optim.name}")


def build_optimizer(model: nn.Module, optim: OptimConfig, max_steps: int) -> dict[str, Any]:
    """Return the optimizer and its schedule in the form Lightning takes.

    Args:
        model: the model to train.
        optim: a recipe's ``optim`` section.
        max_steps: optimizer steps of the whole run.
    """
    optimizer = OPTIMIZERS[optim.name].build(model, optim)
    floor = optim.min_lr / optim.lr
    factor = schedule_factor(optim.schedule, optim.warmup_steps, max_steps, floor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }


def state_template(model: nn.Module, optim: OptimConfig) -> dict[str, Any]:
    """Return the state dict that the optimizer of a model has after a step, without its values.

    Args:
        model: on the meta device.
        optim: a recipe's ``optim`` section.
    """
    optimizer = OPTIMIZERS[optim.name].build(model, optim)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Clip gradients as `torch.nn.utils.clip_grad_norm_`, without a pass over short ones.

    On a GPU only the device knows whether they are short, so there they are multiplied by 1.

    Args:
        parameters: those with gradients to clip together.
        limit: the largest norm of all gradients together; ``inf`` clips none.

    Returns:
        The norm before clipping.
    """
    some = [p for p in parameters if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])
    # torch adds 1e-6 before it divides: at most 1 here, and so a factor of 1 there.
    if limit == math.inf or (type(norm) is Tensor and norm.is_cpu and norm + 1e-6 <= limit):
        return norm
    torch.nn.utils.clip_grads_with_norm_(some, limit, norm)
    return norm
