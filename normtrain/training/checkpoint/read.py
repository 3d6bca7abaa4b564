"""Read a checkpoint: find the file, validate it, and build the model in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.errors import DamagedFile, RunError, UserError
from normtrain.files import read_plain
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import task_of
from normtrain.training.checkpoint.migrate import migrate
from normtrain.training.checkpoint.schema import CheckpointSection, Contents, refusal
from normtrain.training.checkpoint.sharded import is_sharded, read_sharded
from normtrain.training.checkpoint.write import PREFIX, recorded_norms


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, in the present version of the format.

    Attributes:
        path: the file.
        recipe: the recipe it was trained by.
        tokenizer: its tokenizer.
        section: what makes it self-contained.
        raw: everything, as plain data.
    """

    path: Path
    recipe: Recipe
    tokenizer: Any
    section: CheckpointSection
    raw: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        step: int = self.raw["global_step"]
        return step

    @property
    def data(self) -> dict[str, Any]:
        """Where the training text came from."""
        return self.section.data.model_dump()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state dict (averaged weights, where the run averages)."""
        named = self.raw["state_dict"].items()
        return {name[len(PREFIX) :]: each for name, each in named if name.startswith(PREFIX)}

    def model(self) -> TokenModel:
        """Build the model and load the weights; it comes in eval mode.

        Raises:
            UserError: the weights or norms do not fit the model that the recipe describes.
        """
        model = task_of(self.recipe).model(self.recipe.model, self.tokenizer.vocab_size)
        built, saved = recorded_norms(model)["norms"], self.section.norms
        for name in sorted(built.keys() | saved.keys()):
            if built.get(name) != saved.get(name):
                raise UserError(
                    f"{self.path} was trained with {saved.get(name, 'no norm')} at {name}, "
                    f"but its recipe builds {built.get(name, 'no norm')} there"
                )
        weights = self.weights
        dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
        if len(dtypes) == 1:  # a bf16-true run validates in bfloat16, so this model works in it too
            model.to(dtypes.pop())
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1:2] or [str(error)]
            raise UserError(
                f"the weights in {self.path} do not fit its recipe: {first[0].strip()}"
            ) from error
        return model.eval()


def find_checkpoint(target: Path) -> Path:
    """Return the checkpoint of a run folder (best, else last), or the path itself.

    Raises:
        UserError: there is none.
    """
    if is_sharded(target):
        return target
    if target.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            found = target / "checkpoints" / name
            if found.is_file() or is_sharded(found):
                return found
        raise UserError(
            f"{target} holds no checkpoint (looked for checkpoints/best.ckpt, last.ckpt)"
        )
    if not target.exists():
        raise UserError(f"there is no run or checkpoint at {target}")
    return target


def read_checkpoint(target: Path) -> Checkpoint:
    """Load the checkpoint of a run or a file as plain data; nothing in it is executed.

    Args:
        target: a run folder (best, else last) or a checkpoint file.

    Raises:
        DamagedFile: it is damaged; a whole one beside it is named, if there is one.
        UserError: it is missing, or is not a checkpoint of normtrain's.
    """
    path = find_checkpoint(Path(target))
    try:
        return read_file(path)
    except DamagedFile as error:
        whole = _whole_neighbour(path)
        if whole is None:
            raise
        raise DamagedFile(f"{error}: {whole} is whole") from error


def _whole_neighbour(damaged: Path) -> Path | None:
    """Return the best, last or newest numbered checkpoint beside a damaged one that is whole."""
    folder = damaged.parent
    names = [folder / "best.ckpt", folder / "last.ckpt"]
    for path in [*names, *sorted(folder.glob("step-*.ckpt"), reverse=True)]:
        if path.exists() and not path.samefile(damaged):
            with contextlib.suppress(ValueError, RunError):
                return read_file(path).path
    return None


def read_file(path: Path) -> Checkpoint:
    """Load one checkpoint, migrated to the present version of the format.

    Raises:
        DamagedFile: it is cut short, changed, or not whole.
        UserError: it is missing, or is not a checkpoint of normtrain's.
    """
    raw = read_sharded(path) if is_sharded(path) else read_plain(path)
    section = raw.get("normtrain") if isinstance(raw, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} is a checkpoint of another program: it has no normtrain section")
    if "swap" in section and "recipe" not in section:
        raise UserError(
            f"{path} is a checkpoint of another program that used NormSwap: it has no recipe"
        )
    raw = migrate(raw, path)
    try:
        contents = Contents.model_validate(raw)
    except ValidationError as error:
        raise refusal(path, error) from None
    recipe = recipes.from_plain(contents.normtrain.recipe, str(path))
    try:
        tokenizer = task_of(recipe).tokenizer(contents.normtrain.tokenizer)
    except UserError as error:
        raise UserError(f"{path}: its tokenizer cannot be read: {error}") from error
    return Checkpoint(path, recipe, tokenizer, contents.normtrain, raw)
