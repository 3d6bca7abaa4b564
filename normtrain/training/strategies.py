"""How processes share a model: Lightning's strategies as this project sets them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from normtrain.config.schema import Recipe
from normtrain.errors import UserError
from normtrain.tasks.optimizers import OPTIMIZERS
from normtrain.training.checkpoint import check_plain, is_sharded
from normtrain.training.launch import LaunchConfig

STRATEGIES = ("auto", "ddp", "fsdp2")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints that are folders of one file a process.

    Args:
        processes: how many share the model.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load as plain data, whatever Lightning would do.

        Raises:
            UserError: the checkpoint is damaged, or holds more than plain data.
        """
        if is_sharded(Path(checkpoint_path)):
            check_plain(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def check_strategy(launch: LaunchConfig, recipe: Recipe) -> None:
    """Refuse what a sharded model can't do.

    Raises:
        UserError: the recipe or the command asks for it; what to do without is named.
    """
    if launch.strategy != "fsdp2":
        return
    refused = {
        "train.ema": recipe.train.ema is not None,
        "train.precision=bf16-true": recipe.train.precision == "bf16-true",
        "--compile": launch.compile,
        f"optim.name={recipe.optim.name}": not OPTIMIZERS[recipe.optim.name].shards,
    }
    for name, asked in refused.items():
        if asked:
            raise UserError(
                f"--strategy fsdp2 does not support {name}; leave that out, or use --strategy ddp"
            )


def strategy_of(launch: LaunchConfig) -> str | Strategy:
    """The strategy of a run, in the form a Trainer takes."""
    return ShardedStrategy(launch.processes) if launch.strategy == "fsdp2" else launch.strategy
