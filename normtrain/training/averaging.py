"""One checkpoint from the mean of the last few."""

from __future__ import annotations

from pathlib import Path

import torch

from normtrain.errors import UserError
from normtrain.training.checkpoint import check_output, read_checkpoint, write_checkpoint


def average(run: Path, *, last: int, output: Path) -> str:
    """Average the weights of a run's last numbered checkpoints.

    Args:
        run: the run folder.
        last: how many; the recipe's ``train.keep`` bounds how many there are.
        output: the file to write: a checkpoint without training state, for ``evaluate``,
            ``translate`` and ``export``.

    Returns:
        A line that says what was averaged.

    Raises:
        UserError: there are fewer checkpoints, they are of different models, ``last`` is below 1,
            or ``output`` cannot be written to.
        RunError: writing the file fails.
    """
    if last < 1:
        raise UserError(f"--last must be >= 1, got {last}")
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
    for file in files[-last:]:
        read = read_checkpoint(file)
        steps.append(read.step)
        weights = read.weights
        sums = sums or {n: torch.zeros_like(w, dtype=torch.float64) for n, w in weights.items()}
        if {name: w.shape for name, w in weights.items()} != {n: s.shape for n, s in sums.items()}:
            raise UserError(
                f"{file} and {files[-last]} hold weights of different models; average those of one "
                "run"
            )
        for name, weight in weights.items():
            sums[name] += weight.double()
    means = {name: (total / last).to(weights[name].dtype) for name, total in sums.items()}
    section = read.section.model_copy(update={"averaged_steps": steps})
    write_checkpoint(output, section, means, steps[-1])
    return f"{output}: the mean of the checkpoints at steps {', '.join(map(str, steps))}"
