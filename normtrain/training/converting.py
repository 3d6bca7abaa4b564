"""Convert a checkpoint exactly to other norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.convert.conversions import to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.convert.report import ConversionReport
from normtrain.errors import RunError, UserError
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import task_of
from normtrain.training.checkpoint import (
    check_output,
    read_checkpoint,
    recorded_norms,
    write_checkpoint,
)

CONVERSIONS: dict[str, Callable[[nn.Module], ConversionReport]] = {
    "rmsnorm": to_rmsnorm,
    "crmsnorm": to_crmsnorm,
    "layernorm": to_layernorm,
}


def convert(target: Path, *, to: str, output: Path) -> str:
    """Write a checkpoint of an equivalent model with other norms.

    In eval mode its outputs are those of the original, up to rounding; that is checked on random
    tokens before anything is written.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        to: ``"rmsnorm"``, ``"crmsnorm"`` or ``"layernorm"``.
        output: the file to write: a checkpoint without training state, for ``evaluate``,
            ``translate`` or ``generate``, and ``export``.

    Returns:
        Lines that say what was changed and how far the outputs differ.

    Raises:
        UserError: the conversion would not be exact (the module and the reason are named), the
            checkpoint cannot be read, or ``output`` cannot be written to.
        RunError: the outputs differ by more than rounding, or writing the file fails.
    """
    if to not in CONVERSIONS:
        raise UserError(f"--to must be one of {', '.join(CONVERSIONS)}, got {to!r}")
    checkpoint = read_checkpoint(Path(target))
    output = Path(output)
    check_output(output)
    if output.exists() and output.samefile(checkpoint.path):
        raise UserError(f"{output} is the checkpoint to convert; -o takes the name of another file")
    original = checkpoint.model()
    model = copy.deepcopy(original)
    try:
        report = CONVERSIONS[to](model)
        recipe = converted_recipe(checkpoint.recipe, model)
        error = _difference(original, _rebuilt(recipe, model))
    except UserError as refusal:
        raise UserError(f"{checkpoint.path} cannot be converted to {to}: {refusal}") from refusal
    section = checkpoint.section.model_copy(
        update={
            "recipe": recipe.plain(),
            **recorded_norms(model),
            "converted": {"to": to, "norms": checkpoint.section.norms},
        }
    )
    write_checkpoint(output, section, model.state_dict(), checkpoint.step)
    return (
        f"{output}: {checkpoint.path} at step {checkpoint.step}, converted to {to}\n{report}\n"
        f"largest difference of logits on random text: {error:.1e} of the largest logit"
    )


def converted_recipe(recipe: Recipe, model: TokenModel) -> Recipe:
    """Return the recipe that describes a converted model."""
    plain = recipe.plain()
    plain["model"] |= model.changed_config(recipe.model)
    return recipes.from_plain(plain, "the converted recipe")


def _rebuilt(recipe: Recipe, model: TokenModel) -> TokenModel:
    """Build the model as a reader of the new checkpoint does.

    Raises:
        UserError: no recipe describes the converted model: biases of norms were folded into
            layers that have none.
    """
    built = task_of(recipe).model(recipe.model, model.vocab_size)
    state = model.state_dict()
    if added := sorted(state.keys() - built.state_dict().keys()):
        raise UserError(
            f"the biases of the norms are folded into {added[0]}, which model.bias=false leaves "
            "out; train with model.bias=true, or with a norm without bias"
        )
    rebuilt = built.to(model.head.weight.dtype)
    rebuilt.load_state_dict(state)
    return rebuilt.eval()


@torch.no_grad()
def _difference(original: TokenModel, converted: TokenModel) -> float:
    """Return the largest difference of logits on random tokens, relative to the largest logit.

    It is computed in float64.

    Raises:
        RunError: rounding of the weights does not explain the difference.
    """
    dtype = original.head.weight.dtype
    generator = torch.Generator().manual_seed(0)
    tokens = original.random_tokens(8, 24, generator)
    wanted, found = (copy.deepcopy(model).double()(*tokens) for model in (original, converted))
    error = float((found - wanted).abs().amax() / wanted.abs().amax())
    if not error <= min(0.05, 1000 * torch.finfo(dtype).eps):
        raise RunError(
            f"the converted model's logits differ by {error:.1e} of the largest, more than by "
            f"rounding; nothing was written (please report this)"
        )
    return error
