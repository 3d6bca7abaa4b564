"""The sections that recipes of every task have, but for the model (`normtrain.models.config`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict

from normtrain.fields import (
    Accepts,
    Count,
    Flag,
    Fraction,
    NonNegative,
    OptionalCount,
    OptionalText,
    Positive,
    Section,
    Text,
    Whole,
    key,
)

MAX_WORKERS = 256


class DataConfig(Section):
    """Which text, and how it becomes batches."""

    source: Text = key("", "a corpus name, hf:owner/name, a folder or a file")
    revision: OptionalText = key(None, "revision of a dataset of the Hub")
    max_tokens: Count = key(4096, "target positions in a batch")
    workers: Annotated[
        int, Strict(), Field(ge=0, le=MAX_WORKERS), Accepts("an integer from 0 to 256")
    ] = key(0, "data loader processes; 0 prepares batches in the training process")


class OptimConfig(Section):
    """The optimizer, its schedule and the loss."""

    name: Text = key("adamw", "the optimizer, by name")
    lr: Positive = key(1e-3, "peak learning rate")
    betas: Annotated[
        tuple[Fraction, Fraction], Accepts("two numbers >= 0 and < 1, such as [0.9, 0.98]")
    ] = key((0.9, 0.98), "decay rates of AdamW's two moments")
    eps: Positive = key(1e-9, "AdamW's epsilon")
    weight_decay: NonNegative = key(0.01, "decoupled weight decay of matrices")
    schedule: Literal["inverse-sqrt", "cosine", "linear", "constant"] = key(
        "inverse-sqrt", "learning rate after the warm-up"
    )
    warmup_steps: Whole = key(400, "optimizer steps of linear warm-up")
    min_lr: NonNegative = key(0.0, "lowest learning rate of the schedule")
    label_smoothing: Fraction = key(0.0, "label smoothing (Szegedy et al. 2016)")
    clip: NonNegative = key(1.0, "largest norm of the gradient; 0 does not clip")
    accumulate: Count = key(1, "batches in one optimizer step, per process")


class TrainConfig(Section):
    """The run, counted in optimizer steps."""

    max_steps: Count = key(3000, "optimizer steps of the run")
    val_every: Count = key(250, "optimizer steps between validations")
    checkpoint_every: Count = key(250, "optimizer steps between checkpoints")
    keep: Count = key(5, "numbered checkpoints that are kept, for averaging")
    precision: Annotated[
        Literal["auto", "32", "bf16-mixed", "bf16-true"],
        BeforeValidator(lambda value: str(value) if type(value) is int else value),  # unquoted 32
    ] = key("auto", "auto takes bf16-mixed where the device is fast at it")
    seed: Annotated[
        int, Strict(), Field(ge=0, lt=2**32), Accepts("an integer from 0 to 4294967295")
    ] = key(1, "seed of weights, batch order and dropout")
    patience: OptionalCount = key(None, "validations without improvement before the run stops")
    ema: Annotated[
        float | None, Strict(), Field(gt=0, lt=1), Accepts("a number > 0 and < 1, or null")
    ] = key(None, "decay of the exponential moving average of weights")
    log_every: Count = key(50, "optimizer steps between rows of metrics.csv")
    activation_checkpointing: Flag = key(
        False, "recompute layers in the backward pass: less memory, bitwise identical, slower"
    )
    deterministic: Flag = key(False, "use deterministic operations only, on a GPU too")


class DecodeConfig(Section):
    """What the trained model writes."""

    max_length: Count = key(200, "longest output, in tokens")
