"""Lightning's strategies for several ranks, as this package configures them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from normtrain.config.schema import Recipe
from normtrain.errors import UserError
from normtrain.tasks.optimizers import OPTIMIZERS
from normtrain.training.checkpoint import check_plain, is_sharded
from normtrain.training.launch import LaunchConfig


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks; a checkpoint is a folder with one file per rank.

    Args:
        processes: number of ranks that share the model.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint of plain data; never execute code in it.

        Raises:
            UserError: the checkpoint is damaged, or holds more than plain data.
        """
        if is_sharded(Path(checkpoint_path)):
            check_plain(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def check_strategy(launch: LaunchConfig, recipe: Recipe) -> None:
    """Check that a sharded model supports the recipe and the launch options.

    Raises:
        UserError: an option is not supported; the message names an alternative.
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
    """Return the strategy of a run as `Trainer` accepts it."""
    return ShardedStrategy(launch.processes) if launch.strategy == "fsdp2" else launch.strategy
