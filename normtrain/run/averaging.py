"""One checkpoint from the mean of the last few."""

from __future__ import annotations

from pathlib import Path

import torch

from normtrain.errors import UserError
from normtrain.files import write_atomically
from normtrain.run.checkpoint import read_checkpoint


def average(run: Path, *, last: int, output: Path) -> str:
    """Average the weights of a run's last numbered checkpoints.

    Args:
        run: the run folder.
        last: how many; the recipe's ``train.keep`` bounds how many there are.
        output: the file to write: a checkpoint for ``evaluate``, ``translate`` and ``export``.
            It carries no optimizer state, so it can't be resumed.

    Returns:
        A line that says what was averaged.

    Raises:
        ValueError: if there are fewer checkpoints, or ``last`` is below 1.
        RunError: if the file can't be written.
    """
    if last < 1:
        raise UserError(f"--last is 1 or more, not {last}")
    files = sorted((Path(run) / "checkpoints").glob("step-*.ckpt"))
    if len(files) < last:
        raise UserError(
            f"{run} has {len(files)} numbered checkpoints, {last} were asked for; ask for fewer, "
            f"or train with a larger train.keep"
        )
    if output.is_dir():
        raise UserError(f"{output} is a folder; -o takes a file's name")
    chosen = [read_checkpoint(file) for file in files[-last:]]
    first = chosen[0]
    # Float64 sums: the mean must not depend on the order of the files.
    mean = {
        key: (sum(c.raw["state_dict"][key].double() for c in chosen) / last).to(value.dtype)
        for key, value in first.raw["state_dict"].items()
        if isinstance(value, torch.Tensor)
    }
    checkpoint = {
        "state_dict": mean,
        "normtrain": {**first.raw["normtrain"], "averaged_steps": [c.step for c in chosen]},
        "global_step": chosen[-1].step,
    }
    write_atomically(output, lambda temporary: torch.save(checkpoint, temporary))
    steps = ", ".join(str(c.step) for c in chosen)
    return f"{output}: the mean of the checkpoints at steps {steps}"
