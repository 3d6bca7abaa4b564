"""Stopping before an update that is no number is applied, and saying where it came from."""

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
"""Updates that a GPU may be ahead of the host's look at whether they are finite."""


class BrokenUpdate(RunError):
    """A loss, gradient or weight is no number; the weights are those before, or aren't saved."""


@dataclass
class _Batch:
    """A batch, and the random state its forward pass began with."""

    batch: Any
    index: int
    random: list[Tensor]
    loss: Tensor | None = None


@dataclass
class _Update:
    step: int
    batches: list[_Batch]
    loss: Tensor
    norm: Tensor
    bad: Callable[[], bool]


class UpdateWatch:
    """Looks at every update's loss and gradient before the optimizer does.

    On a CPU the look is at once. On a GPU it would make the host wait for all that is queued, so
    there the optimizer is told, on the GPU, to leave the weights alone from a bad update on, and
    the host looks two updates later, at a copy that has long arrived: at the same update on every
    process, so that they stop together. An optimizer that can't be told is looked at at once.

    Args:
        rerun: computes a batch's loss again, from the batch and its index.
        model: what is trained.
    """

    def __init__(self, rerun: Callable[[Any, int], Tensor], model: nn.Module) -> None:
        self._rerun, self._model = rerun, model
        self._batches: list[_Batch] = []
        self._waiting: deque[_Update] = deque()
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
        """How many of this process's losses of the update are no number; int64."""
        losses = [b.loss for b in self._batches if b.loss is not None]
        if not losses:
            return torch.zeros((), dtype=torch.int64, device=device)
        return (~torch.isfinite(torch.stack(losses))).sum()

    def check(self, step: int, bad: Tensor, norm: Tensor, scale: Any, optimizer: Any) -> None:
        """Look at an update that is about to be applied.

        Args:
            step: the optimizer step it makes.
            bad: `bad_losses`, of all processes together.
            norm: the gradient's, over all processes.
            scale: what makes the sum of the losses their mean over tokens.
            optimizer: about to apply it.

        Raises:
            BrokenUpdate: it, or on a GPU one of the last two, is no number.
        """
        batches, self._batches = self._batches, []
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # in shards
        if self._reads_at_once(norm) and math.isfinite(float(norm)) and not int(bad):
            return
        losses = [b.loss for b in batches if b.loss is not None]
        loss = torch.stack(losses).sum() * scale if losses else norm
        flag = (bad > 0) | ~torch.isfinite(norm)
        later = self._is_told(optimizer, flag)
        self._waiting.append(_Update(step, batches, loss, norm, _to_host(flag)))
        while len(self._waiting) > (LAG if later else 0):
            self._look(self._waiting.popleft())

    def _reads_at_once(self, value: Tensor) -> bool:
        """Whether the host need not wait for a value."""
        return value.device.type == "cpu"

    def _is_told(self, optimizer: Any, flag: Tensor) -> bool:
        """Have the optimizer skip what is bad, on the device; whether it can."""
        if flag.device.type == "cpu" or not optimizer.defaults.get("fused"):
            return False
        if any(hasattr(p, "full_tensor") for p in self._model.parameters()):
            return False
        value = flag.to(torch.float32)
        self._any_bad = value if self._any_bad is None else torch.maximum(self._any_bad, value)
        optimizer.found_inf = self._any_bad
        return True

    def settle(self) -> None:
        """Look at what is still waiting, before weights are saved.

        Raises:
            BrokenUpdate: an update was no number.
        """
        while self._waiting:
            self._look(self._waiting.popleft())

    def _look(self, update: _Update) -> None:
        if not update.bad():
            return
        loss = _mean_over_ranks(update.loss)
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", update.norm)
        raise BrokenUpdate(
            f"the {what} is {float(value)} at step {update.step}: {self._where(update.batches)}; "
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
            return "run again, every layer gives finite numbers, only their sums may not be"
        if len(everyone) == 1:
            return earliest.text
        return f"on process {everyone.index(earliest) + 1} of {len(everyone)}, {earliest.text}"

    def _diagnose(self, batch: _Batch) -> Finding | None:
        _set_random_state(batch.random, self._device)
        return diagnose(self._model, lambda: self._rerun(batch.batch, batch.index))

    def check_weights(self, step: int) -> None:
        """Refuse weights that are no numbers; for before they are saved.

        Raises:
            BrokenUpdate: some are, on any process.
        """
        named = [(n, getattr(p, "_local_tensor", p)) for n, p in self._model.named_parameters()]
        if not named:
            return
        sizes = torch._foreach_norm([p.detach() for _, p in named], float("inf"))
        finite = torch.stack([s.float().isfinite().all() for s in sizes]).tolist()
        mine = next((n for (n, _), good in zip(named, finite, strict=True) if not good), None)
        bad = next((name for name in all_gather(mine) if name is not None), None)
        if bad is not None:
            raise BrokenUpdate(
                f"the weights {bad} are no numbers any more after step {step}; lower optim.lr or "
                f"raise optim.warmup_steps"
            )


def _earlier(first: Finding | None, second: Finding | None) -> Finding | None:
    """What came first: any forward pass comes before the gradients."""
    if first is None or (second is not None and second.forward and not first.forward):
        return second
    return first


def _to_host(flag: Tensor) -> Callable[[], bool]:
    """A value of the device's that can be read later without waiting for what came after it."""
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
