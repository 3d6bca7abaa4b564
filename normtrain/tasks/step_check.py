"""Stop before an optimizer step with NaN or Inf, and name the layer that they came from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normtrain.errors import RunError
from normtrain.ranks import all_gather, several_ranks
from normtrain.tasks.diagnosis import Finding, diagnose

LAG = 2
"""Optimizer steps that a GPU may be ahead of the host's check whether they are finite."""


class NonFiniteStep(RunError):
    """A loss, gradient or weight is NaN or Inf; the step is not taken, or not saved."""


@dataclass
class _Batch:
    """A batch, and the random state before its forward pass."""

    batch: Any
    index: int
    random: list[Tensor]
    loss: Tensor | None = None


@dataclass
class _Step:
    """An optimizer step that has not been checked."""

    step: int
    batches: list[_Batch]
    loss: Tensor
    norm: Tensor
    bad: Callable[[], bool]


class StepCheck:
    """Checks the loss and gradient of every optimizer step before it is taken.

    On a CPU the check is immediate. On a GPU that would make the host wait for everything queued,
    so there a fused optimizer skips, on the GPU, all steps from the first bad one on
    (``found_inf``), and the host checks a copy two steps later: the same step on every rank, so
    that they stop together. An optimizer that cannot skip steps is checked immediately.

    Args:
        rerun: computes a batch's loss again, from the batch and its index.
        model: what is trained.
    """

    def __init__(self, rerun: Callable[[Any, int], Tensor], model: nn.Module) -> None:
        self._rerun, self._model = rerun, model
        self._batches: list[_Batch] = []
        self._waiting: deque[_Step] = deque()
        self._any_bad: Tensor | None = None

    def begin(self, batch: Any, index: int) -> None:
        """Remember a batch, before its forward pass."""
        self._batches.append(_Batch(batch, index, _random_state(self._device)))

    def note(self, loss: Tensor) -> None:
        """Remember a batch's loss."""
        if self._batches:
            self._batches[-1].loss = loss.detach()

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def bad_losses(self, device: torch.device) -> Tensor:
        """Return how many of this rank's losses of the step are NaN or Inf; int64."""
        losses = [b.loss for b in self._batches if b.loss is not None]
        if not losses:
            return torch.zeros((), dtype=torch.int64, device=device)
        return (~torch.isfinite(torch.stack(losses))).sum()

    def check(self, step: int, bad: Tensor, norm: Tensor, scale: Any, optimizer: Any) -> None:
        """Check an optimizer step that is about to be taken.

        Args:
            step: its number.
            bad: `bad_losses`, summed over all ranks.
            norm: of the gradient, over all ranks.
            scale: makes the sum of the losses their mean over tokens.
            optimizer: takes the step.

        Raises:
            NonFiniteStep: it, or on a GPU one of the last two, has NaN or Inf.
        """
        batches, self._batches = self._batches, []
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # in shards
        if self._reads_at_once(norm) and math.isfinite(float(norm)) and not int(bad):
            return
        losses = [b.loss for b in batches if b.loss is not None]
        loss = torch.stack(losses).sum() * scale if losses else norm
        flag = (bad > 0) | ~torch.isfinite(norm)
        later = self._skips(optimizer, flag)
        self._waiting.append(_Step(step, batches, loss, norm, _to_host(flag)))
        while len(self._waiting) > (LAG if later else 0):
            self._check(self._waiting.popleft())

    def _reads_at_once(self, value: Tensor) -> bool:
        """Return whether the host can read a value without waiting."""
        return value.device.type == "cpu"

    def _skips(self, optimizer: Any, flag: Tensor) -> bool:
        """Make the optimizer skip bad steps on the device; return whether it can."""
        if flag.device.type == "cpu" or not optimizer.defaults.get("fused"):
            return False
        if any(hasattr(p, "full_tensor") for p in self._model.parameters()):
            return False
        value = flag.to(torch.float32)
        self._any_bad = value if self._any_bad is None else torch.maximum(self._any_bad, value)
        optimizer.found_inf = self._any_bad
        return True

    def settle(self) -> None:
        """Check the remaining steps, before weights are saved.

        Raises:
            NonFiniteStep: one had NaN or Inf.
        """
        while self._waiting:
            self._check(self._waiting.popleft())

    def _check(self, step: _Step) -> None:
        if not step.bad():
            return
        loss = _mean_over_ranks(step.loss)
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", step.norm)
        raise NonFiniteStep(
            f"the {what} is {float(value)} at step {step.step}: {self._where(step.batches)}; "
            f"lower optim.lr, raise optim.warmup_steps or set train.precision=32"
        )

    def _where(self, batches: list[_Batch]) -> str:
        found: Finding | None = None
        for batch in batches:
            found = _earlier(found, self._diagnose(batch))
        everyone = all_gather(found)
        earliest: Finding | None = None
        for each in everyone:
            earliest = _earlier(earliest, each)
        if earliest is None:
            return "run again, every layer is finite"
        if len(everyone) == 1:
            return earliest.text
        return f"on rank {everyone.index(earliest)} of {len(everyone)}, {earliest.text}"

    def _diagnose(self, batch: _Batch) -> Finding | None:
        _set_random_state(batch.random, self._device)
        return diagnose(self._model, lambda: self._rerun(batch.batch, batch.index))

    def check_weights(self, step: int) -> None:
        """Refuse to save weights that are not finite.

        Raises:
            NonFiniteStep: a weight is NaN or Inf, on any rank.
        """
        named = [(n, getattr(p, "_local_tensor", p)) for n, p in self._model.named_parameters()]
        if not named:
            return
        sizes = torch._foreach_norm([p.detach() for _, p in named], float("inf"))
        finite = torch.stack([s.float().isfinite().all() for s in sizes]).tolist()
        mine = next((n for (n, _), good in zip(named, finite, strict=True) if not good), None)
        bad = next((name for name in all_gather(mine) if name is not None), None)
        if bad is not None:
            raise NonFiniteStep(
                f"the weights {bad} are NaN or Inf after step {step}; lower optim.lr or raise "
                f"optim.warmup_steps"
            )


def _earlier(first: Finding | None, second: Finding | None) -> Finding | None:
    """Return the earlier finding: any forward pass comes before the gradients."""
    if first is None or (second is not None and second.forward and not first.forward):
        return second
    return first


def _to_host(flag: Tensor) -> Callable[[], bool]:
    """Return a reader of a device value that does not wait for work queued after it."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    copy.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> bool:
        arrived.synchronize()
        return bool(copy)

    return read


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _mean_over_ranks(value: Tensor) -> float:
    if not several_ranks():
        return float(value)
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
