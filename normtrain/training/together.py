"""Evaluate on several ranks, each on its share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from normtrain.training.launch import check_devices
from normtrain.training.machine import quiet_lightning


@dataclass(frozen=True)
class RankContext:
    """The rank of this process, the number of ranks, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0


@contextlib.contextmanager
def together(devices: int | None = None, nodes: int | None = None) -> Iterator[RankContext]:
    """Start the other ranks, or join those that torchrun or SLURM has started.

    Ranks that are started here run the command line again, as in training.

    Args:
        devices: devices of each machine; by default one.
        nodes: machines; by default one.

    Raises:
        UserError: there are not so many devices, or several machines without a launcher.
    """
    devices, nodes = devices or 1, nodes or 1
    check_devices(devices, nodes)
    if devices * nodes == 1:
        yield RankContext(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    from lightning_fabric import Fabric

    quiet_lightning()
    fabric = Fabric(accelerator="auto", devices=devices, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    try:
        yield RankContext(fabric.global_rank, fabric.world_size, fabric.device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
