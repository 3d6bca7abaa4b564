"""`NormFacts`: what a norm of any class computes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from normtrain.errors import UserError

KINDS = ("layer", "rms", "batch", "own")
CASTS = ("input", "float32-then-weight", "own")


@dataclass(frozen=True)
class NormFacts:
    """What a norm computes, as far as its replacement needs to know.

    Attributes:
        dim: size of the normalized axis.
        eps: the number added to the variance or mean square; None if there is none.
        weight: the gain, or None.
        bias: the bias, or None.
        offset: what is added to the stored weight to get the gain: 1.0 for Gemma's ``1 + w``.
        kind: ``"layer"`` (centered), ``"rms"``, ``"batch"``, or ``"own"`` for this package's.
        channels_first: whether the normalized axis is axis 1 (NCHW) and not the last.
        cast: when half precision is rounded: ``"input"`` before the gain, so that the output has
            the wider dtype of the two; ``"float32-then-weight"`` after it; ``"own"`` as PyTorch's
            kernels and this package do, to the input's dtype.
        note: what the report should say about how the module was read.

    Raises:
        UserError: a field has an unsupported value.
    """

    dim: int
    eps: float | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    offset: float = 0.0
    kind: str = "layer"
    channels_first: bool = False
    cast: str = "own"
    note: str = ""

    def __post_init__(self) -> None:
        """Check the fields, which third-party readers fill."""
        for name, value, known in (("kind", self.kind, KINDS), ("cast", self.cast, CASTS)):
            if value not in known:
                raise UserError(
                    f"NormFacts.{name} must be one of {', '.join(known)}, got {value!r}"
                )
        if self.offset not in (0.0, 1.0):
            raise UserError(f"NormFacts.offset must be 0.0 or 1.0, got {self.offset!r}")
