"""Reading a checkpoint back: what it is, whether it is ours, and the model in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normtrain.config import recipe as recipes
from normtrain.config.schema import Recipe
from normtrain.errors import DamagedFile, RunError, UserError
from normtrain.files import read_plain
from normtrain.models import norm_sites
from normtrain.models.embedding import TokenModel
from normtrain.tasks.base import task_of
from normtrain.tasks.module import FORMAT_VERSION
from normtrain.training.contents import Contents
from normtrain.training.sharded import is_sharded, read_sharded

PREFIX = "model."


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        recipe: the recipe it was trained by.
        tokenizer: its tokenizer.
        weights: the model's state dict (averaged weights, where the run averages).
        step: optimizer steps done.
        data: where the training data came from.
        raw: everything, as loaded.
    """

    path: Path
    recipe: Recipe
    tokenizer: Any
    weights: dict[str, torch.Tensor]
    step: int
    data: dict[str, Any]
    raw: dict[str, Any]

    def model(self) -> TokenModel:
        """Build the model and load the weights; it comes in eval mode.

        Raises:
            ValueError: if the weights don't fit the model the recipe describes.
        """
        model = task_of(self.recipe).model(self.recipe.model, self.tokenizer.vocab_size)
        built = {name: str(model.norms.spec_for(name)) for name in norm_sites(model)}
        saved = self.raw["normtrain"]["norms"]
        for name in sorted(built.keys() | saved.keys()):
            if built.get(name) != saved.get(name):
                raise UserError(
                    f"{self.path} was trained with {saved.get(name, 'no norm')} at {name}, "
                    f"but its recipe builds {built.get(name, 'no norm')} there"
                )
        kinds = {weight.dtype for weight in self.weights.values() if weight.is_floating_point()}
        if len(kinds) == 1:  # a bf16-true run validates in bfloat16, so this model works in it too
            model.to(kinds.pop())
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1:2] or [str(error)]
            raise UserError(
                f"the weights in {self.path} don't fit its recipe: {first[0].strip()}"
            ) from error
        return model.eval()


def find_checkpoint(target: Path) -> Path:
    """The checkpoint file that a run folder or a path stands for: best, else last.

    Raises:
        ValueError: if there is none.
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
    """Load a run's or a file's checkpoint as plain data; nothing in it is executed.

    Args:
        target: a run folder (best, else last) or a checkpoint file.

    Raises:
        ValueError: if it is missing, cut short, not a checkpoint, or not one of normtrain's. One
            that is damaged is a `DamagedFile`, which names another that isn't, if there is one.
    """
    path = find_checkpoint(Path(target))
    try:
        return read_file(path)
    except DamagedFile as error:
        whole = whole_neighbour(path)
        if whole is None:
            raise
        raise DamagedFile(f"{error}: {whole} is whole") from error


def whole_neighbour(damaged: Path) -> Path | None:
    """The best, last or newest numbered checkpoint beside a damaged one that can be read."""
    folder = damaged.parent
    names = [folder / "best.ckpt", folder / "last.ckpt"]
    for path in [*names, *sorted(folder.glob("step-*.ckpt"), reverse=True)]:
        if path.exists() and not path.samefile(damaged):
            with contextlib.suppress(ValueError, RunError):
                return read_file(path).path
    return None


def read_file(path: Path) -> Checkpoint:
    """Load one checkpoint file; see `read_checkpoint`.

    Raises:
        DamagedFile: it is cut short, changed, or not whole.
        ValueError: it is missing, or is not one of normtrain's.
    """
    raw = read_sharded(path) if is_sharded(path) else read_plain(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("normtrain"), dict):
        raise UserError(f"{path} is a checkpoint of another program: it has no normtrain section")
    ours = raw["normtrain"]
    if type(ours.get("version")) is not int or ours["version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {ours.get('version')}, this normtrain reads "
            f"{FORMAT_VERSION}; use the version that wrote it, or a newer one"
        )
    Contents(path, raw).check()
    weights = {k[len(PREFIX) :]: v for k, v in raw["state_dict"].items() if k.startswith(PREFIX)}
    recipe = recipes.from_plain(ours["recipe"], str(path))
    try:
        tokenizer = task_of(recipe).tokenizer(ours["tokenizer"])
    except UserError as error:
        raise UserError(f"{path}: its tokenizer can't be read: {error}") from error
    return Checkpoint(
        path=path,
        recipe=recipe,
        tokenizer=tokenizer,
        weights=weights,
        step=raw["global_step"],
        data=ours["data"],
        raw=raw,
    )


def check_output(output: Path) -> None:
    """Refuse to write a made checkpoint where it would do harm.

    Raises:
        ValueError: if ``output`` is a folder, a device, or among the checkpoints of a run, where
            resuming and averaging would take it for one of the run's own.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; -o takes a file's name")
    if output.exists() and not output.is_file():
        raise UserError(f"{output} is not a regular file; -o takes a new file's name")
    folder = output.absolute().parent
    if folder.name == "checkpoints" and (folder.parent / "recipe.yaml").is_file():
        raise UserError(f"{output} is among a run's own checkpoints; -o takes another place")
