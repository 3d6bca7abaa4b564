"""Reading a checkpoint back: what it is, whether it is ours, and the model in it."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normtrain import recipe as recipes
from normtrain.data.tokenization import Tokenizer
from normtrain.errors import UserError
from normtrain.models import Seq2Seq, build_model, norm_sites
from normtrain.recipe import Recipe

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
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor]
    step: int
    data: dict[str, Any]
    raw: dict[str, Any]

    def model(self) -> Seq2Seq:
        """Build the model and load the weights; it comes in eval mode.

        Raises:
            ValueError: if the weights don't fit the model the recipe describes.
        """
        model = build_model(self.recipe.model, self.tokenizer.vocab_size)
        built = {name: str(model.norms.spec_for(name)) for name in norm_sites(model)}
        saved = self.raw["normtrain"]["norms"]
        for name in sorted(built.keys() | saved.keys()):
            if built.get(name) != saved.get(name):
                raise UserError(
                    f"{self.path} was trained with {saved.get(name, 'no norm')} at {name}, "
                    f"but its recipe builds {built.get(name, 'no norm')} there"
                )
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UserError(f"the weights in {self.path} don't fit its recipe: {error}") from error
        return model.eval()


def find_checkpoint(target: Path) -> Path:
    """The checkpoint file that a run folder or a path stands for: best, else last.

    Raises:
        ValueError: if there is none.
    """
    if target.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (target / "checkpoints" / name).is_file():
                return target / "checkpoints" / name
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
        ValueError: if it is missing, cut short, not a checkpoint, or not one of normtrain's.
    """
    path = find_checkpoint(Path(target))
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = "holds more than plain data" if "weights_only" in str(error).lower() else "is cut"
        if zipfile.is_zipfile(path) or reason != "is cut":
            detail = "it holds objects that would have to be executed, which is not done"
        else:
            detail = "it is cut short or not a checkpoint; use an earlier one of the run"
        raise UserError(f"can't read the checkpoint {path}: {detail}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("normtrain"), dict):
        raise UserError(f"{path} is a checkpoint of another program: it has no normtrain section")
    ours = raw["normtrain"]
    weights = {k[len(PREFIX) :]: v for k, v in raw["state_dict"].items() if k.startswith(PREFIX)}
    return Checkpoint(
        path=path,
        recipe=recipes.from_plain(ours["recipe"], str(path)),
        tokenizer=Tokenizer.from_json(ours["tokenizer"]),
        weights=weights,
        step=int(raw["global_step"]),
        data=ours["data"],
        raw=raw,
    )
