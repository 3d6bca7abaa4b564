"""AdamW with decay on matrices only, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError

SCHEDULES = ("inverse-sqrt", "cosine", "linear", "constant")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that don't.

    Biases, embeddings (with an output matrix tied to one) and every parameter of a norm stay
    free of decay. A norm is told by its class name, so norms from elsewhere count too.

    Args:
        model: the model; a parameter used twice is counted once.
        weight_decay: AdamW's decay for the rest.

    Returns:
        Two parameter groups for an optimizer, decaying ones first.
    """
    free: set[int] = set()
    for module in model.modules():
        whole = isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if whole or name == "bias" or parameter.ndim < 2:
                free.add(id(parameter))
    decayed = [p for p in model.parameters() if p.requires_grad and id(p) not in free]
    kept = [p for p in model.parameters() if p.requires_grad and id(p) in free]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_`, without its pass over gradients that are short enough.

    On a GPU only the device knows whether they are, so there they are multiplied by 1.

    Args:
        parameters: those with gradients to clip together.
        limit: the largest norm of all gradients together; ``inf`` clips none.

    Returns:
        The norm before clipping.
    """
    some = [p for p in parameters if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])
    # 1e-6 is what torch adds before it divides: at most 1 here, and so a factor of 1 there
    if limit == math.inf or (type(norm) is Tensor and norm.is_cpu and norm + 1e-6 <= limit):
        return norm
    torch.nn.utils.clip_grads_with_norm_(some, limit, norm)
    return norm


def schedule_factor(
    schedule: str, warmup_steps: int, max_steps: int, floor: float = 0.0
) -> Callable[[int], float]:
    """The learning rate as a share of its peak, by step.

    Warm-up rises linearly to 1 over ``warmup_steps``. After it: ``inverse-sqrt`` falls as
    ``sqrt(warmup/step)`` (Vaswani et al. 2017), ``cosine`` and ``linear`` fall to ``floor`` just
    after ``max_steps``, ``constant`` stays.

    Args:
        schedule: one of the four names.
        warmup_steps: optimizer steps of warm-up; 0 starts at the peak.
        max_steps: optimizer steps of the whole run.
        floor: the lowest share, for ``cosine`` and ``linear``; a bound for ``inverse-sqrt``.

    Returns:
        A function of the number of optimizer steps done.

    Raises:
        ValueError: for another name.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")

    def factor(step: int) -> float:
        now = step + 1  # the step about to be taken: the first one must not have rate 0
        if now < warmup_steps:
            return now / warmup_steps
        if schedule == "constant":
            return 1.0
        if schedule == "inverse-sqrt":
            return max(floor, math.sqrt(max(1, warmup_steps) / now))
        # One more than the steps left, so that the last one still moves.
        done = min(1.0, (now - warmup_steps) / (max_steps - warmup_steps + 1))
        share = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0 - done
        return floor + (1.0 - floor) * share

    return factor


def build_optimizer(model: nn.Module, optim: Any, max_steps: int) -> dict[str, Any]:
    """AdamW and its schedule in the form Lightning takes.

    Args:
        model: the model to train.
        optim: a recipe's ``optim`` section.
        max_steps: optimizer steps of the whole run.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim.weight_decay),
        lr=optim.lr,
        betas=tuple(optim.betas),
        eps=optim.eps,
        fused=True,
    )
    floor = optim.min_lr / optim.lr
    factor = schedule_factor(optim.schedule, optim.warmup_steps, max_steps, floor)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1},
    }
