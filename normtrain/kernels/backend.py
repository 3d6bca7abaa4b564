"""The interface of a backend: fused kernels for the norms of `normtrain.kernels.table`."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from normtrain.kernels.table import KINDS, Scalars

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of inputs and parameters, with their codes in the C++ kernels."""

Parameters = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Weight, bias and alpha, or their gradients; None where there is no such parameter."""


class Dropout(NamedTuple):
    """Dropout of a branch before it is added to the residual stream.

    Attributes:
        seeds: ``(rows,)`` int64, a random seed per row; None for no dropout.
        p: dropout probability in [0, 1).
    """

    seeds: Tensor | None
    p: float


class Backend(abc.ABC):
    """Fused kernels on one kind of device.

    Shapes: ``x``, ``y`` and their gradients are ``(..., d)``, contiguous, of one dtype of `DTYPES`,
    with d >= 1; there may be no rows. Weight and bias are ``(d,)`` and contiguous, of any dtype of
    `DTYPES`, or None; the weight may be ``(1,)`` for l2. Alpha is ``(1,)`` for tanh, else None.
    ``stats`` is float32 ``(rows, columns)`` and is read by the same backend only.
    """

    name: ClassVar[str]
    """As in `FusedNorm.saved` and `normtrain.kernels.choice.BACKENDS`."""

    def columns(self, kind: str) -> int:
        """Return the number of float32 statistics saved per row."""
        return len(KINDS[kind].saved[self.name])

    def description(self) -> str:
        """Return the backend's name and what its last bits depend on."""
        return self.name

    @abc.abstractmethod
    def serves(self, x: Tensor) -> bool:
        """Return whether the kernels support ``x``, ``(..., d)``: its device, dtype and size."""

    @abc.abstractmethod
    def forward(
        self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars
    ) -> tuple[Tensor, Tensor]:
        """Return ``(y, stats)``."""

    def output(self, kind: str, x: Tensor, parameters: Parameters, scalars: Scalars) -> Tensor:
        """Return the y of `forward`, for calls without a backward."""
        return self.forward(kind, x, parameters, scalars)[0]

    @abc.abstractmethod
    def backward(
        self,
        kind: str,
        grad: Tensor,
        x: Tensor,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Parameters]:
        """Return dx and the gradients of the parameters, each of its parameter's dtype and shape.

        Of the bias only its presence and dtype are read.
        """

    def forward_add(
        self,
        kind: str,
        x: Tensor,
        residual: Tensor,
        dropout: Dropout,
        parameters: Parameters,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute ``residual + dropout(x)`` and its norm in one pass.

        Args:
            kind: key of `KINDS`.
            x: the branch, ``(rows, d)``, contiguous.
            residual: ``(rows, d)``, contiguous, of the same dtype.
            dropout: of the branch.
            parameters: as for `forward`.
            scalars: as for `forward`.

        Returns:
            ``(y, total, stats)``; ``total`` is the sum, rounded to its dtype before the norm.
        """
        raise NotImplementedError

    def backward_add(
        self,
        kind: str,
        grad: Tensor,
        grad_total: Tensor | None,
        total: Tensor,
        dropout: Dropout,
        parameters: Parameters,
        stats: Tensor,
        scalars: Scalars,
    ) -> tuple[Tensor, Tensor | None, Parameters]:
        """Compute the gradients of `forward_add`.

        Args:
            kind: as for `forward_add`.
            grad: gradient of y.
            grad_total: gradient of the sum, or None.
            total: the sum that `forward_add` returned.
            dropout: as for `forward_add`.
            parameters: as for `forward_add`.
            stats: as `forward_add` returned them.
            scalars: as for `forward_add`.

        Returns:
            ``(dresidual, dx, gradients of the parameters)``; dx is None without dropout, where it
            equals dresidual.
        """
        raise NotImplementedError
