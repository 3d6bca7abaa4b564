"""One checkpoint from the mean of the last few."""

from __future__ import annotations

from pathlib import Path

import torch

from normtrain.errors import UserError
from normtrain.files import write_atomically
from normtrain.training.checkpoint import check_output, read_checkpoint


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
        ValueError: if there are fewer checkpoints, or they are of different models, or ``last`` is
            below 1, or ``output`` is no place for it.
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
    check_output(output)
    # Float64 sums, one file in memory at a time: a checkpoint also has the optimizer's state.
    sums: dict[str, torch.Tensor] = {}
    steps: list[int] = []
    shapes: dict[str, torch.Size] = {}
    for file in files[-last:]:
        read = read_checkpoint(file)
        steps.append(read.step)
        state = read.raw["state_dict"]
        shapes = shapes or {key: value.shape for key, value in state.items()}
        if shapes != {key: value.shape for key, value in state.items()}:
            raise UserError(
                f"{file} and {files[-last]} hold weights of different models; average those of one "
                "run"
            )
        for key, value in state.items():
            sums[key] = sums[key] + value.double() if key in sums else value.double()
    dtypes = {key: value.dtype for key, value in read.raw["state_dict"].items()}
    checkpoint = {
        "state_dict": {key: (total / last).to(dtypes[key]) for key, total in sums.items()},
        "normtrain": {**read.raw["normtrain"], "averaged_steps": steps},
        "global_step": steps[-1],
    }
    write_atomically(output, lambda temporary: torch.save(checkpoint, temporary))
    return f"{output}: the mean of the checkpoints at steps {', '.join(map(str, steps))}"
