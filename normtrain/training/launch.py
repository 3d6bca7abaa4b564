"""How a run is launched: devices, nodes, strategy."""

from __future__ import annotations

import os
from typing import Any, Literal, TypedDict

import torch

from normtrain.errors import UserError
from normtrain.fields import Count, Flag, Section, key


class LaunchOptions(TypedDict, total=False):
    """What the user chose of the launch; None and False choose nothing.

    Attributes:
        devices: devices of each machine; by default one.
        nodes: machines; by default one.
        strategy: ``"auto"`` (the default), ``"ddp"`` or ``"fsdp2"``.
        compile: run the training forward pass through ``torch.compile``.
        timeout: seconds that a rank waits for the others; by default 1800.
    """

    devices: int | None
    nodes: int | None
    strategy: str | None
    compile: bool
    timeout: int | None


class LaunchConfig(Section):
    """How a run is launched. Checkpoints record it, since a run resumes as it was started.

    ``step_batches`` is counted over all processes: a run that resumes on another number of them
    keeps it.
    """

    devices: Count = key(1, "devices of each node")
    nodes: Count = key(1, "nodes")
    strategy: Literal["auto", "ddp", "fsdp2"] = key("auto", "how processes share the model")
    compile: Flag = key(False, "run the training forward pass through torch.compile")
    timeout: Count = key(1800, "seconds that a process waits for an answer of the others")
    step_batches: Count = key(1, "batches of one optimizer step, over all processes")

    def changed(self, **options: Any) -> LaunchConfig:
        """Return the config with what the user said; None and False change nothing.

        Args:
            options: by the names of the keys.

        Raises:
            UserError: there are not so many devices.
        """
        changed = self.model_copy(update={k: value for k, value in options.items() if value})
        check_devices(changed.devices, changed.nodes)
        return changed

    def for_new_run(self, accumulate: int) -> LaunchConfig:
        """Return the config of a run that starts: each rank accumulates so many batches."""
        return self.model_copy(update={"step_batches": self.processes * accumulate})

    @property
    def processes(self) -> int:
        """How many processes train, one a device."""
        return self.devices * self.nodes

    @property
    def accumulate(self) -> int:
        """Batches of one optimizer step that each process takes."""
        assert self.step_batches % self.processes == 0, self
        return self.step_batches // self.processes


def check_devices(devices: int, nodes: int) -> None:
    """Check that the devices exist, and that a launcher started the command on several nodes.

    Raises:
        UserError: there are fewer devices, or nothing says which node this one is.
    """
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"--devices must be at most {count} on this machine, got {devices}")
    placed = ("RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    if nodes > 1 and not any(name in os.environ for name in placed):
        raise UserError(
            f"--nodes {nodes} needs a launcher; start the command on each machine with torchrun "
            "or SLURM"
        )
