"""A trained model as read from somewhere, and putting its weights into a model of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from normtrain.config.schema import Recipe
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import UserError
from normtrain.models import build_model
from normtrain.models.config import CausalLMConfig

# Weights that another norm may lack, have besides, or have in another shape.
_OF_A_NORM = re.compile(r"(^|\.)(norm|norm_out|q_norm|k_norm|embedding_norm)\.")
# Keys that shape the weights that are no norm's, or say what they mean.
_FIXED = (
    *("d_model", "d_stream", "heads", "kv_heads", "layers", "d_ff", "activation"),
    *("positions", "rotary_base", "bias", "head_bias", "tie"),
)


@dataclass(frozen=True)
class Pretrained:
    """A language model as a folder or a checkpoint holds it.

    Attributes:
        place: the folder or file, as it was named.
        model_type: ``"llama"``, ``"qwen3"``, ``"gpt2"`` or ``"normtrain"``.
        model: what it says of the model, by the keys of the recipe's model section; what it does
            not say (a dropout, mostly) is left out.
        weights: in float32, by the names of `normtrain.models.CausalLM`.
        tokenizer: of running text; it has as many ids as the embedding has rows.
        sha256: of the file of weights.
        notes: sentences on what was changed in reading.
    """

    place: str
    model_type: str
    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: TextTokenizer
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> dict[str, str]:
        """Where the weights come from, as a checkpoint records it."""
        return {
            "from": Path(self.place).resolve().name,
            "model_type": self.model_type,
            "sha256": self.sha256,
        }

    def settings(self) -> dict[str, Any]:
        """What it decides of a recipe, by dotted key; what a user asks for goes above it."""
        kind = self.tokenizer.kind
        size = None if kind == "byte" else self.tokenizer.vocab_size
        model = {f"model.{key}": value for key, value in self.model.items()}
        return {**model, "data.tokenizer": kind, "data.vocab_size": size}

    def check(self, recipe: Recipe) -> None:
        """See that a recipe describes a model that these weights fit, but for its norms.

        Raises:
            UserError: a size, or what a weight means, is another, or a weight is missing, left
                over, or of another shape; the key or the weight is named.
        """
        ours, theirs = cast(CausalLMConfig, recipe.model), CausalLMConfig(**self.model)
        fixed = [*_FIXED, *(["max_positions"] if theirs.positions == "learned" else [])]
        wanted = {f"model.{key}": (getattr(ours, key), getattr(theirs, key)) for key in fixed}
        wanted["model.kv_heads"] = (ours.kv_heads or ours.heads, theirs.kv_heads or theirs.heads)
        wanted["model.d_stream"] = (
            ours.d_stream or ours.d_model,
            theirs.d_stream or theirs.d_model,
        )
        for key in ("tokenizer", "vocab_size"):
            wanted[f"data.{key}"] = (getattr(recipe.data, key), self.settings()[f"data.{key}"])
        for key, (asked, there) in wanted.items():
            if asked != there:
                raise UserError(
                    f"{key} is {_shown(asked)}, but {self.place} has {_shown(there)} there; leave "
                    "the key out, since the pretrained model decides it"
                )
        with torch.device("meta"):
            matched(build_model(ours, self.tokenizer.vocab_size), self.weights)


@dataclass
class Loaded:
    """Which weights of a model are pretrained ones, by name.

    Attributes:
        loaded: those that are.
        fresh: those that start as in any new model.
        dropped: pretrained ones that the model has no place for.
    """

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for what, names in (("dropped", self.dropped), ("fresh", self.fresh)):
            if names:
                more = ", …" if len(names) > 1 else ""
                parts.append(f"{len(names)} {what} ({names[0]}{more})")
        return ", ".join(parts)


def load_into(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
    """Put pretrained weights into a model, in place.

    Weights of norms go where name and shape fit, so that a model may have other norms than the
    pretrained one; everything else has to fit.

    Args:
        model: a `normtrain.models.CausalLM`.
        weights: by its names.

    Raises:
        UserError: a weight that is no norm's is missing, left over, or of another shape.
    """
    report, state = matched(model, weights), model.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            state[name].copy_(weights[name])
    return report


def matched(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
    """Which weights `load_into` would put where; the model may be on no memory.

    Raises:
        UserError: as `load_into` does.
    """
    report, state = Loaded(), model.state_dict()
    for name, place in state.items():
        found = weights.get(name)
        if found is not None and found.shape == place.shape:
            report.loaded.append(name)
        elif _OF_A_NORM.search(name):
            report.fresh.append(name)
        else:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise UserError(
                f"the pretrained weight {name} {what}; the model's has shape {tuple(place.shape)}"
            )
    report.dropped = [name for name in weights if name not in report.loaded]
    for name in report.dropped:
        if not _OF_A_NORM.search(name):
            raise UserError(f"the model has no place for the pretrained weight {name}")
    return report


def _shown(value: Any) -> str:
    if value is None or type(value) is bool:
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value)
