"""A checkpoint of the same model with other norms: the exact conversions, from file to file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.convert.equivalence import to_crmsnorm, to_layernorm, to_rmsnorm
from normtrain.convert.report import ConversionReport
from normtrain.errors import RunError, UserError
from normtrain.files import write_atomically
from normtrain.models import norm_sites
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import task_of
from normtrain.training.checkpoint import PREFIX, Checkpoint, check_output, read_checkpoint

CONVERSIONS: dict[str, Callable[[nn.Module], ConversionReport]] = {
    "rmsnorm": to_rmsnorm,
    "crmsnorm": to_crmsnorm,
    "layernorm": to_layernorm,
}


def convert(target: Path, *, to: str, output: Path) -> str:
    """Write a checkpoint of the equal model with other norms.

    The outputs are those of the original in eval mode, up to rounding; that is checked on random
    text before anything is written.

    Args:
        target: a run folder (its best checkpoint, else its last) or a checkpoint file.
        to: ``"rmsnorm"``, ``"crmsnorm"`` or ``"layernorm"``.
        output: the file to write: a checkpoint for ``evaluate``, ``translate`` or ``generate``, and
            ``export``.
            It carries no optimizer state, so it can't be resumed.

    Returns:
        Lines that say what was changed and how far the outputs differ.

    Raises:
        ValueError: the conversion would not be exact (the module and the reason are named), the
            checkpoint can't be read, or ``output`` is no place for it.
        RunError: the file can't be written.
    """
    if to not in CONVERSIONS:
        raise UserError(f"--to is one of {', '.join(CONVERSIONS)}, not {to!r}")
    checkpoint = read_checkpoint(Path(target))
    output = Path(output)
    check_output(output)
    if output.exists() and output.samefile(checkpoint.path):
        raise UserError(f"{output} is the checkpoint to convert; -o takes another file's name")
    original = checkpoint.model()
    model = copy.deepcopy(original)
    try:
        report = CONVERSIONS[to](model)
    except UserError as refusal:
        raise UserError(f"{checkpoint.path} can't be converted to {to}: {refusal}") from refusal
    recipe = converted_recipe(checkpoint.recipe, model)
    error = _difference(original, _rebuilt(recipe, model))
    write_atomically(output, lambda file: torch.save(_plain(checkpoint, recipe, model, to), file))
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
    """The model as whoever reads the new checkpoint will build it."""
    built = task_of(recipe).model(recipe.model, model.vocab_size)
    rebuilt = built.to(model.head.weight.dtype)
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt.eval()


@torch.no_grad()
def _difference(original: TokenModel, converted: TokenModel) -> float:
    """How far logits lie apart on random tokens, in float64, as a share of the largest.

    Raises:
        RunError: further than the rounding of the weights explains.
    """
    dtype = original.head.weight.dtype
    generator = torch.Generator().manual_seed(0)
    tokens = original.random_tokens(8, 24, generator)
    wanted, found = (copy.deepcopy(model).double()(*tokens) for model in (original, converted))
    error = float((found - wanted).abs().amax() / wanted.abs().amax())
    if not error <= min(0.05, 1000 * torch.finfo(dtype).eps):
        raise RunError(
            f"the converted model's logits differ by {error:.1e} of the largest, which rounding "
            f"does not explain; nothing was written (please report this)"
        )
    return error


def _plain(checkpoint: Checkpoint, recipe: Recipe, model: TokenModel, to: str) -> dict[str, Any]:
    ours = {
        **checkpoint.raw["normtrain"],
        "recipe": recipe.plain(),
        "rules": model.norms.to_plain(),
        "norms": {name: str(model.norms.spec_for(name)) for name in norm_sites(model)},
        "converted": {"to": to, "norms": checkpoint.raw["normtrain"]["norms"]},
    }
    weights = {PREFIX + key: value for key, value in model.state_dict().items()}
    return {"state_dict": weights, "normtrain": ours, "global_step": checkpoint.step}
