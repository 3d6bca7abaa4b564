"""Checkpoints: their format (`schema`), reading, writing, and migration from earlier versions."""

from normtrain.training.checkpoint.migrate import migrate_launch
from normtrain.training.checkpoint.read import (
    Checkpoint,
    find_checkpoint,
    read_checkpoint,
    read_file,
)
from normtrain.training.checkpoint.resume import AtomicCheckpointIO, check_resumable
from normtrain.training.checkpoint.schema import FORMAT_VERSION, CheckpointSection
from normtrain.training.checkpoint.sharded import check_plain, is_sharded, read_sharded
from normtrain.training.checkpoint.write import (
    check_output,
    make_section,
    recorded_norms,
    write_checkpoint,
)

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "AtomicCheckpointIO",
    "CheckpointSection",
    "check_output",
    "check_plain",
    "check_resumable",
    "find_checkpoint",
    "is_sharded",
    "make_section",
    "migrate_launch",
    "read_checkpoint",
    "read_file",
    "read_sharded",
    "recorded_norms",
    "write_checkpoint",
]
