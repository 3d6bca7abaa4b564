"""Swap a model's norms to those that a checkpoint was trained with."""

from __future__ import annotations

import glob
from typing import Any

from torch import nn

from normtrain.errors import UserError
from normtrain.swap.norm_record import describe, differences
from normtrain.swap.report import SwapReport
from normtrain.swap.requested import RequestedNorm
from normtrain.swap.swap import swap_norms


def restore(plain: dict[str, Any], model: nn.Module, where: str) -> SwapReport | None:
    """Swap a model's norms to those of a checkpoint, if they differ.

    Args:
        plain: the checkpoint's record, as `read_record` returns it.
        model: has the norms that it was built with, or already those of the checkpoint.
        where: the checkpoint, for messages.

    Returns:
        What was replaced; None if nothing had to be.

    Raises:
        UserError: a norm is neither the one that was saved nor the one that it had replaced, or
            the saved one is not registered here.
    """
    found = differences(plain, model)
    if not found:
        return None
    if wrong := [each for each in found if not each.restorable]:
        raise UserError(
            f"{describe(wrong, where)}; build the model with the norms that the checkpoint was "
            f"trained with"
        )
    for each in found:
        _check_known(each.saved, where)
    try:
        report = swap_norms(model, [(glob.escape(each.name), each.saved) for each in found])
    except UserError as error:
        raise UserError(f"{describe(found, where)}, which cannot be replaced: {error}") from error
    if remaining := differences(plain, model):
        raise UserError(f"{describe(remaining, where)}, which cannot be replaced")
    return report


def _check_known(spec: str, where: str) -> None:
    try:
        RequestedNorm.parse(spec)
    except UserError as error:
        raise UserError(
            f"{where} was saved with {spec}, which cannot be built: {error}; import the "
            f"package that registers it first"
        ) from None
