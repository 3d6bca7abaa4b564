"""Learning-rate schedules, as a share of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable


def schedule_factor(
    schedule: str, warmup_steps: int, max_steps: int, floor: float = 0.0
) -> Callable[[int], float]:
    """Return the learning rate as a share of its peak, by optimizer steps done.

    The warm-up rises linearly to 1 over ``warmup_steps``. After it ``inverse-sqrt`` falls as
    ``sqrt(warmup/step)`` (Vaswani et al. 2017), ``cosine`` and ``linear`` fall to ``floor`` just
    after ``max_steps``, and ``constant`` stays.

    Args:
        schedule: ``optim.schedule`` of a recipe.
        warmup_steps: optimizer steps of warm-up; 0 starts at the peak.
        max_steps: optimizer steps of the whole run.
        floor: the lowest share, for ``cosine`` and ``linear``; a bound for ``inverse-sqrt``.
    """

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
